//! Doorbells, on the real descriptors. The virtio-serial port itself is tested in a VM; here, what it
//! has in common with a pipe: it hangs up, stays readable while it is hung up, and comes back.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use throughline::{Doorbell, Drained, Rung};
use tokio::io::unix::AsyncFd;

const BELLS: Drained = Drained { bells: true, hung_up: false, more: false };
const NOTHING: Drained = Drained { bells: false, hung_up: false, more: false };
const WATCHDOG: Duration = Duration::from_mins(1);

fn readable(bell: &impl AsFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&now)).unwrap() > 0
}

/// Made here and not by a command: a child of this process would keep others from hanging up for as
/// long as it has copies of their descriptors.
fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

fn sockets() -> (Doorbell, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Doorbell::socket(ours).unwrap(), theirs)
}

#[test]
fn eventfds_wake_the_other_end_and_take_all_bells_at_once() {
    let (one, two) = Doorbell::eventfd_pair().unwrap();
    assert!(!readable(&one) && !readable(&two));
    assert_eq!((one.ring(), one.ring()), (Rung::Accepted, Rung::Accepted));
    assert!(!readable(&one) && readable(&two));
    assert_eq!((two.drain(), two.drain()), (BELLS, NOTHING));
    assert!(!readable(&two));
    assert_eq!(two.ring(), Rung::Accepted);
    assert_eq!(one.drain(), BELLS);
}

#[test]
fn a_full_eventfd_is_pending_and_never_blocks() {
    // As a hostile peer could leave it: blocking, and one short of full.
    let blocking = || rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let (ring, wake) = (blocking(), blocking());
    let (seen, bell) = (ring.try_clone().unwrap(), Doorbell::eventfds(ring, wake).unwrap());
    rustix::io::write(&seen, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    assert_eq!(bell.ring(), Rung::Pending);
    assert_eq!(bell.drain(), NOTHING);
}

#[test]
fn sockets_carry_bells_both_ways() {
    let (one, theirs) = sockets();
    let two = Doorbell::socket(theirs).unwrap();
    assert_eq!((one.ring(), one.ring(), two.ring()), (Rung::Accepted, Rung::Accepted, Rung::Accepted));
    assert_eq!((two.drain(), two.drain(), one.drain()), (BELLS, NOTHING, BELLS));
}

#[test]
fn a_full_socket_is_pending_and_a_hung_up_one_lost() {
    let (bell, peer) = sockets();
    let mut accepted = 0;
    while bell.ring() == Rung::Accepted {
        accepted += 1;
    }
    assert!(accepted > 0);
    assert_eq!(bell.ring(), Rung::Pending);
    drop(peer);
    assert_eq!(bell.ring(), Rung::Lost);
    assert!(bell.drain().hung_up);
}

#[test]
fn bells_that_came_before_a_hang_up_are_seen() {
    let (bell, mut peer) = sockets();
    peer.write_all(&[1; 3]).unwrap();
    drop(peer);
    assert_eq!(bell.drain(), Drained { bells: true, hung_up: true, more: false });
}

#[test]
fn a_storm_of_bells_is_taken_in_bounded_shares() {
    let (bell, mut peer) = sockets();
    peer.set_nonblocking(true).unwrap();
    while peer.write(&[1; 4096]).is_ok() {}
    assert_eq!(bell.drain(), Drained { bells: true, hung_up: false, more: true });
    while bell.drain().more {}
    assert!(!readable(&bell));
}

#[test]
fn a_port_says_pending_while_its_host_is_slow_and_lost_while_it_is_away() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let bell = Doorbell::port(File::from(std::os::fd::OwnedFd::from(ours))).unwrap();
    while bell.ring() == Rung::Accepted {}
    assert_eq!(bell.ring(), Rung::Pending);
    drop(theirs);
    assert_eq!(bell.ring(), Rung::Lost);
}

#[test]
fn a_port_without_a_host_is_readable_once_and_wakes_when_a_host_comes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("port");
    pipe(&path);
    let host = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut first = host();
    let reading = OpenOptions::new().read(true).open(&path).unwrap();
    let watched = reading.try_clone().unwrap();
    let bell = Doorbell::port(reading).unwrap();
    first.write_all(&[1]).unwrap();
    assert!(readable(&bell));
    assert_eq!(bell.drain(), BELLS);
    drop(first);
    assert!(readable(&bell));
    assert_eq!(bell.drain(), Drained { bells: false, hung_up: true, more: false });
    let hung_up = |file: &File| {
        let mut polled = [PollFd::new(file, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
        polled[0].revents().contains(PollFlags::HUP)
    };
    assert!(hung_up(&watched), "the device itself stays hung up");
    assert!(!readable(&bell), "the doorbell does not: who waits on it sleeps");
    host().write_all(&[1]).unwrap();
    assert!(readable(&bell));
    assert!(bell.drain().bells);
}

/// What the driver does: wait, drain, forget the readiness; an edge for each of many bells.
#[tokio::test]
async fn bells_wake_a_task_each_time_and_a_port_after_its_host_was_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("port");
    pipe(&path);
    let host = || OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut connected = host();
    let port = Doorbell::port(OpenOptions::new().read(true).open(&path).unwrap()).unwrap();
    let port = port.watch().unwrap();
    for round in 0..100 {
        if round % 10 == 9 {
            drop(connected);
            assert!(next(&port).await.hung_up);
            connected = host();
        }
        connected.write_all(&[1]).unwrap();
        assert!(next(&port).await.bells);
    }
    let (ringing, woken) = Doorbell::eventfd_pair().unwrap();
    let woken = woken.watch().unwrap();
    for _ in 0..100 {
        assert_eq!(ringing.ring(), Rung::Accepted);
        assert!(next(&woken).await.bells);
    }
}

/// Waits until something came in.
async fn next(bell: &AsyncFd<Doorbell>) -> Drained {
    tokio::time::timeout(WATCHDOG, async {
        loop {
            let mut guard = bell.readable().await.unwrap();
            let drained = guard.get_inner().drain();
            if !drained.more {
                guard.clear_ready();
            }
            if drained != NOTHING {
                return drained;
            }
        }
    })
    .await
    .unwrap()
}
