//! Channels on a file system that is full: opens are refused, both ways, and what was there goes on. On a
//! tmpfs of its own, in a mount namespace of its own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use throughline::{Class, Doorbell, Error, Geometry, Link, Region, Side, Sidecar};

#[expect(dead_code, reason = "shared with the tests of memory, which use all of it")]
#[path = "memory/common.rs"]
mod common;

const PORT: u32 = 7;
const WATCHDOG: Duration = Duration::from_secs(30);

fn mount(options: &str, at: &Path) {
    let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status();
    assert!(done.unwrap().success());
}

#[test]
fn opens_on_a_full_file_system_are_refused_and_nothing_is_lost() {
    if let Some(at) = common::role() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let test = async { tokio::time::timeout(WATCHDOG, on_a_small_tmpfs(Path::new(&at))).await };
        return runtime.block_on(test).expect("the test hangs");
    }
    let folder = common::folder();
    let root = rustix::process::geteuid().is_root();
    let namespace: &[&str] = if root { &["unshare", "-m"] } else { &["unshare", "-Urm"] };
    let test = "opens_on_a_full_file_system_are_refused_and_nothing_is_lost";
    let status = common::again(namespace, test, folder.path().to_str().unwrap()).status().unwrap();
    assert!(status.success(), "{status}");
}

async fn on_a_small_tmpfs(at: &Path) {
    // Pages of header, sides and sidecar (36 KiB), and one channel's rings (128 KiB).
    mount("size=200k,mode=700", at);
    let class = |opener, count| Class { opener, count, ring_bytes: 65536 };
    let geometry = Geometry::new(vec![class(Side::Host, 2), class(Side::Guest, 1)]).unwrap();
    let region = Region::create(&at.join("region"), &geometry).unwrap();
    let theirs = Region::open(&at.join("region")).unwrap();
    let sidecar = Sidecar::create(&at.join("sidecar"), &region).unwrap();
    let (here, there) = Doorbell::eventfd_pair().unwrap();
    let host = Link::host(region, sidecar).doorbell(here).listen(PORT).attach().unwrap();
    let guest = Link::guest(theirs).doorbell(there).listen(PORT).attach().unwrap();

    let mut listener = guest.listener(PORT).unwrap();
    let (mine, accepted) = tokio::join!(host.connect_messages(PORT), listener.accept());
    let (mut mine, mut accepted) = (mine.unwrap(), accepted.unwrap().messages().unwrap());
    mine.send(b"before").await.unwrap();

    std::fs::write(at.join("filler"), vec![1; 1 << 20]).unwrap_err();
    let refused = host.connect_with(PORT).unanswered().stream().await.unwrap_err();
    assert!(matches!(refused, Error::Memory(_)), "{refused}");
    // Where the guest is a process, its own open finds out as well.
    let refused = guest.connect(PORT).await.unwrap_err();
    assert!(matches!(refused, Error::Memory(_) | Error::Refused), "{refused}");

    // The channel that was there holds what it held, and takes all that its rings hold.
    assert_eq!(accepted.recv().await.unwrap().unwrap(), b"before");
    let longest = vec![3; mine.max_len()];
    for _ in 0..3 {
        mine.send(&longest).await.unwrap();
        assert!(accepted.recv().await.unwrap().unwrap() == longest);
        accepted.send(&longest).await.unwrap();
        assert!(mine.recv().await.unwrap().unwrap() == longest);
    }

    // Space comes back, and with it every open.
    std::fs::remove_file(at.join("filler")).unwrap();
    mount("remount,size=1m", at);
    let (second, other) = tokio::join!(host.connect(PORT), listener.accept());
    let _both = (second.unwrap(), other.unwrap());
    let mut incoming = host.listener(PORT).unwrap();
    let (third, other) = tokio::join!(guest.connect(PORT), incoming.accept());
    let _both = (third.unwrap(), other.unwrap());
}
