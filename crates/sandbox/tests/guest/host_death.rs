//! The host's process is killed: the guest does not notice, and a snapshot under way comes to nothing.
//!
//! Each test is two: what runs in the process that is killed is behind an environment variable.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use throughline::{ChannelInfo, Link};
use throughline_sandbox::bundle::Bundle;
use throughline_sandbox::engine::{Engine, Qemu, VmRecord};
use throughline_sandbox::{Sandbox, Stage};
use throughline_wire::info::{self, Info};
use throughline_wire::{decode, encode, port};

use crate::support::{Reader, folder, name, places, template, watched};

/// Tells the inner half the sandbox's name, and where to put a bundle.
pub const NAME: &str = "THROUGHLINE_TEST_NAME";
pub const PLACE: &str = "THROUGHLINE_TEST_PLACE";

/// A host process that ran as far as it says, and was then killed.
pub fn killed_host(test: &str, name: &str, place: &Path) -> String {
    let mut host = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .envs([(NAME, name.as_ref()), (PLACE, place.as_os_str())])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(host.stdout.take().unwrap()).lines().map(Result::unwrap);
    let ready = lines.find_map(|line| line.strip_prefix("ready ").map(str::to_owned));
    host.kill().unwrap();
    host.wait().unwrap();
    ready.expect("the inner half became ready")
}

/// Says how far it has come, and waits to be killed.
pub fn ready(what: impl std::fmt::Display) {
    println!("\nready {what}");
}

/// Whether the machine that a dead host has left runs.
pub async fn runs(name: &str) -> bool {
    let record = fs::read(places(name)[1].join("sandbox.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let record: VmRecord = serde_json::from_value(record["machine"].clone()).unwrap();
    Qemu::new().reattach(&record).await.unwrap().running().await.unwrap()
}

async fn who(link: &Link) -> Info {
    let mut messages = link.connect_messages(port::INFO).await.unwrap();
    messages.send(&encode(&info::Request).unwrap()).await.unwrap();
    decode(&messages.recv().await.unwrap().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_goes_on_under_a_new_host_process_as_if_nothing_had_happened() {
    const LINES: usize = 8000;
    if let Some(name) = std::env::var_os(NAME) {
        let name = name.into_string().unwrap();
        let sandbox = Sandbox::restore(template().await).name(name).start().await.unwrap();
        let script = format!("i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo \"a line, number $i\"; done; exit 3");
        let command = sandbox.command("sh").args(["-c", &script]).label("printer");
        let mut reader = Reader::new(command.spawn().await.unwrap());
        reader.read(30_000).await;
        let info = who(sandbox.link()).await;
        ready(format!("{} {:032x} {} {}", reader.bytes.len(), info.epoch, info.identity_seq, info.machine_id));
        return std::future::pending().await;
    }
    watched(async {
        let name = name("host");
        template().await;
        let test = "host_death::vm_goes_on_under_a_new_host_process_as_if_nothing_had_happened";
        let inner = name.clone();
        let host = tokio::task::spawn_blocking(move || killed_host(test, &inner, Path::new("")));
        let before = host.await.unwrap();
        let sandbox = Sandbox::take_over(&name).await.unwrap();
        let info = who(sandbox.link()).await;
        let (at, identity) = before.split_once(' ').unwrap();
        assert_eq!(identity, format!("{:032x} {} {}", info.epoch, info.identity_seq, info.machine_id));
        assert_eq!(info.epoch, sandbox.link().timeline());
        let second = Sandbox::take_over(&name).await.unwrap_err();
        assert!(second.to_string().contains(&format!("process {}", std::process::id())), "{second}");

        let printer = |channel: &ChannelInfo| channel.label == "printer";
        let id = sandbox.link().channels().into_iter().find(printer).unwrap().id;
        let child = sandbox.adopt_command(id).unwrap();
        let at: usize = at.parse().unwrap();
        let mut reader = Reader { at: Some(at as u64), ..Reader::new(child) };
        reader.finish().await;
        let expected = (1..=LINES).fold(String::new(), |text, i| text + &format!("a line, number {i}\n"));
        assert!(reader.bytes == expected.as_bytes()[at..], "from byte {at} on");
        assert_eq!(reader.exit.map(throughline_wire::exec::Exit::shell_code), Some(3));
    })
    .await;
}

/// Killed at each stage of a snapshot, and in the middle of the copy of RAM.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_snapshot_whose_host_process_is_killed_leaves_no_bundle() {
    const STAGES: [&str; 5] = ["copying", "Quieting", "Paused", "Resumed", "finishing"];
    if let (Some(name), Some(place)) = (std::env::var_os(NAME), std::env::var_os(PLACE)) {
        let (name, place) = (name.into_string().unwrap(), PathBuf::from(place));
        let sandbox = Sandbox::restore(template().await).name(name).start().await.unwrap();
        let wanted = place.file_name().unwrap().to_str().unwrap().to_owned();
        let awaited = wanted.clone();
        let observer = move |stage: Stage| {
            if format!("{stage:?}") == awaited {
                ready(&awaited);
                loop {
                    std::thread::park();
                }
            }
        };
        let parent = place.parent().unwrap().to_owned();
        let file = match wanted.as_str() {
            "copying" => "ram.partial",
            "finishing" => "ram",
            _ => "none",
        };
        std::thread::spawn(move || {
            while !partial(&parent).iter().any(|draft| draft.join(file).exists()) {
                std::thread::sleep(Duration::from_micros(100));
            }
            ready(file);
        });
        drop(sandbox.snapshot_with(&place).observer(observer).take().await);
        return std::future::pending().await;
    }
    watched(async {
        template().await;
        let folder = folder();
        let test = "host_death::vm_snapshot_whose_host_process_is_killed_leaves_no_bundle";
        let mut drafts = 0;
        for stage in STAGES {
            let name = name(&format!("stage-{}", stage.to_lowercase()));
            let (inner, place) = (name.clone(), folder.path().join(stage));
            let target = place.clone();
            tokio::task::spawn_blocking(move || killed_host(test, &inner, &target)).await.unwrap();
            // The machine is as it was at that moment: paused, or running.
            if stage == "Paused" {
                assert!(!runs(&name).await);
            }
            if place.exists() {
                assert_eq!(stage, "finishing", "only then it may have been completed");
                whole(&place);
            }
            for draft in partial(folder.path()) {
                drafts += 1;
                let error = Bundle::open(&draft).unwrap_err();
                assert!(error.to_string().contains("not completed"), "{stage}: {error}");
            }
            // Whoever takes it over finds it running, and leaves no draft.
            let sandbox = Sandbox::take_over(&name).await.unwrap();
            assert!(partial(folder.path()).is_empty(), "{stage}");
            assert!(sandbox.command("true").output().await.unwrap().stdout.is_empty());
        }
        assert!(drafts >= 4, "{drafts} of the kills came in the middle");
    })
    .await;
}

fn whole(place: &Path) {
    let bundle = Bundle::open(place).unwrap();
    for file in bundle.manifest().files.keys() {
        bundle.check(file).unwrap();
    }
}

/// The drafts in a folder.
fn partial(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(".throughline-partial-")).collect()
}
