//! Downloads from guests that lie: a link between two attachments of this process, whose guest says what it likes.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::Duration;

use tar::{EntryType, Header};
use throughline::{Channel, Doorbell, Geometry, Link, Listener, Messages, Region, Sidecar};
use throughline_sandbox::SandboxError;
use throughline_sandbox::files::{Options, Source, Target, connect, download, upload};
use throughline_wire::files::{Failure, FailureKind, Found, Frame, HEADER, Kind, Reply, Request, Summary};
use throughline_wire::port;

/// Far longer than anything takes: who comes here hangs.
const WATCHDOG: Duration = Duration::from_mins(1);

struct Pair {
    host: Link,
    /// The guest's.
    listener: tokio::sync::Mutex<Listener>,
}

impl Pair {
    fn new() -> Self {
        let region = Region::create_memfd("files-test", &Geometry::default()).unwrap();
        let (sidecar, _) = Sidecar::create_memfd("files-test-sidecar", &region).unwrap();
        let guest = Region::from_fd(region.as_fd().unwrap().try_clone_to_owned().unwrap()).unwrap();
        let (host_bell, guest_bell) = Doorbell::eventfd_pair().unwrap();
        let host = Link::host(region, sidecar).doorbell(host_bell).attach().unwrap();
        let guest = Link::guest(guest).doorbell(guest_bell).listen(port::FILES).attach().unwrap();
        let listener = tokio::sync::Mutex::new(guest.listener(port::FILES).unwrap());
        Self { host, listener }
    }

    /// The guest's end of the next channel, and what was asked on it.
    async fn asked(&self) -> (Messages, Request) {
        let channel = self.listener.lock().await.accept().await.unwrap();
        let Channel::Messages(mut channel) = channel else { panic!("a stream") };
        let message = channel.recv().await.unwrap().unwrap();
        let request = Frame::control(&message).unwrap();
        (channel, request)
    }

    /// Downloads `thing` to `to` from a guest that sends these messages.
    async fn download(&self, to: &Path, found: Kind, messages: Vec<Vec<u8>>) -> Result<Summary, SandboxError> {
        let guest = async {
            let (mut channel, _) = self.asked().await;
            say(&mut channel, &Reply::Found(Found { kind: found, mode: 0o755, size: 7, mtime: 0 })).await;
            for message in messages {
                // The host may have had enough.
                if channel.send(&message).await.is_err() {
                    break;
                }
            }
        };
        let target = Target::Path(to.to_owned());
        let host =
            async { download(connect(&self.host).await?, "/the/thing", target, Options::default(), |_| {}).await };
        let (result, ()) = tokio::time::timeout(WATCHDOG, async { tokio::join!(host, guest) }).await.expect("it hangs");
        result
    }
}

async fn say(channel: &mut Messages, reply: &Reply) {
    channel.send(&Frame::of(reply).unwrap()).await.unwrap();
}

/// One entry of an archive that says what it likes.
fn entry(kind: EntryType, path: &str, link: &str, mode: u32, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..path.len()].copy_from_slice(path.as_bytes());
    gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_mtime(1);
    header.set_size(data.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(path: &str) -> Vec<u8> {
    entry(EntryType::Regular, path, "", 0o644, b"planted")
}

fn dir(path: &str) -> Vec<u8> {
    entry(EntryType::Directory, path, "", 0o755, b"")
}

/// An archive as the guest would send it, with its end.
fn whole(entries: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut messages: Vec<_> = entries.iter().map(|entry| [&[0; HEADER], entry.as_slice()].concat()).collect();
    messages.push([0; HEADER + 1024].to_vec());
    messages.push(Frame::of(&Reply::Done(Summary { entries: 1, bytes: 7 })).unwrap());
    messages
}

fn kind(result: Result<Summary, SandboxError>) -> FailureKind {
    match result {
        Err(SandboxError::Files { failure, .. }) => failure.kind,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_guest_writes_nowhere_but_at_the_destination() {
    let pair = Pair::new();
    let folder = tempfile::tempdir().unwrap();
    let (dest, outside) = (folder.path().join("dest"), folder.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&dest).unwrap();
    fs::write(folder.path().join("secret"), "secret").unwrap();
    let symlink_to = |target: &str| entry(EntryType::Symlink, "thing/out", target, 0o777, b"");
    let absolute = outside.to_str().unwrap();
    let hard = |target: &str| entry(EntryType::Link, "thing/hard", target, 0o644, b"");
    let attacks = [
        vec![file("../secret")],
        vec![file("/tmp/secret")],
        vec![file("other")],
        vec![file("./../secret")],
        vec![file("thing/../../secret")],
        vec![dir("thing"), file("other")],
        vec![dir("thing"), symlink_to("../../outside"), file("thing/out/planted")],
        vec![dir("thing"), symlink_to(absolute), file("thing/out/planted")],
        vec![dir("thing"), symlink_to(absolute), dir("thing/out")],
        vec![entry(EntryType::Symlink, "thing", absolute, 0o777, b""), file("thing/planted")],
        vec![dir("thing"), hard("../secret")],
        vec![dir("thing"), hard("thing/../../secret")],
        vec![dir("thing"), symlink_to(absolute), hard("thing/out/x")],
    ];
    for attack in attacks {
        let failed = kind(pair.download(&dest, Kind::Folder, whole(&attack)).await);
        assert_eq!(failed, FailureKind::Refused, "{attack:?}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(fs::read(folder.path().join("secret")).unwrap(), b"secret");
        assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o7777, fs::metadata(&dest).unwrap().mode() & 0o7777);
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 3, "something is beside the destination");
        fs::remove_dir_all(&dest).unwrap();
        fs::create_dir(&dest).unwrap();
    }
    // A link in the destination that was there before leads nobody out either.
    symlink(&outside, dest.join("thing")).unwrap();
    let failed = kind(pair.download(&dest, Kind::Folder, whole(&[dir("thing"), file("thing/planted")])).await);
    assert_eq!(failed, FailureKind::Refused);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn what_a_guest_sends_gains_no_rights_and_no_devices() {
    let pair = Pair::new();
    let folder = tempfile::tempdir().unwrap();
    let dest = folder.path().join("program");
    let program = entry(EntryType::Regular, "thing", "", 0o6755, b"#!/bin/sh");
    pair.download(&dest, Kind::File, whole(&[program])).await.unwrap();
    let data = fs::metadata(&dest).unwrap();
    assert_eq!((data.mode() & 0o7777, data.uid()), (0o755, rustix::process::getuid().as_raw()));
    for special in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        let device = entry(special, "thing", "", 0o666, b"");
        let failed = kind(pair.download(&folder.path().join("device"), Kind::File, whole(&[device])).await);
        assert_eq!(failed, FailureKind::Special);
        assert!(!folder.path().join("device").exists());
    }
}

#[tokio::test]
async fn a_download_that_ends_early_or_in_rubbish_is_an_error() {
    let pair = Pair::new();
    let folder = tempfile::tempdir().unwrap();
    let dest = folder.path().join("dest");
    let frame = |bytes: &[u8]| [&[0; HEADER], bytes].concat();
    let said = |reply: &Reply| Frame::of(reply).unwrap();
    let failure = Failure { kind: FailureKind::Changed, path: "p".into(), message: "m".into() };
    let failed = Reply::Failed { failure, before: Summary { entries: 3, bytes: 4 } };
    let long = entry(EntryType::GNULongName, "././@LongLink", "", 0, &vec![b'n'; 100_000]);
    for (messages, expected) in [
        (vec![frame(&file("thing"))], FailureKind::Malformed),
        (vec![frame(&file("thing")[..515])], FailureKind::Malformed),
        (vec![], FailureKind::Malformed),
        (vec![frame(&[7; 600]), said(&Reply::Done(Summary::default()))], FailureKind::Malformed),
        (whole(&[long]), FailureKind::Malformed),
        (vec![vec![9, 9]], FailureKind::Protocol),
        (vec![vec![1, 0xff]], FailureKind::Protocol),
        (vec![said(&Reply::Found(Found { kind: Kind::File, mode: 0, size: 0, mtime: 0 }))], FailureKind::Protocol),
        (vec![frame(&file("thing")), said(&failed)], FailureKind::Changed),
    ] {
        assert_eq!(kind(pair.download(&dest, Kind::File, messages.clone()).await), expected, "{messages:?}");
    }
    let partly = pair.download(&dest, Kind::File, vec![frame(&file("thing")), said(&failed)]).await.unwrap_err();
    assert!(partly.to_string().contains("7 bytes, were copied before, and stay"), "{partly}");
}

#[tokio::test]
async fn an_upload_to_a_guest_that_stops_reading_says_what_the_guest_said() {
    let pair = Pair::new();
    let source = Source::Bytes { reader: Box::new(std::io::repeat(1)), mode: 0o600 };
    let guest = async {
        let (mut channel, request) = pair.asked().await;
        assert!(matches!(request, Request::Put(_)));
        for _ in 0..100 {
            channel.recv().await.unwrap().unwrap();
        }
        let failure = Failure { kind: FailureKind::NoSpace, path: "p".into(), message: "m".into() };
        say(&mut channel, &Reply::Failed { failure, before: Summary { entries: 0, bytes: 9 } }).await;
    };
    let host = async { upload(connect(&pair.host).await?, source, "/x", Options::default(), |_| {}).await };
    let both = async { tokio::join!(host, guest) };
    let (result, ()) = tokio::time::timeout(WATCHDOG, both).await.expect("it hangs");
    assert_eq!(kind(result), FailureKind::NoSpace);
}
