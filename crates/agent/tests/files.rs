//! Files over a real link: what is refused, and what each error is called.

#[expect(dead_code, reason = "the other tests use the rest")]
mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::rig::{Rig, rig, until};
use serde_bytes::ByteBuf;
use tar::{EntryType, Header};
use throughline::Messages;
use throughline_agent::control::Switches;
use throughline_wire::files::{Content, FailureKind, Form, Frame, Get, HEADER, Put, Reply, Request};
use throughline_wire::port;

/// One entry of an archive that says what it likes.
fn entry(kind: EntryType, path: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[..path.len()].copy_from_slice(path.as_bytes());
    gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_mtime(1);
    header.set_size(data.len() as u64);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(path: &str) -> Vec<u8> {
    entry(EntryType::Regular, path, "", b"planted")
}

fn link(path: &str, target: &str) -> Vec<u8> {
    entry(EntryType::Symlink, path, target, b"")
}

async fn open(rig: &Rig) -> Messages {
    rig.host.connect_with(port::FILES).ring_bytes(1 << 20).messages().await.unwrap()
}

async fn say(channel: &mut Messages, request: &Request) {
    channel.send(&Frame::of(request).unwrap()).await.unwrap();
}

fn put(dest: &str, content: Content) -> Request {
    Request::Put(Put { dest: ByteBuf::from(dest), content, owner: None })
}

async fn reply(channel: &mut Messages) -> Reply {
    let message = channel.recv().await.unwrap().expect("an answer");
    Frame::control(&message).unwrap()
}

/// Sends all of it, whether the guest still wants it or not, and takes the answer.
async fn upload(rig: &Rig, request: &Request, data: &[u8]) -> Reply {
    let mut channel = open(rig).await;
    say(&mut channel, request).await;
    for piece in data.chunks(3000) {
        if channel.send(&[&[0; HEADER], piece].concat()).await.is_err() {
            return reply(&mut channel).await;
        }
    }
    // The guest may have closed.
    let _ = channel.send(&Frame::of(&Request::End).unwrap()).await;
    reply(&mut channel).await
}

async fn ask(rig: &Rig, request: &Request) -> Reply {
    let mut channel = open(rig).await;
    say(&mut channel, request).await;
    loop {
        let message = channel.recv().await.unwrap().expect("an answer");
        if let Some(Frame::Control(_)) = Frame::parse(&message) {
            match Frame::control(&message).unwrap() {
                Reply::Found(_) if !matches!(request, Request::Stat { .. }) => {}
                reply => return reply,
            }
        }
    }
}

fn kind(reply: &Reply) -> FailureKind {
    match reply {
        Reply::Failed { failure, .. } => failure.kind,
        other => panic!("{other:?}"),
    }
}

/// The user's root, in which a folder `dest` is.
fn root(rig: &Rig) -> PathBuf {
    let root = rig.file("root");
    fs::create_dir_all(root.join("dest")).unwrap();
    root
}

fn tree(name: &str, is_folder: bool) -> Content {
    Content::Tree { name: ByteBuf::from(name), is_folder }
}

#[test]
fn each_way_out_of_the_destination_is_refused() {
    rig("files-attacks", Switches::default(), async |rig| {
        rig.identify(1).await;
        let root = root(&rig);
        fs::write(root.join("secret"), "secret").unwrap();
        fs::create_dir(root.join("outside")).unwrap();
        symlink("../outside", root.join("dest/there")).unwrap();
        let long = entry(EntryType::GNULongName, "././@LongLink", "", &vec![b'n'; 100_000]);
        let attacks = [
            (file("/secret"), FailureKind::Refused),
            (file("../secret"), FailureKind::Refused),
            (file("a/../../secret"), FailureKind::Refused),
            ([link("out", "../outside"), file("out/planted")].concat(), FailureKind::Refused),
            ([link("out", "/outside"), file("out/planted")].concat(), FailureKind::Refused),
            ([link("self", "."), file("self/planted")].concat(), FailureKind::Refused),
            (file("there/planted"), FailureKind::Refused),
            (entry(EntryType::Directory, "there/", "", b""), FailureKind::Refused),
            (entry(EntryType::Link, "hard", "../secret", b""), FailureKind::Refused),
            (entry(EntryType::Link, "hard", "/secret", b""), FailureKind::Refused),
            (entry(EntryType::Link, "hard", "there/x", b""), FailureKind::Refused),
            (entry(EntryType::Fifo, "pipe", "", b""), FailureKind::Special),
            (entry(EntryType::Char, "device", "", b""), FailureKind::Special),
            (long, FailureKind::Malformed),
            (vec![7; 5000], FailureKind::Malformed),
            (file("half")[..515].to_vec(), FailureKind::Malformed),
        ];
        for (archive, expected) in attacks {
            let reply = upload(&rig, &put("/dest", Content::Contents), &archive).await;
            assert_eq!(kind(&reply), expected, "{reply:?}");
            assert_eq!(fs::read_dir(root.join("outside")).unwrap().count(), 0, "{reply:?}");
            assert_eq!(fs::read(root.join("secret")).unwrap(), b"secret", "{reply:?}");
        }
        // What was announced is all that comes.
        let archive = file("other");
        let other = upload(&rig, &put("/dest", tree("one", false)), &archive).await;
        assert_eq!(kind(&other), FailureKind::Refused);
        let archive = file("../one");
        assert_eq!(kind(&upload(&rig, &put("/dest", tree("../one", false)), &archive).await), FailureKind::Refused);
        assert!(!root.join("dest/other").exists() && !root.join("one").exists());
        // A link in a file's place is replaced, not followed.
        symlink("../secret", root.join("dest/planted")).unwrap();
        let done = upload(&rig, &put("/dest", Content::Contents), &file("planted")).await;
        assert!(matches!(done, Reply::Done(summary) if (summary.entries, summary.bytes) == (1, 7)), "{done:?}");
        assert_eq!(fs::read(root.join("secret")).unwrap(), b"secret");
        assert_eq!(fs::read(root.join("dest/planted")).unwrap(), b"planted");
        // The root is where an absolute link ends.
        symlink("/", root.join("dest/top")).unwrap();
        let found = ask(&rig, &Request::Stat { path: ByteBuf::from("/dest/top/secret"), follow: true }).await;
        assert!(matches!(found, Reply::Found(found) if found.size == 6), "{found:?}");
    });
}

#[test]
fn each_error_has_its_kind() {
    rig("files-errors", Switches::default(), async |rig| {
        rig.identify(1).await;
        let root = root(&rig);
        fs::write(root.join("file"), "file").unwrap();
        let bytes = || Content::Bytes { name: None, mode: 0o600, mtime: Some(5) };
        let data = file("one");
        for (dest, content, expected) in [
            ("/no/such/one", tree("one", false), FailureKind::NotFound),
            ("/dest/missing/", tree("one", false), FailureKind::NotFound),
            ("/file", tree("one", true), FailureKind::NotAFolder),
            ("/file/", tree("one", false), FailureKind::NotAFolder),
            ("/file/below", tree("one", false), FailureKind::NotAFolder),
            ("/file", Content::Contents, FailureKind::NotAFolder),
            ("/dest", bytes(), FailureKind::IsAFolder),
            ("", bytes(), FailureKind::Refused),
            ("..", bytes(), FailureKind::Refused),
            ("/dest/../../file", bytes(), FailureKind::Refused),
        ] {
            let reply = upload(&rig, &put(dest, content), &data).await;
            assert_eq!(kind(&reply), expected, "{dest}: {reply:?}");
        }
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("dest/pipe"), rustix::fs::Mode::RUSR).unwrap();
        fs::create_dir(root.join("dest/folder")).unwrap();
        assert_eq!(kind(&upload(&rig, &put("/dest/pipe", bytes()), b"data").await), FailureKind::Special);
        let folder = upload(&rig, &put("/dest", tree("folder", false)), &file("folder")).await;
        assert_eq!(kind(&folder), FailureKind::IsAFolder);
        let owned = Put { dest: ByteBuf::from("/x"), content: bytes(), owner: Some("stranger".into()) };
        assert_eq!(kind(&upload(&rig, &Request::Put(owned), b"").await), FailureKind::NoSuchUser);
        let get = |source: &str, form| Request::Get(Get { source: ByteBuf::from(source), form, follow: false });
        for (request, expected) in [
            (get("/missing", Form::Bytes), FailureKind::NotFound),
            (get("/dest", Form::Bytes), FailureKind::IsAFolder),
            (get("/file", Form::Contents), FailureKind::NotAFolder),
            (get("/dest/pipe", Form::Bytes), FailureKind::Special),
            (get("/dest", Form::Tree(ByteBuf::from("dest"))), FailureKind::Special),
            (get("/../file", Form::Bytes), FailureKind::Refused),
            (Request::End, FailureKind::Protocol),
            (Request::Stat { path: ByteBuf::from("/missing"), follow: false }, FailureKind::NotFound),
        ] {
            let reply = ask(&rig, &request).await;
            assert_eq!(kind(&reply), expected, "{request:?}: {reply:?}");
        }
        // A second request instead of the end.
        let mut channel = open(&rig).await;
        say(&mut channel, &put("/dest/twice", bytes())).await;
        say(&mut channel, &put("/dest/twice", bytes())).await;
        assert_eq!(kind(&reply(&mut channel).await), FailureKind::Protocol);
        drop(channel);
        until(|| rig.host.channels().is_empty()).await;
    });
}

#[test]
fn a_transfer_that_has_failed_takes_no_more_and_says_why() {
    rig("files-failed", Switches::default(), async |rig| {
        rig.identify(1).await;
        root(&rig);
        let request = put("/no/such/folder/x", Content::Bytes { name: None, mode: 0o600, mtime: None });
        // More than rings and queues hold.
        let reply = upload(&rig, &request, &vec![0; 20 << 20]).await;
        assert_eq!(kind(&reply), FailureKind::NotFound);
        // Nobody needs to send anything to learn of it.
        let mut silent = open(&rig).await;
        say(&mut silent, &request).await;
        let reply = self::reply(&mut silent).await;
        assert_eq!(kind(&reply), FailureKind::NotFound);
    });
}

#[test]
fn a_part_is_never_taken_for_the_whole() {
    rig("files-cut", Switches::default(), async |rig| {
        rig.identify(1).await;
        let root = root(&rig);
        let mut channel = open(&rig).await;
        say(&mut channel, &put("/dest/part", Content::Bytes { name: None, mode: 0o600, mtime: None })).await;
        channel.send(&[0; HEADER + 5]).await.unwrap();
        channel.shutdown().await.unwrap();
        let Reply::Failed { failure, before } = reply(&mut channel).await else { panic!("a part was taken") };
        assert_eq!((failure.kind, before.bytes, before.entries), (FailureKind::Malformed, 5, 0));
        assert_eq!(fs::read(root.join("dest/part")).unwrap(), [0; 5]);
        // Its end is the end of the thread, too.
        let mut left = open(&rig).await;
        say(&mut left, &put("/dest/left", Content::Contents)).await;
        left.abort();
        until(|| !threads().contains(&"files".to_owned())).await;
    });
}

fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let name = |task: &Path| fs::read_to_string(task.join("comm")).unwrap_or_default().trim().to_owned();
    tasks.map(|task| name(&task.unwrap().path())).collect()
}
