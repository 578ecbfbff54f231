//! Two cores that open, talk, close and open the same slot again.
#![cfg(loom)]

#[expect(dead_code, reason = "each test uses a part")]
mod models;

use std::task::Poll;

use loom::thread;
use models::{End, LIFE, PORT, attached, opening};
use throughline::core::{Publish, Take, Use};
use throughline_effort::of;
use throughline_modelled::explore;
use throughline_ring::Reason;

/// Each connection carries one message of its own number.
fn opens_twice(host: &End) {
    for number in 1..=2 {
        let this = host.until(|cx| host.core.poll_open(&opening(), cx)).expect("opened");
        assert_eq!(this.generation.number(), u32::from(number));
        assert_eq!(host.core.poll_send(this, Publish::Now, None, &[number]), Poll::Ready(Ok(())));
        host.core.close(this, Reason::Normal);
    }
}

fn accepts_twice(guest: &End) {
    for number in 1..=2 {
        let this = guest.until(|cx| guest.core.poll_accept(PORT, cx)).expect("accepted").0;
        assert_eq!(this.generation.number(), u32::from(number));
        assert_eq!(receive(guest, this), Some(vec![number]), "lost, or another connection's");
        assert_eq!(receive(guest, this), None, "doubled, or another connection's");
        guest.core.close(this, Reason::Normal);
    }
}

fn receive(end: &End, this: Use) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let more = end.until(|cx| end.core.poll_recv(this, Take::Consume, Some(cx), &mut out)).expect("open");
    more.then_some(out)
}

#[test]
fn a_slot_that_is_closed_and_opened_again_mixes_nothing() {
    explore("closing and reuse, whole cores", Some(of(2, 3) as usize), || {
        let (host, guest) = attached(LIFE, 0);
        let opener = thread::spawn(move || opens_twice(&host));
        let acceptor = thread::spawn(move || accepts_twice(&guest));
        opener.join().expect("the opener");
        acceptor.join().expect("the acceptor");
    });
}
