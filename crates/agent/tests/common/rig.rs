//! Host and agent on a real link between two attachments of this process; only the VM is missing.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use throughline::{Doorbell, Geometry, Identity, Link, LinkBuilder, Messages, Region, Sidecar};
use throughline_agent::agent::{Agent, AgentError, Options};
use throughline_agent::control::Switches;
use throughline_agent::identity::Places;
use throughline_wire::exec::{Event, Exit, Request, Start};
use throughline_wire::{PROTOCOL, decode, encode, port, secrets};
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::WATCHDOG;

/// The guest's files and its agent, and the host's link to it.
pub struct Rig {
    pub host: Link,
    /// The agent's own link, to look at.
    pub guest: Link,
    pub agent: JoinHandle<Result<(), AgentError>>,
    folder: PathBuf,
    group: PathBuf,
}

/// What [`Rig::identity`] fills in: no clock, no names, so that the machine of the test keeps its own.
pub fn identity(seq: u64) -> Identity {
    Identity {
        seq,
        epoch: u128::from(seq) << 64,
        parent: 0,
        index: 0,
        clock_ns: 0,
        flags: 0,
        entropy: [seq as u8; 64],
        hostname: None,
    }
}

/// Runs a test with an agent that has no identity yet. The control group is gone afterwards.
pub fn rig<F: Future>(name: &str, switches: Switches, test: impl FnOnce(Rc<Rig>) -> F) {
    let group = super::cgroup_mount().join(format!("throughline-test-{name}-{}", std::process::id()));
    // Outlives the commands that write into it: they end with the group.
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cleanup = super::Cleanup(group.clone());
    LocalSet::new().block_on(&runtime, async {
        let rig = Rc::new(Rig::new(folder.path(), group, switches));
        tokio::time::timeout(WATCHDOG, test(rig)).await.expect("the test hangs");
    });
    drop(runtime);
    drop(cleanup);
    folder.close().unwrap();
}

impl Rig {
    fn new(folder: &Path, group: PathBuf, switches: Switches) -> Self {
        let region = Region::create_memfd("agent-test", &Geometry::default()).unwrap();
        let (sidecar, _) = Sidecar::create_memfd("agent-test-sidecar", &region).unwrap();
        let guest = Region::from_fd(region.as_fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
        let (host_bell, guest_bell) = Doorbell::eventfd_pair().unwrap();
        let host = Link::host(region, sidecar).doorbell(host_bell).attach().unwrap();
        let builder = Link::guest(guest).doorbell(guest_bell).agent_version(PROTOCOL);
        let guest = port::ALL.into_iter().fold(builder, LinkBuilder::listen).attach().unwrap();
        let place = |name| folder.join(name);
        let places = Places { etc: place("etc"), run: place("run"), root: place("root"), secrets: place("secrets") };
        std::fs::create_dir(&places.etc).unwrap();
        std::fs::create_dir(&places.root).unwrap();
        let options = Options { group: Some(&group), is_init: false, places, switches };
        let agent = Rc::new(Agent::new(&options).unwrap());
        let agent = spawn_local(agent.run(guest.clone()));
        Self { host, guest, agent, folder: folder.to_owned(), group }
    }

    /// Gives an identity, and waits until it is taken on.
    pub async fn identify(&self, seq: u64) {
        self.host.give_identity(&identity(seq));
        self.host.identity_taken(WATCHDOG).await.unwrap();
    }

    /// Whether the user's processes are frozen.
    pub fn is_frozen(&self) -> bool {
        std::fs::read_to_string(self.group.join("cgroup.events")).unwrap().contains("frozen 1")
    }

    /// Takes the control group away, which must be empty: from now on nothing can be frozen.
    pub fn remove_group(&self) {
        std::fs::remove_dir(&self.group).unwrap();
    }

    /// Hands a secret over.
    pub async fn hand_over(&self, value: &[u8]) -> secrets::Reply {
        let mut channel = self.host.connect_with(port::SECRETS).unanswered().messages().await.unwrap();
        for request in [secrets::Request::Piece { name: "key", data: value }, secrets::Request::End] {
            channel.send(&encode(&request).unwrap()).await.unwrap();
        }
        decode(&channel.recv().await.unwrap().unwrap()).unwrap()
    }

    /// Installs a hook.
    pub fn hook(&self, script: &str) {
        let hooks = self.folder.join("etc/throughline/restore.d");
        std::fs::create_dir_all(&hooks).unwrap();
        let path = hooks.join("hook");
        super::write_program(&path, &format!("#!/bin/sh\n{script}\n"));
    }

    /// Opens a channel without waiting for an answer, and starts a command on it.
    pub async fn start(&self, start: Start) -> Messages {
        let mut messages = self.host.connect_with(port::EXEC).unanswered().messages().await.unwrap();
        messages.send(&encode(&Request::Start(start)).unwrap()).await.unwrap();
        messages
    }

    /// Runs a command to its end: output and exit.
    pub async fn run(&self, start: Start) -> (Vec<u8>, Option<Exit>) {
        self.finish(self.start(start).await).await
    }

    /// Reads a command's channel to its end: output and exit.
    pub async fn finish(&self, mut messages: Messages) -> (Vec<u8>, Option<Exit>) {
        let (mut output, mut exit) = (Vec::new(), None);
        while let Some(message) = messages.recv().await.unwrap() {
            match decode(&message).unwrap() {
                Event::Stdout { at, data } => {
                    assert_eq!(at, output.len() as u64);
                    output.extend_from_slice(data);
                }
                Event::Exited(found) => exit = Some(found),
                Event::Failed(failure) => panic!("{failure:?}"),
                _ => {}
            }
        }
        (output, exit)
    }

    /// Path of a file that a command may write.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Waits for a condition, letting everything else run.
pub async fn until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        // Timers and descriptors are only looked at when nothing is ready.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until a file exists.
pub async fn exists(path: &Path) {
    until(|| path.exists()).await;
}
