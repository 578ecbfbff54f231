//! Two links over one region, in one process: what an embedder sees.

use std::time::Duration;

use throughline::{Class, Doorbell, Error, Geometry, Link, Region, Side, Sidecar, TryRecv};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PORT: u32 = 7;
const WATCHDOG: Duration = Duration::from_secs(20);

fn pair() -> (Link, Link) {
    let class = |opener, count, ring_bytes| Class { opener, count, ring_bytes };
    let geometry =
        Geometry::new(vec![class(Side::Host, 4, 4096), class(Side::Guest, 2, 4096), class(Side::Host, 1, 65536)])
            .unwrap();
    let region = Region::create_memfd("test", &geometry).unwrap();
    let again = Region::from_fd(region.as_fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
    let (sidecar, _file) = Sidecar::create_memfd("test", &region).unwrap();
    let (here, there) = Doorbell::eventfd_pair().unwrap();
    let host = Link::host(region, sidecar).doorbell(here).listen(PORT).attach().unwrap();
    let guest = Link::guest(again).doorbell(there).listen(PORT).attach().unwrap();
    (host, guest)
}

/// Runs a test under a watchdog.
async fn watched(test: impl Future<Output = ()>) {
    tokio::time::timeout(WATCHDOG, test).await.expect("the test hangs");
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways_and_ends() {
    watched(async {
        let (host, guest) = pair();
        let mut listener = guest.listener(PORT).unwrap();
        let echo = tokio::spawn(async move {
            let (mut reader, mut writer) = listener.accept().await.unwrap().stream().unwrap().into_split();
            let echoed = tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            writer.shutdown().await.unwrap();
            echoed
        });
        let (mut reader, mut writer) = host.connect(PORT).await.unwrap().into_split();
        let sent: Vec<u8> = (0..300_000u32).map(|n| (n * 7 % 251) as u8).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            // Pieces of odd sizes, so that words are shared between writes.
            let mut rest = sent.as_slice();
            for size in (1..700).cycle() {
                let (piece, more) = rest.split_at(rest.len().min(size));
                writer.write_all(piece).await.unwrap();
                rest = more;
                if rest.is_empty() {
                    break;
                }
            }
            writer.shutdown().await.unwrap();
        });
        let mut received = Vec::new();
        reader.read_to_end(&mut received).await.unwrap();
        assert!(received == expected, "{} bytes of {}", received.len(), expected.len());
        writing.await.unwrap();
        assert_eq!(echo.await.unwrap(), expected.len() as u64);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_arrive_whole_and_in_order_with_no_bell_too_few() {
    watched(async {
        let (host, guest) = pair();
        let mut listener = guest.listener(PORT).unwrap();
        let counting = tokio::spawn(async move {
            let mut messages = listener.accept().await.unwrap().messages().unwrap();
            let mut next = 0u64;
            while let Some(message) = messages.recv().await.unwrap() {
                assert_eq!(message.len(), 8 + (next % 900) as usize);
                assert_eq!(message[..8], next.to_le_bytes());
                next += 1;
            }
            messages.send(&next.to_le_bytes()).await.unwrap();
            messages.shutdown().await.unwrap();
            while messages.recv().await.unwrap().is_some() {}
        });
        let mut messages = host.connect_messages(PORT).await.unwrap();
        for number in 0..20_000u64 {
            let mut message = vec![3; 8 + (number % 900) as usize];
            message[..8].copy_from_slice(&number.to_le_bytes());
            messages.send(&message).await.unwrap();
        }
        messages.shutdown().await.unwrap();
        assert_eq!(messages.recv().await.unwrap(), Some(20_000u64.to_le_bytes().to_vec()));
        assert_eq!(messages.recv().await.unwrap(), None);
        counting.await.unwrap();
        for link in [host, guest] {
            assert_eq!(link.counters().backstop_finds, 0, "a bell was missing");
        }
    })
    .await;
}

#[tokio::test]
async fn a_port_without_a_listener_refuses() {
    watched(async {
        let (host, guest) = pair();
        assert_eq!(host.connect(99).await.unwrap_err(), Error::Refused);
        assert_eq!(guest.connect(99).await.unwrap_err(), Error::Refused);
    })
    .await;
}

#[tokio::test]
async fn slots_are_reused_and_run_out_with_a_word() {
    watched(async {
        let (host, guest) = pair();
        let mut listener = guest.listener(PORT).unwrap();
        let accepting = tokio::spawn(async move {
            for _ in 0..400 {
                let mut stream = listener.accept().await.unwrap().stream().unwrap();
                stream.write_all(b"secret").await.unwrap();
            }
            listener
        });
        for _ in 0..400 {
            let mut stream = host.connect(PORT).await.unwrap();
            let mut first = [0; 3];
            stream.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"sec");
        }
        let _listener = accepting.await.unwrap();
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(host.connect_with(PORT).unanswered().stream().await.unwrap());
        }
        let refused = host.connect_with(PORT).deadline(Duration::from_millis(20)).stream().await;
        assert_eq!(refused.unwrap_err(), Error::Busy);
    })
    .await;
}

#[tokio::test]
async fn a_message_that_never_fits_is_refused_and_nothing_is_lost() {
    watched(async {
        let (host, guest) = pair();
        let mut listener = guest.listener(PORT).unwrap();
        let mut messages = host.connect_with(PORT).unanswered().messages().await.unwrap();
        let mut peer = listener.accept().await.unwrap().messages().unwrap();
        let longest = messages.max_len();
        assert_eq!(
            messages.send(&vec![1; longest + 1]).await.unwrap_err(),
            Error::TooLong { len: longest + 1, max: longest }
        );
        messages.send(&vec![1; longest]).await.unwrap();
        assert!(!messages.try_send(b"").unwrap(), "the ring is full");
        assert_eq!(peer.recv().await.unwrap().unwrap().len(), longest);
        messages.send(b"").await.unwrap();
        assert_eq!(peer.recv().await.unwrap().unwrap(), b"");
        let mut out = Vec::new();
        assert_eq!(peer.try_recv(&mut out).unwrap(), TryRecv::Empty);
    })
    .await;
}

#[tokio::test]
async fn a_freeze_publishes_nothing_and_a_thaw_goes_on() {
    watched(async {
        let (host, guest) = pair();
        let mut listener = guest.listener(PORT).unwrap();
        let mut messages = host.connect_with(PORT).unanswered().messages().await.unwrap();
        let mut peer = listener.accept().await.unwrap().messages().unwrap();
        messages.send(b"before").await.unwrap();
        host.freeze();
        let before = messages.info().unwrap();
        let sending = tokio::spawn(async move {
            messages.send(b"during").await.unwrap();
            messages
        });
        assert_eq!(peer.recv().await.unwrap().unwrap(), b"before");
        let mut out = Vec::new();
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert_eq!(peer.try_recv(&mut out).unwrap(), TryRecv::Empty);
        }
        assert_eq!(host.channels()[0].sent, before.sent);
        host.thaw();
        assert_eq!(peer.recv().await.unwrap().unwrap(), b"during");
        drop(sending.await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn a_reset_drops_what_was_sent_and_a_close_does_not() {
    watched(async {
        let (host, guest) = pair();
        let mut listener = guest.listener(PORT).unwrap();
        for reset in [false, true] {
            let mut messages = host.connect_with(PORT).unanswered().messages().await.unwrap();
            let mut peer = listener.accept().await.unwrap().messages().unwrap();
            messages.send(b"last words").await.unwrap();
            if reset {
                messages.abort();
                assert_eq!(peer.recv().await.unwrap_err(), Error::Reset);
            } else {
                drop(messages);
                assert_eq!(peer.recv().await.unwrap().unwrap(), b"last words");
                assert_eq!(peer.recv().await.unwrap(), None);
                assert_eq!(peer.send(b"too late").await.unwrap_err(), Error::Closed);
            }
        }
    })
    .await;
}
