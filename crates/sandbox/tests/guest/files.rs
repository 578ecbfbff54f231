//! Files into a guest and out of it.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use throughline_sandbox::files::{Options, Source, Target};
use throughline_sandbox::{Sandbox, SandboxError};
use throughline_wire::files::{FailureKind, Kind};
use throughline_wire::port;

use crate::support::{folder, restored, run, text, until, watched};

/// Bytes without a short period.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.take(length.div_ceil(8)).flatten().collect();
    bytes.truncate(length);
    bytes
}

/// Modes, times, links, empty folders, odd names.
fn make_tree(tree: &Path) {
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("plain"), b"plain\n").unwrap();
    fs::write(tree.join("empty file"), b"").unwrap();
    fs::write(tree.join("sub/program"), pattern(300_000)).unwrap();
    fs::write(tree.join("sub").join("n".repeat(200)), b"long").unwrap();
    symlink("sub/program", tree.join("link")).unwrap();
    symlink("/no/where/".repeat(30), tree.join("dangling")).unwrap();
    fs::set_permissions(tree.join("sub/program"), PermissionsExt::from_mode(0o751)).unwrap();
    fs::set_permissions(tree.join("sub/empty"), PermissionsExt::from_mode(0o1770)).unwrap();
    for (at, path) in ["plain", "sub/program", "sub/empty", "sub", "."].iter().enumerate() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + at as u64);
        File::open(tree.join(path)).unwrap().set_modified(time).unwrap();
    }
}

/// Every path with kind, mode, time and content or target.
fn listing(tree: &Path) -> Vec<String> {
    fn walk(root: &Path, path: &Path, found: &mut Vec<String>) {
        let data = fs::symlink_metadata(path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let what = if data.is_symlink() {
            format!("-> {}", fs::read_link(path).unwrap().display())
        } else if data.is_dir() {
            format!("{:o} at {}", data.mode() & 0o777, data.mtime())
        } else {
            let bytes = fs::read(path).unwrap();
            format!("{:o} at {} {} {:?}", data.mode() & 0o777, data.mtime(), bytes.len(), &bytes[..bytes.len().min(64)])
        };
        found.push(format!("{name}: {what}"));
        if data.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                walk(root, &entry.unwrap().path(), found);
            }
        }
    }
    let mut found = Vec::new();
    walk(tree, tree, &mut found);
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_files_a_tree_goes_in_and_comes_out_as_it_was() {
    watched(async {
        let sandbox = restored().await;
        let files = sandbox.files();
        let place = folder();
        let tree = place.path().join("tree");
        make_tree(&tree);
        let summary = files.upload(&tree, "/root/new").await.unwrap();
        assert_eq!((summary.entries, summary.bytes), (9, 300_000 + 6 + 4));
        assert_eq!(text(&sandbox, "stat -c '%a %Y %U' /root/new/sub/program").await, "751 1000000001 root");
        assert_eq!(text(&sandbox, "stat -c '%a %Y %U' /root/new/sub/empty").await, "1770 1000000002 root");
        assert_eq!(text(&sandbox, "readlink /root/new/link").await, "sub/program");
        // Into a folder that exists; then only its contents.
        files.upload(&tree, "/tmp").await.unwrap();
        assert_eq!(text(&sandbox, "cat /tmp/tree/plain").await, "plain");
        files.upload(tree.join("."), "/run/contents").await.unwrap();
        assert_eq!(text(&sandbox, "cat /run/contents/plain").await, "plain");

        files.download("/root/new", place.path().join("back")).await.unwrap();
        assert_eq!(listing(&place.path().join("back")), listing(&tree));
        fs::create_dir(place.path().join("into")).unwrap();
        files.download("/root/new", place.path().join("into")).await.unwrap();
        assert_eq!(listing(&place.path().join("into/new")), listing(&tree));
        files.download("/root/new/.", place.path().join("into")).await.unwrap();
        assert_eq!(fs::read(place.path().join("into/plain")).unwrap(), b"plain\n");

        // A file, for somebody else; and what there is.
        let options = Options { owner: Some("user".into()), ..Options::default() };
        let source = Source::Path(tree.join("plain"));
        files.upload_with(source, "/tmp/theirs", options, |_| {}).await.unwrap();
        assert_eq!(text(&sandbox, "stat -c %u:%g /tmp/theirs").await, "1000:1000");
        assert_eq!(files.stat("/root/new/link", false).await.unwrap().kind, Kind::Link);
        let found = files.stat("/root/new/link", true).await.unwrap();
        assert_eq!((found.kind, found.size, found.mode, found.mtime), (Kind::File, 300_000, 0o751, 1_000_000_001));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_files_a_thousand_small_ones_and_a_large_one() {
    watched(async {
        let sandbox = restored().await;
        let files = sandbox.files();
        let place = folder();
        let many = place.path().join("many");
        fs::create_dir(&many).unwrap();
        for number in 0..1000 {
            fs::write(many.join(format!("{number}")), format!("file {number}\n")).unwrap();
        }
        let summary = files.upload(&many, "/tmp").await.unwrap();
        assert_eq!(summary.entries, 1001);
        assert_eq!(text(&sandbox, "ls /tmp/many | wc -l; cat /tmp/many/999").await, "1000\nfile 999");
        files.download("/tmp/many", place.path().join("back")).await.unwrap();
        assert_eq!(listing(&place.path().join("back")), listing(&many));

        let large = pattern(24 << 20);
        fs::write(place.path().join("large"), &large).unwrap();
        let mut seen = Vec::new();
        let source = Source::Path(place.path().join("large"));
        files.upload_with(source, "/tmp/large", Options::default(), |progress| seen.push(progress)).await.unwrap();
        assert!(seen.len() > 10 && seen.iter().all(|progress| progress.total == Some(24 << 20)));
        assert!(seen.is_sorted_by_key(|progress| progress.bytes));
        // The guest's own sum, and back through a pipe of ours.
        let (mut reader, writer) = std::io::pipe().unwrap();
        let collecting = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut bytes).map(|_| bytes)
        });
        let target = Target::Bytes(Box::new(writer));
        files.download_with("/tmp/large", target, Options::default(), |_| {}).await.unwrap();
        assert!(collecting.await.unwrap().unwrap() == large);
        let from_stdin = Source::Bytes { reader: Box::new(std::io::Cursor::new(large.clone())), mode: 0o600 };
        files.upload_with(from_stdin, "/tmp/again", Options::default(), |_| {}).await.unwrap();
        assert_eq!(text(&sandbox, "cmp /tmp/large /tmp/again && stat -c %a /tmp/again").await, "600");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_files_that_do_not_fit_or_exist_are_typed_errors() {
    watched(async {
        let sandbox = restored().await;
        let files = sandbox.files();
        let place = folder();
        let big = place.path().join("big");
        fs::write(&big, vec![1; 8 << 20]).unwrap();
        text(&sandbox, "mkdir /run/small && mount -t tmpfs -o size=4m none /run/small").await;
        let failed = files.upload(&big, "/run/small/").await.unwrap_err();
        assert!(failed.to_string().contains("bytes, were copied before, and stay"), "{failed}");
        assert_eq!(kind(failed), FailureKind::NoSpace);
        text(&sandbox, "rm /run/small/big && mount -o remount,ro /run/small").await;
        assert_eq!(kind(files.upload(&big, "/run/small/").await.unwrap_err()), FailureKind::ReadOnly);
        assert_eq!(kind(files.upload(&big, "/no/such/folder").await.unwrap_err()), FailureKind::NotFound);
        assert_eq!(kind(files.upload(&big, "../../x").await.unwrap_err()), FailureKind::Refused);
        assert_eq!(kind(files.upload("/no/such/file", "/tmp").await.unwrap_err()), FailureKind::NotFound);
        assert_eq!(kind(files.download("/no/such", &big).await.unwrap_err()), FailureKind::NotFound);
        assert_eq!(kind(files.download("/dev/null", &big).await.unwrap_err()), FailureKind::Special);
        // The channels are closed, and the guest goes on.
        until(async || sandbox.link().channels().is_empty()).await;
        assert_eq!(run(&sandbox, "echo on").await.stdout, b"on\n");
    })
    .await;
}

fn kind(error: SandboxError) -> FailureKind {
    match error {
        SandboxError::Files { failure, .. } => failure.kind,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_files_that_are_being_copied_go_on_in_a_restored_guest() {
    watched(async {
        let sandbox = restored().await;
        let data = pattern(6 << 20);
        let place = folder();
        // The host's side as somebody who takes over would have it: a channel, and what was sent.
        let (bundle, sent) = {
            let mut channel = throughline_sandbox::files::connect(sandbox.link()).await.unwrap();
            let sent = parts::put(&mut channel, "/tmp/copied", &data[..4 << 20]).await;
            channel.release();
            let (bundle, _) = sandbox.snapshot_and_stop(&place.path().join("bundle")).await.unwrap();
            (bundle, sent)
        };
        let sandbox = Sandbox::restore(bundle).start().await.unwrap();
        let channels = sandbox.link().channels();
        let channel = channels.iter().find(|channel| channel.port == port::FILES).unwrap();
        let mut channel = sandbox.link().adopt(channel.id).unwrap().messages().unwrap();
        let summary = parts::rest(&mut channel, &data[sent..]).await;
        assert_eq!(summary.bytes, data.len() as u64);
        let mut back = place.path().join("back");
        sandbox.files().download("/tmp/copied", &back).await.unwrap();
        assert!(fs::read(&mut back).unwrap() == data);
    })
    .await;
}

/// A host's side, piece by piece.
mod parts {
    use serde_bytes::ByteBuf;
    use throughline::Messages;
    use throughline_wire::files::{Content, Frame, HEADER, Put, Reply, Request, Summary};

    const PIECE: usize = 100_000;

    pub async fn put(channel: &mut Messages, dest: &str, data: &[u8]) -> usize {
        let content = Content::Bytes { name: None, mode: 0o644, mtime: None };
        let put = Request::Put(Put { dest: ByteBuf::from(dest), content, owner: None });
        channel.send(&Frame::of(&put).unwrap()).await.unwrap();
        pieces(channel, data).await;
        data.len()
    }

    async fn pieces(channel: &mut Messages, data: &[u8]) {
        for piece in data.chunks(PIECE) {
            channel.send(&[&[0; HEADER], piece].concat()).await.unwrap();
        }
    }

    pub async fn rest(channel: &mut Messages, data: &[u8]) -> Summary {
        pieces(channel, data).await;
        channel.send(&Frame::of(&Request::End).unwrap()).await.unwrap();
        match Frame::control(&channel.recv().await.unwrap().unwrap()).unwrap() {
            Reply::Done(summary) => summary,
            other => panic!("{other:?}"),
        }
    }
}
