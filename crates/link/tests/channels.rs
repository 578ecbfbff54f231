//! What channels promise each other, one test a promise.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use throughline::{Channel, Class, Doorbell, Error, Geometry, Link, Region, Side, Sidecar, SidecarError, TryRecv};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

const PORT: u32 = 7;
const RING: usize = 4096;
const WATCHDOG: Duration = Duration::from_secs(20);

/// Two sides, and the region's file.
struct Pair {
    host: Link,
    guest: Link,
    file: File,
}

/// A region whose host has not attached yet.
struct Parts {
    region: Region,
    again: Region,
    sidecar: Sidecar,
    sidecar_file: File,
}

fn parts() -> Parts {
    let class = Class { opener: Side::Host, count: 4, ring_bytes: RING as u64 };
    let region = Region::create_memfd("test", &Geometry::new(vec![class]).unwrap()).unwrap();
    let again = Region::from_fd(region.as_fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
    let (sidecar, sidecar_file) = Sidecar::create_memfd("test", &region).unwrap();
    Parts { region, again, sidecar, sidecar_file: sidecar_file.into() }
}

fn pair() -> Pair {
    let Parts { region, again, sidecar, .. } = parts();
    let file = region.as_fd().unwrap().try_clone_to_owned().unwrap().into();
    let (here, there) = Doorbell::eventfd_pair().unwrap();
    let host = Link::host(region, sidecar).doorbell(here).attach().unwrap();
    let guest = Link::guest(again).doorbell(there).listen(PORT).attach().unwrap();
    Pair { host, guest, file }
}

async fn watched(test: impl Future<Output = ()>) {
    timeout(WATCHDOG, test).await.expect("the test hangs");
}

#[tokio::test]
async fn a_stream_holds_back_less_than_a_word_and_nothing_once_it_is_closed() {
    watched(async {
        let Pair { host, guest, file } = pair();
        let mut listener = guest.listener(PORT).unwrap();
        for length in 1..=24 {
            let (mut reader, mut writer) = host.connect_with(PORT).unanswered().stream().await.unwrap().into_split();
            let mut theirs = listener.accept().await.unwrap().stream().unwrap();
            writer.write_all(&b"secrets are what nobody keeps"[..length]).await.unwrap();
            theirs.read_exact(&mut vec![0; length]).await.unwrap();
            let there = writer.try_write(&[0; 2 * RING]).unwrap().expect("room");
            assert!(there > RING - 8, "after {length} bytes {there} of {RING} are free");
            writer.shutdown().await.unwrap();
            theirs.read_to_end(&mut Vec::new()).await.unwrap();
            theirs.shutdown().await.unwrap();
            reader.read_to_end(&mut Vec::new()).await.unwrap();
            drop((reader, writer, theirs));
        }
        // The last channel is settled when its slot can be used again: all four at once.
        for _ in 0..4 {
            host.connect_with(PORT).unanswered().stream().await.unwrap().release();
        }
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(!bytes.windows(4).any(|window| window == b"secr"), "a consumed byte is still in the region");
    })
    .await;
}

#[tokio::test]
async fn a_slow_reader_stalls_its_own_channel_and_no_other() {
    watched(async {
        let Pair { host, guest, .. } = pair();
        let mut listener = guest.listener(PORT).unwrap();
        let mut stalled = host.connect_with(PORT).unanswered().messages().await.unwrap();
        let mut slow = listener.accept().await.unwrap().messages().unwrap();
        let mut free = host.connect_with(PORT).unanswered().messages().await.unwrap();
        let mut quick = listener.accept().await.unwrap().messages().unwrap();
        let mut waiting = 0_u32;
        while stalled.try_send(&waiting.to_le_bytes()).unwrap() {
            waiting += 1;
        }
        for number in 0..3 * RING as u32 {
            free.send(&number.to_le_bytes()).await.unwrap();
            assert_eq!(quick.recv().await.unwrap().unwrap(), number.to_le_bytes());
        }
        for number in 0..waiting {
            assert_eq!(slow.recv().await.unwrap().unwrap(), number.to_le_bytes());
        }
    })
    .await;
}

#[tokio::test]
async fn a_port_that_is_listened_on_at_attach_gets_every_open_that_waited() {
    watched(async {
        let Parts { region, again, sidecar, .. } = parts();
        let (here, there) = Doorbell::eventfd_pair().unwrap();
        let host = Link::host(region, sidecar).doorbell(here).attach().unwrap();
        let mut opened = Vec::new();
        for number in 0..4_u8 {
            let mut stream = host.connect_with(PORT).unanswered().stream().await.unwrap();
            stream.write_all(&[number]).await.unwrap();
            opened.push(stream);
        }
        let guest = Link::guest(again).doorbell(there).listen(PORT).attach().unwrap();
        let mut listener = guest.listener(PORT).unwrap();
        let mut came = Vec::new();
        for _ in 0..4 {
            let mut stream = listener.accept().await.unwrap().stream().unwrap();
            came.push(stream.read_u8().await.unwrap());
        }
        came.sort_unstable();
        assert_eq!(came, [0, 1, 2, 3]);
    })
    .await;
}

#[tokio::test]
async fn space_that_nobody_waits_for_rings_no_bell() {
    watched(async {
        let Pair { host, guest, .. } = pair();
        let mut listener = guest.listener(PORT).unwrap();
        let mut ours = host.connect_with(PORT).unanswered().messages().await.unwrap();
        let mut theirs = listener.accept().await.unwrap().messages().unwrap();
        for number in 0..100_u32 {
            assert!(ours.try_send(&number.to_le_bytes()).unwrap());
        }
        // The host sleeps, and waits for nothing.
        let sleeps = host.counters().sleeps;
        while host.counters().sleeps == sleeps {
            tokio::task::yield_now().await;
        }
        let before = guest.counters();
        let mut message = Vec::new();
        for _ in 0..100 {
            assert_eq!(theirs.try_recv(&mut message).unwrap(), TryRecv::Message);
        }
        let after = guest.counters();
        assert_eq!(after.bells_sent, before.bells_sent);
        assert!(after.bells_suppressed >= before.bells_suppressed + 100);
    })
    .await;
}

#[tokio::test]
async fn whoever_waits_on_a_channel_publishes_first_what_was_fed() {
    watched(async {
        let Pair { host, guest, .. } = pair();
        let mut listener = guest.listener(PORT).unwrap();
        let (mut sender, mut receiver) = host.connect_with(PORT).unanswered().messages().await.unwrap().into_split();
        let mut theirs = listener.accept().await.unwrap().messages().unwrap();
        sender.feed(b"question").await.unwrap();
        assert_eq!(theirs.try_recv(&mut Vec::new()).unwrap(), TryRecv::Empty);
        let answering = async {
            assert_eq!(theirs.recv().await.unwrap().unwrap(), b"question");
            theirs.send(b"answer").await.unwrap();
        };
        // Nobody flushes: without it both would wait for ever.
        let (answer, ()) = tokio::join!(receiver.recv(), answering);
        assert_eq!(answer.unwrap().unwrap(), b"answer");
    })
    .await;
}

#[tokio::test]
async fn a_channel_that_nobody_adopts_follows_its_policy() {
    watched(async {
        let Parts { region, again, sidecar, sidecar_file } = parts();
        let host_again = Region::from_fd(region.as_fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
        let (here, there) = Doorbell::eventfd_pair().unwrap();
        let guest = Link::guest(again).doorbell(there).listen(PORT).attach().unwrap();
        let mut listener = guest.listener(PORT).unwrap();
        let host = Link::host(region, sidecar).doorbell(here).attach().unwrap();
        let short = Duration::from_millis(1);
        let closed = host.connect_with(PORT).close_unadopted(short).unanswered().messages().await.unwrap().release();
        let mut theirs = listener.accept().await.unwrap().messages().unwrap();
        let kept = host.connect_with(PORT).unanswered().messages().await.unwrap().release();
        let mut theirs_kept = listener.accept().await.unwrap().messages().unwrap();
        drop(host);
        // The lease goes with the driver, which is on its way out.
        let sidecar = loop {
            match Sidecar::from_fd(&sidecar_file, &host_again) {
                Ok(sidecar) => break sidecar,
                Err(error) => assert!(matches!(error, SidecarError::Held { .. }), "{error}"),
            }
            tokio::task::yield_now().await;
        };
        let (here, _there) = Doorbell::eventfd_pair().unwrap();
        let host = Link::host(host_again, sidecar).doorbell(here).attach().unwrap();
        assert_eq!(theirs.recv().await, Err(Error::Reset), "nobody adopted it");
        let Channel::Messages(mut ours) = host.adopt(kept).unwrap() else { panic!("it is of messages") };
        ours.send(b"still here").await.unwrap();
        assert_eq!(theirs_kept.recv().await.unwrap().unwrap(), b"still here");
        assert!(host.adopt(closed).is_err());
    })
    .await;
}

#[tokio::test]
async fn a_dropped_future_loses_and_doubles_nothing() {
    watched(async {
        let Pair { host, guest, .. } = pair();
        let mut listener = guest.listener(PORT).unwrap();
        let mut ours = host.connect_with(PORT).unanswered().messages().await.unwrap();
        let mut theirs = listener.accept().await.unwrap().messages().unwrap();
        let (mut sent, mut received) = (0_u32, 0_u32);
        let total = 2000;
        let payload = |number: u32| [&number.to_le_bytes()[..], &[7; 400]].concat();
        while received < total {
            // Both are cut off wherever they happen to be, and begun again.
            tokio::select! {
                biased;
                () = tokio::task::yield_now(), if (sent + received) % 3 == 0 => {}
                done = async { ours.send(&payload(sent)).await }, if sent < total => {
                    done.unwrap();
                    sent += 1;
                }
                message = theirs.recv() => {
                    assert_eq!(message.unwrap().unwrap(), payload(received));
                    received += 1;
                }
            }
            if let Ok(message) = timeout(Duration::ZERO, theirs.recv()).await {
                assert_eq!(message.unwrap().unwrap(), payload(received));
                received += 1;
            }
        }
        assert_eq!((sent, theirs.try_recv(&mut Vec::new()).unwrap()), (total, TryRecv::Empty));
    })
    .await;
}
