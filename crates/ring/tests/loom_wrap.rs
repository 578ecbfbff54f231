//! A producer and a consumer round a ring: full, wrapped, scrubbed and filled again.
#![cfg(loom)]

#[expect(dead_code, reason = "each test uses a part")]
mod models;

use loom::thread;
use models::{Memory, RING};
use throughline_effort::of;
use throughline_modelled::explore;
use throughline_ring::{RecordWord, Side, register};

/// The second message waits until the first one's space is free, lies across the ring's end, and waits to be read.
#[test]
fn a_ring_that_is_full_goes_round_and_loses_nothing() {
    const BEGIN: u64 = 3 * RING - 16;
    let record = [RecordWord::Produced, RecordWord::Freed, RecordWord::WantData, RecordWord::WantSpace];
    // The words of the second message before and after the ring's end.
    let positions = [BEGIN, BEGIN + 8, BEGIN + 16];
    // Each leaves less space than the next one needs.
    let messages = [vec![0xa1; RING as usize - 16], vec![0xb2; 16], vec![0xc3; RING as usize - 32]];
    let bound = of(2, 3) as usize;
    explore("a full ring that wraps", Some(bound), move || {
        let memory = Memory::new(BEGIN, &record, &positions);
        let (host, guest) = (memory.end(Side::Host), memory.end(Side::Guest));
        let (mut reads, mut writes) = (host.sleeper(6), guest.sleeper(10));
        let (sent, received) = (messages.clone(), messages.clone());
        let bells = [guest.bell.clone(), host.bell.clone()];
        let producer = thread::spawn(move || {
            for message in &sent {
                while let Err(position) = guest.try_send(message) {
                    register(&guest.view(), RecordWord::WantSpace, position);
                    writes.fall_asleep(&guest.ledger);
                    let sent = guest.try_send(message).is_ok();
                    if !sent {
                        guest.bell.wait();
                    }
                    writes.wake_up(&guest.ledger);
                    if sent {
                        break;
                    }
                }
            }
        });
        let consumer = thread::spawn(move || {
            for message in &received {
                while let Err(position) = host.try_receive(message) {
                    register(&host.view(), RecordWord::WantData, position);
                    reads.fall_asleep(&host.ledger);
                    let received = host.try_receive(message).is_ok();
                    if !received {
                        host.bell.wait();
                    }
                    reads.wake_up(&host.ledger);
                    if received {
                        break;
                    }
                }
            }
        });
        bells[0].belongs_to(&producer);
        bells[1].belongs_to(&consumer);
        producer.join().unwrap();
        consumer.join().unwrap();
    });
}
