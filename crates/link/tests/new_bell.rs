//! A live link gets another doorbell: traffic goes on, without the backstop.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use throughline::{Class, Doorbell, Event, Geometry, Link, Messages, Region, Side, Sidecar};

const PORT: u32 = 7;
/// Of the paused clock.
const WATCHDOG: Duration = Duration::from_hours(10);
/// Between two looks at something that nobody tells.
const LOOK: Duration = Duration::from_millis(1);
const BACKSTOP: Duration = Duration::from_millis(500);

fn regions() -> (Region, Region, Sidecar) {
    let class = Class { opener: Side::Host, count: 2, ring_bytes: 4096 };
    let region = Region::create_memfd("new-bell", &Geometry::new(vec![class]).unwrap()).unwrap();
    let again = Region::from_fd(region.as_fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
    let (sidecar, _file) = Sidecar::create_memfd("new-bell", &region).unwrap();
    (region, again, sidecar)
}

/// Two links that never spin: every wait needs a bell.
fn pair((here, there): (Doorbell, Doorbell)) -> (Link, Link) {
    let (region, again, sidecar) = regions();
    let spin = Duration::ZERO;
    let host = Link::host(region, sidecar).doorbell(here).spin(spin).attach().unwrap();
    let guest = Link::guest(again).doorbell(there).spin(spin).listen(PORT).attach().unwrap();
    (host, guest)
}

fn sockets() -> (Doorbell, Doorbell) {
    let (here, there) = UnixStream::pair().unwrap();
    (Doorbell::socket(here).unwrap(), Doorbell::socket(there).unwrap())
}

async fn open(host: &Link, guest: &Link) -> (Messages, Messages) {
    let mut listener = guest.listener(PORT).unwrap();
    let (mine, theirs) = tokio::join!(host.connect_messages(PORT), listener.accept());
    (mine.unwrap(), theirs.unwrap().messages().unwrap())
}

/// Questions, each of which waits for its answer: who waits never rings again. Tasks of their own: in one
/// task, whatever wakes one end would have the other look as well.
async fn ask((mut mine, mut theirs): (Messages, Messages)) -> (Messages, Messages) {
    let answering = tokio::spawn(async move {
        for _ in 0..50 {
            let question = theirs.recv().await.unwrap().unwrap();
            theirs.send(&question).await.unwrap();
        }
        theirs
    });
    for round in 0..50_u32 {
        mine.send(&round.to_le_bytes()).await.unwrap();
        assert_eq!(mine.recv().await.unwrap().unwrap(), round.to_le_bytes());
    }
    (mine, answering.await.unwrap())
}

fn finds(host: &Link, guest: &Link) -> u64 {
    host.counters().backstop_finds + guest.counters().backstop_finds
}

/// Traffic without a lost bell and without the backstop.
async fn rings(host: &Link, guest: &Link, channel: (Messages, Messages)) -> (Messages, Messages) {
    let before = (host.counters(), guest.counters());
    let channel = ask(channel).await;
    // What the backstop found shows a moment later.
    tokio::time::sleep(10 * BACKSTOP).await;
    for (before, now) in [(before.0, host.counters()), (before.1, guest.counters())] {
        assert!(now.bells_received >= before.bells_received + 40, "{before:?}, {now:?}");
        assert_eq!((now.bells_lost, now.backstop_finds), (before.bells_lost, before.backstop_finds), "{now:?}");
    }
    channel
}

async fn watched(test: impl Future<Output = ()>) {
    tokio::time::timeout(WATCHDOG, test).await.expect("the test hangs");
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_hung_up_is_replaced_under_a_live_link() {
    watched(async {
        let (host, guest) = pair(sockets());
        let channel = open(&host, &guest).await;
        let (first, theirs) = UnixStream::pair().unwrap();
        // The peer's end of the old one is closed with this: its process is replaced.
        guest.set_doorbell(Doorbell::socket(theirs).unwrap()).unwrap();
        assert_eq!(guest.event().await, Event::PeerAttached);
        assert_eq!(host.event().await, Event::PeerLost);
        host.hung_up().await;
        let channel = ask(channel).await;
        let found = finds(&host, &guest);
        assert!(found > 0, "there was no way to ring");

        host.set_doorbell(Doorbell::socket(first).unwrap()).unwrap();
        assert_eq!(host.event().await, Event::PeerAttached);
        rings(&host, &guest, channel).await;
        let still = tokio::time::timeout(BACKSTOP, host.hung_up()).await;
        still.expect_err("a doorbell that is there has not hung up");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn eventfds_are_replaced_under_a_live_link() {
    watched(async {
        let (host, guest) = pair(Doorbell::eventfd_pair().unwrap());
        let mut channel = open(&host, &guest).await;
        for _ in 0..20 {
            let (here, there) = Doorbell::eventfd_pair().unwrap();
            host.set_doorbell(here).unwrap();
            guest.set_doorbell(there).unwrap();
            assert_eq!(host.event().await, Event::PeerAttached);
            assert_eq!(guest.event().await, Event::PeerAttached);
            channel = rings(&host, &guest, channel).await;
        }
    })
    .await;
}

/// What came while a doorbell rang into the void is not left to the backstop: whoever gets a new one looks
/// at everything, and rings.
#[tokio::test(start_paused = true)]
async fn what_was_missed_is_looked_at_when_the_new_doorbell_comes() {
    watched(async {
        for (hears, renewed) in [(Side::Host, Side::Host), (Side::Host, Side::Guest), (Side::Guest, Side::Host)] {
            // Bells that are accepted, and that nobody will ever hear.
            let nowhere = || Doorbell::eventfd_pair().unwrap().0;
            let (here, there) = sockets();
            let (bells, new) = match renewed {
                Side::Host => ((nowhere(), there), here),
                Side::Guest => ((here, nowhere()), there),
            };
            let (host, guest) = pair(bells);
            let (mine, theirs) = open(&host, &guest).await;
            let found = finds(&host, &guest);
            let (mut hearing, mut telling) = if hears == Side::Host { (mine, theirs) } else { (theirs, mine) };
            let hearing = tokio::spawn(async move { hearing.recv().await.unwrap() });
            // It waits: registered, and its driver asleep, between two looks of the backstop.
            tokio::time::sleep(BACKSTOP * 5 / 4).await;
            let began = tokio::time::Instant::now();
            telling.send(b"missed").await.unwrap();
            if renewed == Side::Host { &host } else { &guest }.set_doorbell(new).unwrap();
            assert_eq!(hearing.await.unwrap().unwrap(), b"missed");
            assert_eq!(began.elapsed(), Duration::ZERO, "on a clock that only waiting moves");
            assert_eq!(finds(&host, &guest), found);
        }
    })
    .await;
}

/// Bells that came to this end, and whether the other end is closed.
fn bells(mut end: &UnixStream) -> (usize, bool) {
    end.set_nonblocking(true).unwrap();
    let mut bells = Vec::new();
    let closed = end.read_to_end(&mut bells).is_ok();
    (bells.len(), closed)
}

/// The peer is rung by the new doorbell, whatever it was rung for by the old one, and whether that had hung up.
#[tokio::test(start_paused = true)]
async fn the_new_doorbell_rings_once_and_the_old_one_is_closed() {
    watched(async {
        let (region, _again, sidecar) = regions();
        let [(first, first_peer), (second, second_peer), (third, third_peer)] =
            [(); 3].map(|()| UnixStream::pair().unwrap());
        let host = Link::host(region, sidecar).doorbell(Doorbell::socket(first).unwrap()).attach().unwrap();
        while host.counters().bells_sent == 0 {
            tokio::time::sleep(LOOK).await;
        }
        host.set_doorbell(Doorbell::socket(second).unwrap()).unwrap();
        assert_eq!(host.event().await, Event::PeerAttached);
        assert_eq!(bells(&first_peer), (1, true));
        assert_eq!(bells(&second_peer), (1, false));
        drop(second_peer);
        assert_eq!(host.event().await, Event::PeerLost);
        host.set_doorbell(Doorbell::socket(third).unwrap()).unwrap();
        assert_eq!(host.event().await, Event::PeerAttached);
        assert_eq!(bells(&third_peer), (1, false));
        tokio::time::timeout(BACKSTOP, host.event()).await.expect_err("nothing more happened");
    })
    .await;
}

/// The first bells through a new doorbell may be swallowed on the way, while the peer takes them for
/// delivered. They are not left to the backstop.
#[tokio::test(start_paused = true)]
async fn bells_that_get_lost_soon_after_a_new_doorbell_are_not_left_to_the_backstop() {
    watched(async {
        let (here, near) = UnixStream::pair().unwrap();
        let (there, far) = UnixStream::pair().unwrap();
        let (host, guest) = pair(sockets());
        let (mut mine, mut theirs) = open(&host, &guest).await;
        tokio::time::sleep(10 * BACKSTOP).await;
        host.set_doorbell(Doorbell::socket(here).unwrap()).unwrap();
        guest.set_doorbell(Doorbell::socket(there).unwrap()).unwrap();
        assert_eq!(host.event().await, Event::PeerAttached);
        // Both ends are there and take bells, and nobody carries them.
        let began = tokio::time::Instant::now();
        let hearing = tokio::spawn(async move { mine.recv().await.unwrap() });
        tokio::time::sleep(3 * LOOK).await;
        theirs.send(b"told").await.unwrap();
        assert_eq!(hearing.await.unwrap().unwrap(), b"told");
        assert!(bells(&far).0 >= 2, "the attach's, and one that was lost");
        assert!(began.elapsed() < BACKSTOP / 10, "{:?} on a clock that only waiting moves", began.elapsed());
        assert_eq!(finds(&host, &guest), 0);
        drop(near);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_new_doorbell_may_come_in_any_state() {
    watched(async {
        let (host, guest) = pair(sockets());
        let channel = open(&host, &guest).await;
        // In a freeze, and several at once: the last one counts.
        host.freeze();
        let (mut ours, mut theirs) = sockets();
        for _ in 0..3 {
            host.set_doorbell(ours).unwrap();
            (ours, theirs) = sockets();
        }
        host.set_doorbell(ours).unwrap();
        guest.set_doorbell(theirs).unwrap();
        host.thaw();
        let channel = rings(&host, &guest, channel).await;
        while tokio::time::timeout(BACKSTOP, host.event()).await.is_ok() {}

        // One that has hung up already, and then one that has bells already, more than one drain takes.
        let (dead, peer) = UnixStream::pair().unwrap();
        drop(peer);
        host.set_doorbell(Doorbell::socket(dead).unwrap()).unwrap();
        assert_eq!(host.event().await, Event::PeerAttached);
        assert_eq!(host.event().await, Event::PeerLost);
        host.hung_up().await;
        let (full, mut peer) = UnixStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        while peer.write(&[1; 4096]).is_ok() {}
        host.set_doorbell(Doorbell::socket(full).unwrap()).unwrap();
        assert_eq!(host.event().await, Event::PeerAttached);
        peer.set_nonblocking(false).unwrap();
        guest.set_doorbell(Doorbell::socket(peer).unwrap()).unwrap();
        rings(&host, &guest, channel).await;
    })
    .await;
}

/// A hang-up behind more bells than one drain takes is told all the same.
#[tokio::test(start_paused = true)]
async fn a_hang_up_behind_a_storm_of_bells_is_told() {
    watched(async {
        let (region, _again, sidecar) = regions();
        let (bell, mut peer) = UnixStream::pair().unwrap();
        peer.set_nonblocking(true).unwrap();
        while peer.write(&[1; 4096]).is_ok() {}
        drop(peer);
        let host = Link::host(region, sidecar).doorbell(Doorbell::socket(bell).unwrap()).attach().unwrap();
        host.hung_up().await;
        assert_eq!(host.event().await, Event::PeerLost);
    })
    .await;
}

/// A port whose host comes back by itself: who lost a bell meanwhile rings again. The pipe cannot be
/// rung, so every try shows as one more lost bell.
#[tokio::test(start_paused = true)]
async fn a_lost_bell_is_rung_again_when_the_way_is_there() {
    watched(async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("port");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let peer = || -> File { OpenOptions::new().read(true).write(true).open(&path).unwrap() };
        let mut first = peer();
        let port = Doorbell::port(OpenOptions::new().read(true).open(&path).unwrap()).unwrap();
        let (region, _again, sidecar) = regions();
        let host = Link::host(region, sidecar).doorbell(port).attach().unwrap();
        let lost = || host.counters().bells_lost;
        while lost() == 0 {
            tokio::time::sleep(LOOK).await;
        }
        // The attach rang; a bell shows that the way is there.
        first.write_all(&[1]).unwrap();
        while lost() == 1 {
            tokio::time::sleep(LOOK).await;
        }
        drop(first);
        assert_eq!(host.event().await, Event::PeerLost);
        host.hung_up().await;
        tokio::time::sleep(10 * BACKSTOP).await;
        assert_eq!(lost(), 2, "nobody is there");
        let mut again = peer();
        again.write_all(&[1]).unwrap();
        assert_eq!(host.event().await, Event::PeerAttached);
        assert_eq!(lost(), 3);
    })
    .await;
}
