//! The core in every order that the memory model allows: a task waits, its driver falls asleep, the peer does what it
//! waits for.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p throughline --release --test loom_core`.
#![cfg(loom)]

#[expect(dead_code, reason = "each test uses a part")]
mod models;

use std::task::{Context, Poll, Waker};

use loom::thread;
use models::{ALL, End, Place, RING, TRAFFIC, connected};
use throughline::core::{Publish, Take, Use};
use throughline_effort::is_full;
use throughline_modelled::explore;

/// A task of one side attempts something while its driver falls asleep and the peer does something: whether the
/// task was done at once, or is woken in the end.
fn is_done_or_woken(
    end: &End,
    attempt: impl FnOnce(&End, &mut Context<'_>) -> bool + Send + 'static,
    peer: impl FnOnce(),
) -> bool {
    let place = Place::new();
    let task = {
        let (end, waker) = (end.clone(), Waker::from(place.clone()));
        thread::spawn(move || attempt(&end, &mut Context::from_waker(&waker)))
    };
    let driver = {
        let end = end.clone();
        thread::spawn(move || end.falls_asleep())
    };
    peer();
    let (done, asleep) = (task.join().expect("the task"), driver.join().expect("the driver"));
    end.goes_on(asleep);
    done || place.is_woken()
}

fn receive(end: &End, this: Use, cx: &mut Context<'_>) -> bool {
    end.core.poll_recv(this, Take::Consume, Some(cx), &mut Vec::new()).is_ready()
}

/// All there are, in the full run.
fn bound() -> Option<usize> {
    (!is_full()).then_some(3)
}

#[test]
fn no_wake_up_is_lost_for_a_message() {
    explore("a task, its driver and a message", bound(), || {
        let (host, guest, this) = connected(TRAFFIC, 2);
        let woken = is_done_or_woken(
            &host,
            move |host, cx| receive(host, this, cx),
            || {
                assert_eq!(guest.core.poll_send(this, Publish::Now, None, b"wake up"), Poll::Ready(Ok(())));
            },
        );
        assert!(woken, "the message lies there, and all of the host sleeps");
    });
}

/// The same for a change of the peer's state: the guest ends its direction.
#[test]
fn no_wake_up_is_lost_for_an_end() {
    explore("a task, its driver and an end", bound(), || {
        let (host, guest, this) = connected(ALL, 0);
        let woken = is_done_or_woken(
            &host,
            move |host, cx| receive(host, this, cx),
            || {
                let shut = guest.core.poll_shutdown(this, &mut Context::from_waker(Waker::noop()));
                assert_eq!(shut, Poll::Ready(Ok(())));
            },
        );
        assert!(woken, "the peer has ended, and all of the host sleeps");
    });
}

/// A task of the guest waits for space, its driver falls asleep, and the host receives.
#[test]
fn no_wake_up_is_lost_for_space() {
    explore("a task, its driver and space", bound(), || {
        let (host, guest, this) = connected(TRAFFIC, 2);
        assert_eq!(guest.core.poll_send(this, Publish::Now, None, &[7; RING as usize - 8]), Poll::Ready(Ok(())));
        let send =
            move |guest: &End, cx: &mut Context<'_>| guest.core.poll_send(this, Publish::Now, Some(cx), b"").is_ready();
        let woken = is_done_or_woken(&guest, send, || {
            let received = host.core.poll_recv(this, Take::Consume, None, &mut Vec::new());
            assert_eq!(received, Poll::Ready(Ok(true)));
        });
        assert!(woken, "there is space, and all of the guest sleeps");
    });
}
