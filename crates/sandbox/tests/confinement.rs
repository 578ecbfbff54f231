//! What a monitor is kept from: looked at from outside on a real one, and tried from inside by a process that is started
//! in a monitor's place.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use rustix::process::geteuid;
use throughline_sandbox::Sandbox;
use throughline_sandbox::engine::{Confinement, Measure};
use throughline_sandbox::image::ImageBuilder;

fn status(pid: i32) -> HashMap<String, String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn namespace(process: &str, kind: &str) -> u64 {
    fs::metadata(format!("/proc/{process}/ns/{kind}")).unwrap().ino()
}

fn limit(pid: i32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().to_owned()
}

/// What the record says is what the kernel says of the process.
fn check(pid: i32, confinement: &Confinement) {
    println!("{confinement:#?}");
    assert_eq!(confinement.measures.iter().map(|outcome| outcome.measure).collect::<Vec<_>>(), Measure::ALL);
    let status = status(pid);
    let kinds = [
        (Measure::UserNamespace, "user"),
        (Measure::PidNamespace, "pid"),
        (Measure::NetworkNamespace, "net"),
        (Measure::IpcNamespace, "ipc"),
        (Measure::UtsNamespace, "uts"),
        (Measure::MountNamespace, "mnt"),
    ];
    for (measure, kind) in kinds {
        let own = namespace(&pid.to_string(), kind) != namespace("self", kind);
        assert_eq!(own, confinement.holds(measure), "{measure}");
    }
    assert_eq!(status["NoNewPrivs"] == "1", confinement.holds(Measure::NoNewPrivileges));
    assert_eq!(status["Seccomp"] == "2", confinement.holds(Measure::SystemCalls));
    let none = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].iter().all(|set| status[*set] == "0000000000000000");
    assert_eq!(none, confinement.holds(Measure::Capabilities), "{status:?}");
    let root = status["Uid"].split_whitespace().any(|uid| uid == "0");
    assert_eq!(!root, confinement.holds(Measure::User));
    assert_eq!(limit(pid, "Max core file size"), "0");
    assert_eq!(limit(pid, "Max open files"), "1024");
    assert_eq!(limit(pid, "Max file size"), (8 << 20).to_string());
}

/// Every measure that this host allows; and the machine works as it does without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_main_path_monitor_is_confined_as_its_record_says() {
    let image = tokio::task::spawn_blocking(|| ImageBuilder::new().build()).await.unwrap().unwrap();
    let sandbox = watched(Sandbox::builder(image).create()).await.unwrap();
    let record = sandbox.machine();
    check(record.pid, &record.confinement);
    for measure in [Measure::User, Measure::NoNewPrivileges, Measure::Limits, Measure::SystemCalls] {
        assert!(record.confinement.holds(measure), "{measure}: this needs nothing that a host could refuse");
    }
    if geteuid().is_root() {
        assert_ne!(fs::metadata(format!("/proc/{}", record.pid)).unwrap().uid(), 0);
    }
    watched(sandbox.kill()).await.unwrap();
}

async fn watched<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(2), work).await.expect("the test hangs")
}
