//! A process in the middle that carries channels on, and is replaced at any moment.

use std::time::Duration;

use throughline::{Began, ChannelId, Class, Doorbell, Ended, Geometry, Link, Messages, Region, Relay, Side, Sidecar};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PORT: u32 = 7;
const WATCHDOG: Duration = Duration::from_secs(30);

/// The side that opens, and the side that accepts.
fn pair(ring_bytes: u64) -> (Link, Link) {
    let geometry = Geometry::new(vec![Class { opener: Side::Host, count: 3, ring_bytes }]).unwrap();
    let region = Region::create_memfd("test", &geometry).unwrap();
    let again = Region::from_fd(region.as_fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
    let (sidecar, _file) = Sidecar::create_memfd("test", &region).unwrap();
    let (here, there) = Doorbell::eventfd_pair().unwrap();
    let host = Link::host(region, sidecar).doorbell(here).attach().unwrap();
    let guest = Link::guest(again).doorbell(there).listen(PORT).attach().unwrap();
    (host, guest)
}

/// client ── down ──► middle ── up ──► server
struct Scene {
    client: Link,
    below: Link,
    above: Link,
    server: Link,
}

impl Scene {
    fn new() -> Self {
        let ((client, below), (above, server)) = (pair(4096), pair(4096));
        Self { client, below, above, server }
    }

    fn relay(&self, up: ChannelId, down: ChannelId, began: Began) -> Relay {
        Relay::new(self.above.adopt(up).unwrap(), self.below.adopt(down).unwrap(), began).unwrap()
    }

    /// Goes on for a while at a time, each time as a new process in the middle.
    async fn carry(&self, up: ChannelId, down: ChannelId) -> (Ended, u32) {
        let info = self.above.channels().into_iter().find(|info| info.id == up).unwrap();
        let began = Began::now(&info);
        for takeover in 0.. {
            let relay = self.relay(up, down, began);
            let turn = u64::from(takeover % 17) * 50;
            match tokio::time::timeout(Duration::from_micros(turn), relay.run()).await {
                Ok(ended) => return (ended.unwrap(), takeover),
                Err(_) => relay.release(),
            }
        }
        unreachable!("the carrying ends");
    }
}

async fn watched(test: impl Future<Output = ()>) {
    tokio::time::timeout(WATCHDOG, test).await.expect("the test hangs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_through_a_middle_that_is_replaced_arrive_once_and_in_order() {
    const COUNT: u64 = 5000;
    watched(async {
        let scene = Scene::new();
        let (mut up_end, mut down_end) = (scene.server.listener(PORT).unwrap(), scene.below.listener(PORT).unwrap());
        let ours = scene.client.connect_with(PORT).unanswered().messages().await.unwrap();
        let up = scene.above.connect_with(PORT).unanswered().messages().await.unwrap().release();
        let down = down_end.accept().await.unwrap().messages().unwrap().release();
        let theirs = up_end.accept().await.unwrap().messages().unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for end in [ours, theirs] {
            let (mut sender, mut receiver) = end.into_split();
            tasks.spawn(async move {
                for number in 0..COUNT {
                    let mut message = number.to_le_bytes().to_vec();
                    message.resize(8 + (number % 700) as usize, number as u8);
                    sender.send(&message).await.unwrap();
                }
                sender.shutdown().await.unwrap();
                std::future::pending::<()>().await;
            });
            tasks.spawn(async move {
                for number in 0..COUNT {
                    let message = receiver.recv().await.unwrap().expect("it comes");
                    assert_eq!(message[..8], number.to_le_bytes());
                    assert_eq!(message.len(), 8 + (number % 700) as usize);
                }
                assert_eq!(receiver.recv().await.unwrap(), None);
            });
        }
        let (ended, takeovers) = scene.carry(up, down).await;
        assert_eq!(ended, Ended::Upstream);
        assert!(takeovers > 5, "{takeovers} replacements");
        for _ in 0..2 {
            tasks.join_next().await.unwrap().unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_through_a_middle_that_is_replaced_arrives_once_and_in_order() {
    watched(async {
        let scene = Scene::new();
        let (mut up_end, mut down_end) = (scene.server.listener(PORT).unwrap(), scene.below.listener(PORT).unwrap());
        let (mut reader, mut writer) =
            scene.client.connect_with(PORT).unanswered().stream().await.unwrap().into_split();
        let up = scene.above.connect_with(PORT).unanswered().stream().await.unwrap().release();
        let down = down_end.accept().await.unwrap().stream().unwrap().release();
        let echo = tokio::spawn(async move {
            let (mut reader, mut writer) = up_end.accept().await.unwrap().stream().unwrap().into_split();
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            writer.shutdown().await.unwrap();
            std::future::pending::<()>().await;
        });
        let sent: Vec<u8> = (0..400_003_u32).map(|n| (n * 7 % 251) as u8).collect();
        let bytes = sent.clone();
        let writing = tokio::spawn(async move {
            for piece in bytes.chunks(611) {
                writer.write_all(piece).await.unwrap();
            }
            writer.shutdown().await.unwrap();
        });
        let reading = tokio::spawn(async move {
            let mut received = Vec::new();
            reader.read_to_end(&mut received).await.unwrap();
            received
        });
        let (ended, takeovers) = scene.carry(up, down).await;
        assert_eq!(ended, Ended::Upstream);
        assert!(takeovers > 5, "{takeovers} replacements");
        assert!(reading.await.unwrap() == sent);
        writing.await.unwrap();
        echo.abort();
    })
    .await;
}

/// Two channels of messages, to be paired.
struct Ends {
    ours: Messages,
    up: ChannelId,
    down: ChannelId,
    theirs: Messages,
}

impl Scene {
    async fn ends(&self) -> Ends {
        let (mut up_end, mut down_end) = (self.server.listener(PORT).unwrap(), self.below.listener(PORT).unwrap());
        let ours = self.client.connect_with(PORT).unanswered().messages().await.unwrap();
        let up = self.above.connect_with(PORT).unanswered().messages().await.unwrap().release();
        let down = down_end.accept().await.unwrap().messages().unwrap().release();
        let theirs = up_end.accept().await.unwrap().messages().unwrap();
        Ends { ours, up, down, theirs }
    }
}

#[tokio::test]
async fn what_the_client_has_not_consumed_waits_upstream_for_the_next_one() {
    watched(async {
        let scene = Scene::new();
        let Ends { mut ours, up, down, mut theirs } = scene.ends().await;
        for number in 0..10_u8 {
            theirs.send(&[number]).await.unwrap();
        }
        let relay = scene.relay(up, down, Began::now(&theirs_seen_from(&scene.above, up)));
        assert_eq!(relay.pending(), 10 * 16);
        let reading = async {
            for number in 0..4_u8 {
                assert_eq!(ours.recv().await.unwrap(), Some(vec![number]));
            }
            // All ten are here, of which four are consumed.
            while ours.info().unwrap().unread < 6 * 16 {
                tokio::task::yield_now().await;
            }
            ours
        };
        let ours = tokio::select! {
            ours = reading => ours,
            ended = relay.run() => panic!("{ended:?}"),
        };
        assert_eq!(relay.pending(), 0);
        drop(ours);
        assert_eq!(relay.run().await, Ok(Ended::Downstream));
        relay.settle().await.unwrap();
        relay.detach();
        let mut next = scene.above.adopt(up).unwrap().messages().unwrap();
        assert_eq!(next.recv().await.unwrap(), Some(vec![4]));
    })
    .await;
}

#[tokio::test]
async fn what_a_client_said_before_it_reset_is_dropped_upstream_too() {
    watched(async {
        let scene = Scene::new();
        let Ends { mut ours, up, down, mut theirs } = scene.ends().await;
        let relay = scene.relay(up, down, Began::now(&theirs_seen_from(&scene.above, up))).keep();
        ours.send(b"a request").await.unwrap();
        tokio::select! {
            // It is there, and nobody has read it.
            () = async { while theirs.info().unwrap().unread == 0 { tokio::task::yield_now().await } } => {}
            ended = relay.run() => panic!("{ended:?}"),
        }
        ours.abort();
        assert_eq!(relay.run().await, Ok(Ended::Reset));
        relay.abort();
        assert_eq!(theirs.recv().await, Err(throughline::Error::Reset));
    })
    .await;
}

fn theirs_seen_from(link: &Link, id: ChannelId) -> throughline::ChannelInfo {
    link.channels().into_iter().find(|info| info.id == id).unwrap()
}
