//! A question and its answer between two cores that sleep and wake each other: whoever waits is woken, or nobody runs
//! any more.
#![cfg(loom)]

#[expect(dead_code, reason = "each test uses a part")]
mod models;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Waker};

use loom::thread;
use models::{End, Place, TRAFFIC, connected};
use throughline::core::{Publish, Take, Use};
use throughline_effort::of;
use throughline_modelled::explore;

fn send(end: &End, this: Use, number: u8) {
    assert_eq!(end.core.poll_send(this, Publish::Now, None, &[number]), Poll::Ready(Ok(())), "there is space");
}

fn poll_receive(end: &End, this: Use, cx: &mut Context<'_>, number: u8) -> Poll<()> {
    let mut out = Vec::new();
    end.core.poll_recv(this, Take::Consume, Some(cx), &mut out).map(|received| {
        assert_eq!((received, &out[..]), (Ok(true), &[number][..]), "lost, doubled or out of order");
    })
}

/// The host's task waits beside its driver; the guest is both in one thread.
fn rounds(count: u8) {
    let (host, guest, this) = connected(TRAFFIC, 0);
    let ended = Arc::new(AtomicBool::new(false));
    let task = {
        let (host, ended) = (host.clone(), ended.clone());
        thread::spawn(move || {
            let place = Place::new();
            let waker = Waker::from(place.clone());
            for number in 0..count {
                send(&host, this, number);
                while poll_receive(&host, this, &mut Context::from_waker(&waker), number).is_pending() {
                    place.wait();
                }
            }
            ended.store(true, SeqCst);
            Waker::from(host.bell.clone()).wake();
        })
    };
    let driver = thread::spawn(move || host.drive(&ended));
    let peer = thread::spawn(move || {
        for number in 0..count {
            guest.until(|cx| poll_receive(&guest, this, cx, number));
            send(&guest, this, number);
        }
    });
    for thread in [task, driver, peer] {
        thread.join().expect("a thread");
    }
}

#[test]
fn a_round_between_cores_loses_no_wake_up() {
    explore("a message and its answer, whole cores, three threads", Some(of(2, 3) as usize), || rounds(1));
}
