//! Messages both ways, between a side whose task and driver are two threads and one that is a single thread.
//!
//! Loom models sequentially consistent fences, and takes such accesses for weaker ones: the memory refuses them.
#![cfg(loom)]

#[expect(dead_code, reason = "each test uses a part")]
mod models;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use loom::thread;
use models::{End, Memory, Place};
use throughline_effort::of;
use throughline_modelled::explore;
use throughline_ring::{NEVER, RecordWord, Side, Sleeper, register};
use throughline_shmem::sync::{AtomicU64, Ordering};

/// Nobody waits for space here, so that the words for it, and the bells, cost nothing.
const RECORD: [RecordWord; 2] = [RecordWord::Produced, RecordWord::WantData];

/// What a side's driver knows of its task, as the link keeps it.
struct Watch {
    want: AtomicU64,
    task: Place,
}

impl Watch {
    fn new() -> Arc<Self> {
        Arc::new(Self { want: AtomicU64::new(NEVER), task: Place::default() })
    }

    /// The driver's look.
    fn is_reached(&self, end: &End) -> bool {
        let want = self.want.load(Ordering::Relaxed);
        want != NEVER && end.view().alleged(RecordWord::Produced) >= want
    }

    /// Takes the want back and wakes the task.
    fn serve(&self, end: &End) -> bool {
        let reached = self.is_reached(end);
        if reached {
            self.want.store(NEVER, Ordering::Relaxed);
            end.view().show(RecordWord::WantData, NEVER);
            self.task.wake();
        }
        reached
    }
}

/// A task: registers, looks, and pends. Looking first is left out: what it finds, nobody needs a wake-up for.
fn receive_or_pend(end: &End, watch: &Watch, number: u8) -> bool {
    let position = end.rx.lock().unwrap().taken().0 + 1;
    watch.want.store(position, Ordering::Relaxed);
    register(&end.view(), RecordWord::WantData, position);
    end.try_take(&[number]).is_ok()
}

/// Task and driver in one thread: registers, falls asleep, looks.
fn receive_or_sleep(end: &End, sleeper: &mut Sleeper, number: u8) -> bool {
    let position = end.rx.lock().unwrap().taken().0 + 1;
    register(&end.view(), RecordWord::WantData, position);
    sleeper.fall_asleep(&end.ledger);
    end.try_take(&[number]).is_ok()
}

/// Each side sends its messages and looks for the other's; whoever finds less must have been rung for.
fn both_ways(to_guest: u8, to_host: u8) {
    let memory = Memory::new(0, &RECORD, &[]);
    let (host, guest) = (Arc::new(memory.end(Side::Host)), memory.end(Side::Guest));
    let (mut sleeper, mut guests) = (host.sleeper(6), guest.sleeper(10));
    let watch = Watch::new();

    let task = {
        let (host, watch) = (host.clone(), watch.clone());
        thread::spawn(move || {
            (0..to_guest).for_each(|number| host.try_send(&[number]).unwrap());
            (0..to_host).take_while(|number| receive_or_pend(&host, &watch, *number)).count() as u8
        })
    };
    let driver = {
        let (host, watch) = (host.clone(), watch.clone());
        thread::spawn(move || {
            sleeper.fall_asleep(&host.ledger);
            watch.is_reached(&host)
        })
    };
    (0..to_host).for_each(|number| guest.try_send(&[number]).unwrap());
    let guests = (0..to_guest).take_while(|number| receive_or_sleep(&guest, &mut guests, *number)).count() as u8;

    let (received, found) = (task.join().unwrap(), driver.join().unwrap());
    assert!(received == to_host || found || host.bell.is_woken(), "messages lie there, and all of the host sleeps");
    assert!(guests == to_guest || guest.bell.is_woken(), "messages lie there, and the guest sleeps");
    (received..to_host).for_each(|number| assert_eq!(host.try_take(&[number]), Ok(())));
    (guests..to_guest).for_each(|number| assert_eq!(guest.try_take(&[number]), Ok(())));
}

/// Without a bound there are more orders than anybody has waited for yet.
#[test]
fn two_messages_each_way_lose_no_wake_up() {
    explore("two messages each way, three threads", Some(of(3, 5) as usize), || both_ways(2, 2));
}

/// Question and answer, again and again: whoever waits is woken, or nobody runs any more.
fn rounds(count: u8) {
    let memory = Memory::new(0, &RECORD, &[]);
    let (host, guest) = (Arc::new(memory.end(Side::Host)), Arc::new(memory.end(Side::Guest)));
    let (mut sleeper, mut guests) = (host.sleeper(6), guest.sleeper(10));
    let (watch, ended) = (Watch::new(), Arc::new(AtomicBool::new(false)));
    let task = {
        let (host, watch, ended) = (host.clone(), watch.clone(), ended.clone());
        thread::spawn(move || {
            for number in 0..count {
                host.try_send(&[number]).unwrap();
                while !receive_or_pend(&host, &watch, number) {
                    watch.task.wait();
                }
            }
            ended.store(true, SeqCst);
            host.bell.wake();
        })
    };
    let driver = {
        let (host, watch) = (host.clone(), watch.clone());
        thread::spawn(move || {
            while !ended.load(SeqCst) {
                sleeper.fall_asleep(&host.ledger);
                if !watch.serve(&host) {
                    host.bell.wait();
                }
                sleeper.wake_up(&host.ledger);
            }
        })
    };
    let peer = {
        let guest = guest.clone();
        thread::spawn(move || {
            for number in 0..count {
                while !receive_or_sleep(&guest, &mut guests, number) {
                    guest.bell.wait();
                }
                guests.wake_up(&guest.ledger);
                guest.try_send(&[number]).unwrap();
            }
        })
    };
    watch.task.belongs_to(&task);
    host.bell.belongs_to(&driver);
    guest.bell.belongs_to(&peer);
    for thread in [task, driver, peer] {
        thread.join().unwrap();
    }
}

#[test]
fn rounds_of_two_messages_lose_no_wake_up() {
    let bound = of(2, 3) as usize;
    explore("two rounds of a message and its answer, three threads", Some(bound), || rounds(2));
}

#[test]
fn rounds_of_three_messages_lose_no_wake_up() {
    let bound = of(2, 3) as usize;
    explore("three rounds of a message and its answer, three threads", Some(bound), || rounds(3));
}
