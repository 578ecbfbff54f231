//! Going back to a checkpoint: each channel's owner is told from where, until he has heard it.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use throughline::{
    AdoptError, ChannelId, Doorbell, Event, Link, Origin, Region, RolledBack, Sidecar, Timeline, Undone,
};
use throughline_ring::{Class, Geometry, Side};

use crate::common::folder;

const PORT: u32 = 7;
const WATCHDOG: Duration = Duration::from_secs(20);

/// Copies of a link at one moment.
fn checkpoint(host: &Link, to: &Path) {
    std::fs::create_dir(to).unwrap();
    host.freeze();
    let file = |name| File::create_new(to.join(name)).unwrap();
    host.copy_frozen(&file("region"), &file("sidecar")).unwrap();
    host.thaw();
}

/// Goes back to the copies in a folder.
fn roll_back(folder: &Path, dead: &Sidecar) -> (Link, Link) {
    let region = Region::open(&folder.join("region")).unwrap();
    let timeline = Timeline {
        epoch: Sidecar::new_epoch().unwrap(),
        parent: dead.timeline().epoch,
        index: 0,
        origin: Origin::RolledBack,
    };
    let sidecar = Sidecar::rebind(&folder.join("sidecar"), &region, timeline).unwrap();
    sidecar.went_back_from(dead, &region);
    attach(folder, region, sidecar)
}

fn attach(folder: &Path, region: Region, sidecar: Sidecar) -> (Link, Link) {
    let again = Region::open(&folder.join("region")).unwrap();
    let (here, there) = Doorbell::eventfd_pair().unwrap();
    let host = Link::host(region, sidecar).doorbell(here).attach().unwrap();
    (host, Link::guest(again).doorbell(there).listen(PORT).attach().unwrap())
}

fn created(folder: &Path) -> (Link, Link) {
    let class = |opener, count| Class { opener, count, ring_bytes: 4096 };
    let geometry = Geometry::new(vec![class(Side::Host, 4), class(Side::Guest, 1)]).unwrap();
    let region = Region::create(&folder.join("region"), &geometry).unwrap();
    let sidecar = Sidecar::create(&folder.join("sidecar"), &region).unwrap();
    attach(folder, region, sidecar)
}

/// What the owner of the one channel is to be told.
fn told(host: &Link) -> Option<RolledBack> {
    host.channels().into_iter().find(|channel| channel.label == "kept").unwrap().rolled_back
}

#[tokio::test]
async fn a_position_of_a_lost_timeline_is_answered_with_how_far_it_was_rolled_back() {
    tokio::time::timeout(WATCHDOG, async {
        let place = folder();
        let (host, guest) = created(place.path());
        let mut listener = guest.listener(PORT).unwrap();
        let kept = host.connect_with(PORT).label("kept").unanswered().messages().await.unwrap();
        let mut kept = kept;
        let mut there = listener.accept().await.unwrap().messages().unwrap();
        // One message each way is there at the checkpoint: read by the guest, unread by the host.
        kept.send(b"before").await.unwrap();
        assert_eq!(there.recv().await.unwrap().unwrap(), b"before");
        there.send(b"unread").await.unwrap();
        checkpoint(&host, &place.path().join("first"));
        checkpoint(&host, &place.path().join("second"));
        let lost = host.timeline();
        let then = kept.info().unwrap();
        // Later both get further, and another channel is opened.
        kept.send(b"undone").await.unwrap();
        assert_eq!(kept.recv().await.unwrap().unwrap(), b"unread");
        let since = host.connect_with(PORT).label("since").unanswered().messages().await.unwrap();
        let (kept_id, since_id) = (kept.id(), since.id());
        let far = kept.info().unwrap();
        let expected = RolledBack {
            lost,
            sent: Undone { from: far.sent, to: then.sent },
            received: Undone { from: far.received, to: then.received },
        };
        assert_eq!((expected.sent.bytes(), expected.received.bytes()), (16, 16));

        let (back, _guest) = roll_back(&place.path().join("first"), host.sidecar().unwrap());
        assert_eq!(back.event().await, Event::RolledBack { from: lost, to: back.timeline() });
        assert_eq!(told(&back), Some(expected));
        let rolled_back = |how_far| AdoptError::RolledBack { from: lost, to: back.timeline(), how_far };
        assert_eq!(back.adopt(kept_id).unwrap_err(), rolled_back(Some(expected)));
        assert_eq!(back.adopt(since_id).unwrap_err(), rolled_back(None));

        // Lost again before the owner took it: he knows positions of the first timeline only.
        let (again, _guest) = roll_back(&place.path().join("second"), back.sidecar().unwrap());
        assert_eq!(told(&again), Some(expected));
        let here = ChannelId { timeline: again.timeline(), ..kept_id };
        let mut adopted = again.adopt(here).unwrap().messages().unwrap();
        assert_eq!(told(&again), None, "the owner was told");
        assert_eq!(adopted.recv().await.unwrap().unwrap(), b"unread");
        let late = again.adopt(kept_id).unwrap_err();
        assert!(matches!(late, AdoptError::OtherTimeline { .. }), "two timelines ago, and told: {late}");
    })
    .await
    .expect("the test hangs");
}

#[tokio::test]
async fn a_position_of_the_parent_is_answered_with_forked() {
    let place = folder();
    let (host, _guest) = created(place.path());
    let channel = host.connect_with(PORT).unanswered().stream().await.unwrap();
    let child = place.path().join("child");
    checkpoint(&host, &child);
    let region = Region::open(&child.join("region")).unwrap();
    let (from, to) = (host.timeline(), Sidecar::new_epoch().unwrap());
    let timeline = Timeline { epoch: to, parent: from, index: 3, origin: Origin::Forked };
    let sidecar = Sidecar::rebind(&child.join("sidecar"), &region, timeline).unwrap();
    let (forked, _guest) = attach(&child, region, sidecar);
    assert_eq!(forked.adopt(channel.id()).unwrap_err(), AdoptError::Forked { from, to, index: 3 });
}
