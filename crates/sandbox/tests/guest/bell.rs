//! The doorbell of a running sandbox goes, and another one comes.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use throughline::{Doorbell, Event};
use throughline_sandbox::Sandbox;

use crate::support::{name, places, template, text, until, watched};

/// The guest speaks by itself, and not only when it is asked.
const TALK: &str = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo $i; usleep 10000; done";

async fn restored(name: &str) -> Sandbox {
    let sandbox = Sandbox::restore(template().await).name(name).start().await.unwrap();
    assert!(matches!(sandbox.link().event().await, Event::Restored { .. }));
    sandbox
}

async fn talk(sandbox: &Sandbox) {
    assert!(text(sandbox, TALK).await.lines().eq((1..=20).map(|n| n.to_string())));
}

/// Everything comes by the doorbell: the backstop finds nothing, and no bell is lost.
async fn rings(sandbox: &Sandbox) {
    // While this process, or the machine, does not get its turn, bells are late, and few.
    until(async || {
        let before = sandbox.link().counters();
        talk(sandbox).await;
        let now = sandbox.link().counters();
        let by_bell = (now.backstop_finds, now.bells_lost) == (before.backstop_finds, before.bells_lost);
        by_bell && now.bells_received > before.bells_received + 10
    })
    .await;
}

/// Where the machine's doorbell listens.
fn socket(name: &str) -> PathBuf {
    places(name)[1].join("bell")
}

/// Shuts this process's only connection to a doorbell down.
fn hang_up() {
    use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = descriptors.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let sockets = numbers.filter_map(|number: i32| pidfd_getfd(&this, number, PidfdGetfdFlags::empty()).ok());
    let bells: Vec<_> = sockets
        .map(UnixStream::from)
        .filter(|socket| {
            let peer = socket.peer_addr().ok();
            peer.is_some_and(|peer| peer.as_pathname().is_some_and(|path| path.ends_with("bell")))
        })
        .collect();
    let [bell] = bells.as_slice() else { panic!("{bells:?}") };
    bell.shutdown(std::net::Shutdown::Both).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_doorbell_that_hangs_up_is_connected_anew_and_rings() {
    watched(async {
        let sandbox = restored(&name("anew")).await;
        rings(&sandbox).await;
        for _ in 0..4 {
            hang_up();
            assert_eq!(sandbox.link().event().await, Event::PeerLost);
            assert_eq!(sandbox.link().event().await, Event::PeerAttached);
            rings(&sandbox).await;
        }
    })
    .await;
}

/// The host's end of the doorbell is closed, and cannot be connected anew: the link says so, and all that is
/// said still arrives. With another doorbell it rings again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_doorbell_that_is_gone_is_told_and_nothing_is_lost() {
    watched(async {
        let name = name("bell");
        let sandbox = restored(&name).await;
        let link = sandbox.link();
        rings(&sandbox).await;
        let before = link.counters();
        let away = socket(&name).with_extension("away");
        std::fs::rename(socket(&name), &away).unwrap();
        hang_up();
        assert_eq!(link.event().await, Event::PeerLost);
        talk(&sandbox).await;
        until(async || link.counters().backstop_finds > before.backstop_finds).await;
        assert!(link.counters().bells_lost > before.bells_lost, "{:?}", link.counters());
        let connect = || Doorbell::socket(UnixStream::connect(&away).unwrap()).unwrap();
        link.set_doorbell(connect()).unwrap();
        assert_eq!(link.event().await, Event::PeerAttached);
        rings(&sandbox).await;
        // One that is there and rings is replaced just so.
        for _ in 0..20 {
            link.set_doorbell(connect()).unwrap();
            assert_eq!(link.event().await, Event::PeerAttached);
            rings(&sandbox).await;
        }
    })
    .await;
}
