//! What a monitor is kept from: looked at from outside on a real one, and tried from inside by a process that is started
//! in a monitor's place.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::geteuid;
use throughline_sandbox::Sandbox;
use throughline_sandbox::engine::{Confinement, Measure, VmRecord};
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

/// The limits that hold for a process by the groups on record, as the kernel says: bytes of memory, and hundredths of a
/// processor. A group counts if the process is in it.
fn limits(record: &VmRecord) -> [Option<u64>; 2] {
    let entered = fs::read_to_string(format!("/proc/{}/cgroup", record.pid)).unwrap();
    let own = |folder: &&PathBuf| {
        let name = folder.file_name().unwrap().to_str().unwrap();
        entered.lines().any(|line| line.ends_with(&format!("/{name}")))
    };
    let groups: Vec<_> = record.groups.iter().filter(own).collect();
    assert_eq!(groups.len(), record.groups.len(), "{entered}");
    let read = |file: &str| groups.iter().find_map(|group| fs::read_to_string(group.join(file)).ok());
    let number = |text: String| text.trim().parse::<u64>().ok();
    let memory = read("memory.limit_in_bytes").or_else(|| read("memory.max")).and_then(number);
    let one = read("cpu.cfs_quota_us").and_then(number).zip(read("cpu.cfs_period_us").and_then(number));
    let two = read("cpu.max").and_then(|text| {
        let (quota, period) = text.trim().split_once(' ')?;
        Some((quota.parse().ok()?, period.parse().ok()?))
    });
    [memory, one.or(two).map(|(quota, period)| 100 * quota / period)]
}

/// Whether root may make groups of the first version here, as it may wherever nobody forbids it.
fn has_groups(controller: &str) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().any(|line| {
        let words: Vec<_> = line.split(' ').collect();
        words[2] == "cgroup" && words[3].starts_with("rw") && words[3].split(',').any(|word| word == controller)
    })
}

/// The machine is held to what it needs, and not to less.
fn check_groups(record: &VmRecord) {
    let [memory, time] = limits(record);
    for (measure, controller, found) in
        [(Measure::MemoryGroup, "memory", memory), (Measure::ProcessorGroup, "cpu", time)]
    {
        let outcome = record.confinement.of(measure).unwrap();
        assert_eq!(found.is_some(), outcome.in_force, "{outcome:?}");
        assert!(!outcome.detail.is_empty() && outcome.detail != "the monitor did not say", "{outcome:?}");
        assert!(outcome.in_force || !geteuid().is_root() || !has_groups(controller), "{outcome:?}");
    }
    let guest = u64::from(record.hardware.memory_mib) << 20;
    assert!(memory.is_none_or(|limit| (guest + (64 << 20)..guest + (1 << 30)).contains(&limit)), "{memory:?}");
    let guest = 100 * u64::from(record.hardware.cpus);
    assert!(time.is_none_or(|limit| (guest..guest + 200).contains(&limit)), "{time:?}");
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
    check_groups(record);
    let groups = record.groups.clone();
    for measure in [Measure::User, Measure::NoNewPrivileges, Measure::Limits, Measure::SystemCalls] {
        assert!(record.confinement.holds(measure), "{measure}: this needs nothing that a host could refuse");
    }
    if geteuid().is_root() {
        assert_ne!(fs::metadata(format!("/proc/{}", record.pid)).unwrap().uid(), 0);
    }
    watched(sandbox.kill()).await.unwrap();
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
}

/// Who drops a sandbox, and with it the runtime, leaves no group either.
#[test]
fn vm_monitor_whose_sandbox_is_dropped_leaves_no_control_group() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let groups = runtime.block_on(async {
        let image = tokio::task::spawn_blocking(|| ImageBuilder::new().build()).await.unwrap().unwrap();
        let sandbox = watched(Sandbox::builder(image).create()).await.unwrap();
        sandbox.machine().groups.clone()
    });
    drop(runtime);
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
}

async fn watched<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_mins(2), work).await.expect("the test hangs")
}
