//! What `doctor` says, with and without what a sandbox needs.

use std::process::Command;

use crate::support::{json, printed};

#[test]
fn doctor_finds_what_a_sandbox_needs_and_tells_each_measure() {
    let found = json(["doctor", "--json"]);
    assert_eq!(found["ok"], true, "{found}");
    let checks = found["checks"].as_array().unwrap();
    let state = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("{name} is not among {found}"))["state"].as_str().unwrap().to_owned()
    };
    for name in ["qemu", "memory", "runtime", "confinement: no new privileges", "confinement: user"] {
        assert_eq!(state(name), "ok", "{name}");
    }
    for name in [
        "kvm",
        "kernel",
        "descriptors",
        "watches",
        "locked-memory",
        "userlands",
        "tracing",
        "confinement: memory cgroup",
        "confinement: cpu cgroup",
    ] {
        state(name);
    }
    let table = printed(["doctor"]);
    assert!(table.starts_with("CHECK") && table.lines().count() == checks.len() + 1, "{table}");
}

#[test]
fn doctor_without_a_monitor_names_the_command_that_installs_it() {
    let empty = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_throughline"));
    let output = command.args(["doctor", "--json"]).env("PATH", empty.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["ok"], false);
    let qemu = found["checks"].as_array().unwrap().iter().find(|check| check["name"] == "qemu").unwrap();
    assert_eq!(qemu["state"], "missing");
    assert_eq!(qemu["mend"], "apt-get install qemu-system-x86");
}
