//! The blocking face: threads that wait drive the link, one for all, and none waits in vain.

use std::io::{ErrorKind, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use throughline::blocking::{Link, Messages};
use throughline::{Class, Doorbell, Error, Event, Geometry, Region, Side, Sidecar};

const PORT: u32 = 7;
/// Longer than the runner lets a test take: a wait that ends by it would find what nobody woke it for.
const WATCHDOG: Option<Duration> = Some(Duration::from_hours(1));

/// A host and a guest, whose bells go over sockets.
fn pair() -> (Link, Link) {
    let class = Class { opener: Side::Host, count: 8, ring_bytes: 4096 };
    let region = Region::create_memfd("threads", &Geometry::new(vec![class]).unwrap()).unwrap();
    let again = Region::from_fd(region.as_fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
    let (sidecar, _file) = Sidecar::create_memfd("threads", &region).unwrap();
    let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    let [here, there] = [here, there].map(|end| Doorbell::socket(end).unwrap());
    let host = throughline::Link::host(region, sidecar).doorbell(here).attach_blocking().unwrap();
    let guest = throughline::Link::guest(again).doorbell(there).listen(PORT).attach_blocking().unwrap();
    (host, guest)
}

/// A channel of messages, and its other end.
fn channel(host: &Link, guest: &Link) -> (Messages, Messages) {
    let mut listener = guest.listener(PORT).unwrap();
    listener.set_timeout(WATCHDOG);
    let accepting = thread::spawn(move || {
        let accepted = listener.accept().unwrap().messages().unwrap();
        // Dropped, it would refuse the next.
        std::mem::forget(listener);
        accepted
    });
    let mut here = host.connect_messages(PORT).unwrap();
    let mut there = accepting.join().unwrap();
    here.set_timeout(WATCHDOG);
    there.set_timeout(WATCHDOG);
    (here, there)
}

#[test]
fn of_many_threads_one_drives_and_none_waits_in_vain() {
    const ROUNDS: u32 = 3000;
    let (host, guest) = pair();
    let channels: Vec<_> = (0..8).map(|_| channel(&host, &guest)).collect();
    thread::scope(|scope| {
        for (at, (mut here, mut there)) in channels.into_iter().enumerate() {
            scope.spawn(move || {
                while let Some(message) = there.recv().unwrap() {
                    there.send(&message).unwrap();
                }
            });
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    here.send(&round.to_le_bytes()).unwrap();
                    // Some are impatient: they leave, perhaps the seat, and come back.
                    let mut timeout = Some(Duration::from_micros(u64::from(round) * at as u64 % 90));
                    let answer = loop {
                        here.set_timeout(timeout);
                        match here.recv() {
                            Err(Error::TimedOut) if timeout != WATCHDOG => {
                                timeout = if fastrand::bool() { WATCHDOG } else { Some(Duration::ZERO) };
                            }
                            answer => break answer.unwrap().unwrap(),
                        }
                    };
                    assert_eq!(answer, round.to_le_bytes());
                    here.set_timeout(WATCHDOG);
                }
            });
        }
    });
    for link in [host, guest] {
        assert_eq!(link.counters().backstop_finds, 0, "a bell was missing");
    }
}

#[test]
fn a_parked_thread_drives_on_when_the_one_that_drove_leaves() {
    let (host, guest) = pair();
    let (mut first, mut first_peer) = channel(&host, &guest);
    let (mut second, mut second_peer) = channel(&host, &guest);
    // Which of them drives when the other comes is a matter of chance: now this one, now that one.
    for round in 0..200u32 {
        let message = round.to_le_bytes();
        let before = host.counters().sleeps;
        let (near, far) = thread::scope(|scope| {
            let one = scope.spawn(|| first.recv().unwrap().unwrap());
            let other = scope.spawn(|| second.recv().unwrap().unwrap());
            asleep(&host, before);
            first_peer.send(&message).unwrap();
            let near = one.join().unwrap();
            second_peer.send(&message).unwrap();
            (near, other.join().unwrap())
        });
        assert_eq!((&near[..], &far[..]), (&message[..], &message[..]));
    }
}

/// Waits until a link has slept more often than that.
fn asleep(link: &Link, than: u64) {
    while link.counters().sleeps <= than {
        thread::yield_now();
    }
}

#[test]
fn a_call_that_times_out_has_done_nothing() {
    let (host, guest) = pair();
    let mut listener = guest.listener(PORT).unwrap();
    listener.set_timeout(Some(Duration::from_millis(5)));
    assert!(matches!(listener.accept(), Err(Error::TimedOut)));
    assert!(matches!(host.connect_with(PORT).deadline(Duration::from_millis(5)).stream(), Err(Error::TimedOut)));
    let mut here = host.connect_with(PORT).unanswered().stream().unwrap();
    listener.set_timeout(WATCHDOG);
    let mut there = loop {
        // The one that nobody waited for came first, and is over.
        let mut accepted = listener.accept().unwrap().stream().unwrap();
        accepted.set_timeout(WATCHDOG);
        if accepted.write_all(b"there").is_ok() {
            break accepted;
        }
    };
    here.set_timeout(Some(Duration::from_millis(5)));
    let mut bytes = [0; 8];
    here.read_exact(&mut bytes[..5]).unwrap();
    assert_eq!(here.read(&mut bytes).unwrap_err().kind(), ErrorKind::TimedOut);
    there.write_all(b"again").unwrap();
    here.read_exact(&mut bytes[..5]).unwrap();
    assert_eq!(&bytes[..5], b"again");
    // A ring that is full: what did not fit was not written.
    let mut written = 0;
    let error = loop {
        match here.write(&[7; 1000]) {
            Ok(count) => written += count,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    here.set_timeout(WATCHDOG);
    here.shutdown().unwrap();
    let mut all = Vec::new();
    there.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), written);
}

#[test]
fn events_come_to_a_thread_that_waits_for_them() {
    let (host, guest) = pair();
    assert_eq!(host.event(Some(Duration::from_millis(5))), None);
    drop(guest);
    assert_eq!(host.event(WATCHDOG), Some(Event::PeerLost));
}

#[test]
fn several_channels_are_waited_for_together() {
    let (host, guest) = pair();
    let channels: Vec<_> = (0..2).map(|_| channel(&host, &guest)).collect();
    let (here, mut there): (Vec<_>, Vec<_>) = channels.into_iter().unzip();
    let mut here: Vec<_> = here
        .into_iter()
        .map(|messages| host.as_async().adopt(messages.release()).unwrap().messages().unwrap())
        .collect();
    there[1].send(b"second").unwrap();
    let first = host.block_on(WATCHDOG, async {
        let [one, other] = &mut here[..] else { unreachable!() };
        tokio::select! {
            message = one.recv() => (0, message),
            message = other.recv() => (1, message),
        }
    });
    assert_eq!(first, Some((1, Ok(Some(b"second".to_vec())))));
}

#[test]
fn a_thread_that_waits_sleeps() {
    let (host, guest) = pair();
    let (mut here, mut there) = channel(&host, &guest);
    let started = Instant::now();
    let waiting = thread::spawn(move || here.recv().unwrap());
    // Six looks after a new doorbell, then the backstop's ticks.
    asleep(&host, host.counters().sleeps + 10);
    assert!(started.elapsed() >= Duration::from_millis(500), "it wakes up for nothing");
    there.send(b"now").unwrap();
    assert_eq!(waiting.join().unwrap().unwrap(), b"now");
}
