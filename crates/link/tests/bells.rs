//! Doorbells that misbehave, on a clock of the test's own: nothing breaks, and the counters tell.

use std::time::Duration;

use throughline::{Class, Doorbell, Geometry, Link, Messages, Region, Side, Sidecar};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const PORT: u32 = 7;
/// Of the paused clock.
const WATCHDOG: Duration = Duration::from_hours(10);
const BACKSTOP: Duration = Duration::from_millis(500);

/// What becomes of each bell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Lost,
    Once,
    /// Ten times.
    Doubled,
    /// Nine of ten get lost.
    MostlyLost,
    Late(Duration),
}

/// Carries bells from one end to the other, its own way.
async fn carry(mut from: UnixStream, mut to: UnixStream, way: Way) {
    let (mut bell, mut number) = ([0; 1], 0u32);
    while from.read_exact(&mut bell).await.is_ok() {
        number += 1;
        let bells: &[u8] = match way {
            Way::Lost => &[],
            Way::MostlyLost if !number.is_multiple_of(10) => &[],
            Way::Once | Way::MostlyLost => &[1],
            Way::Doubled => &[1; 10],
            Way::Late(by) => {
                tokio::time::sleep(by).await;
                &[1]
            }
        };
        if to.write_all(bells).await.is_err() {
            return;
        }
    }
}

/// Two links whose bells go through a carrier, each way.
fn pair(way: Way) -> (Link, Link) {
    let class = Class { opener: Side::Host, count: 2, ring_bytes: 4096 };
    let region = Region::create_memfd("bells", &Geometry::new(vec![class]).unwrap()).unwrap();
    let again = Region::from_fd(region.as_fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
    let (sidecar, _file) = Sidecar::create_memfd("bells", &region).unwrap();
    let end = || {
        let (bell, carrier) = std::os::unix::net::UnixStream::pair().unwrap();
        carrier.set_nonblocking(true).unwrap();
        (Doorbell::socket(bell).unwrap(), UnixStream::from_std(carrier).unwrap())
    };
    let ((here, near), (there, far)) = (end(), end());
    let (near_in, near_out) = halves(near);
    let (far_in, far_out) = halves(far);
    tokio::spawn(carry(near_in, far_out, way));
    tokio::spawn(carry(far_in, near_out, way));
    let spin = Duration::ZERO;
    let host = Link::host(region, sidecar).doorbell(here).spin(spin).listen(PORT).attach().unwrap();
    let guest = Link::guest(again).doorbell(there).spin(spin).listen(PORT).attach().unwrap();
    (host, guest)
}

/// The same socket twice, for the two ways.
fn halves(socket: UnixStream) -> (UnixStream, UnixStream) {
    let socket = socket.into_std().unwrap();
    let again = socket.try_clone().unwrap();
    (UnixStream::from_std(socket).unwrap(), UnixStream::from_std(again).unwrap())
}

async fn open(host: &Link, guest: &Link) -> (Messages, Messages) {
    let mut listener = guest.listener(PORT).unwrap();
    let (mine, theirs) = tokio::join!(host.connect_messages(PORT), listener.accept());
    (mine.unwrap(), theirs.unwrap().messages().unwrap())
}

/// So many questions, each of which waits for its answer: who waits never rings again.
async fn ask(mine: &mut Messages, mut theirs: Messages, rounds: u32) -> Messages {
    let answering = tokio::spawn(async move {
        for _ in 0..rounds {
            let question = theirs.recv().await.unwrap().unwrap();
            theirs.send(&question).await.unwrap();
        }
        theirs
    });
    for round in 0..rounds {
        mine.send(&round.to_le_bytes()).await.unwrap();
        assert_eq!(mine.recv().await.unwrap().unwrap(), round.to_le_bytes());
    }
    answering.await.unwrap()
}

async fn watched(test: impl Future<Output = ()>) {
    tokio::time::timeout(WATCHDOG, test).await.expect("the test hangs");
}

#[tokio::test(start_paused = true)]
async fn bells_that_all_get_lost_cost_time_and_are_counted() {
    watched(async {
        for way in [Way::Lost, Way::MostlyLost] {
            let (host, guest) = pair(way);
            let (mut mine, theirs) = open(&host, &guest).await;
            let _theirs = ask(&mut mine, theirs, 20).await;
            let finds = host.counters().backstop_finds + guest.counters().backstop_finds;
            assert!(finds > 0, "{way:?}: {:?} {:?}", host.counters(), guest.counters());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn bells_that_come_ten_times_or_late_break_nothing_and_nothing_is_counted_as_lost() {
    watched(async {
        for way in [Way::Once, Way::Doubled, Way::Late(Duration::from_millis(20))] {
            let (host, guest) = pair(way);
            let (mut mine, theirs) = open(&host, &guest).await;
            let _theirs = ask(&mut mine, theirs, 300).await;
            for link in [&host, &guest] {
                let counters = link.counters();
                assert_eq!(counters.backstop_finds, 0, "{way:?}: {counters:?}");
                assert!(counters.bells_sent > 200, "{way:?}: each round sleeps: {counters:?}");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_open_and_a_wait_for_a_slot_survive_lost_bells() {
    watched(async {
        let (host, guest) = pair(Way::Lost);
        let mut listener = guest.listener(PORT).unwrap();
        // Long enough for the backstop to find out that nobody waits, were that so.
        let accepting =
            tokio::spawn(async move { (listener.accept().await.unwrap(), listener.accept().await.unwrap(), listener) });
        tokio::time::sleep(10 * BACKSTOP).await;
        let first = host.connect(PORT).await.unwrap();
        let _second = host.connect(PORT).await.unwrap();
        let (one, _two, mut listener) = accepting.await.unwrap();
        let waiting = {
            let host = host.clone();
            tokio::spawn(async move { host.connect_with(PORT).unanswered().deadline(WATCHDOG).stream().await })
        };
        tokio::time::sleep(10 * BACKSTOP).await;
        assert!(!waiting.is_finished(), "both slots are in use");
        drop((first, one));
        let _third = waiting.await.unwrap().unwrap();
        listener.accept().await.unwrap();
    })
    .await;
}

/// An hour of nothing to do: no wake-up where nobody waits, and the backstop's where somebody does.
#[tokio::test(start_paused = true)]
async fn an_idle_link_wakes_up_for_the_backstop_at_most() {
    watched(async {
        const HOUR: Duration = Duration::from_hours(1);
        let (host, guest) = pair(Way::Once);
        let (mine, mut theirs) = open(&host, &guest).await;
        // The last waits were over long ago.
        tokio::time::sleep(10 * BACKSTOP).await;
        let before = [host.counters(), guest.counters()];
        tokio::time::sleep(HOUR).await;
        assert_eq!([host.counters(), guest.counters()], before, "nobody waits");

        let waiting = tokio::spawn(async move { theirs.recv().await });
        tokio::time::sleep(HOUR).await;
        let waits = guest.counters().sleeps - before[1].sleeps;
        let backstops = u64::try_from(HOUR.as_millis() / BACKSTOP.as_millis()).unwrap();
        assert!(waits <= backstops + 2, "{waits} wake-ups for {backstops} looks of the backstop");
        assert_eq!(host.counters(), before[0], "the other side is left alone");
        assert_eq!(guest.counters().backstop_finds, 0);
        waiting.abort();
        drop(mine);
    })
    .await;
}
