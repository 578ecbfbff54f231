//! Forks of forks: what is reset, what goes on, who a guest is in the end, and that no wake-up is lost by any of it.

use std::fs;
use std::time::Duration;

use throughline::{ChannelId, Event, Hostname, Identity, OnFork, Stream};
use throughline_sandbox::bundle::{Bundle, BundleError};
use throughline_sandbox::{Sandbox, SandboxError, Zygote};
use throughline_wire::{decode, encode, info, port};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::checkpoints::die;
use crate::fork::{goes_on, holds, printer};
use crate::support::{folder, places, restored, text, until, watched};

const GENERATIONS: u8 = 4;

/// Bytes there and back.
async fn echoes(stream: &mut Stream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, bytes);
}

fn labels(sandbox: &Sandbox) -> Vec<String> {
    sandbox.link().channels().into_iter().map(|channel| channel.label).collect()
}

/// A channel that is to be reset in children, in the slot of the one before.
async fn private(sandbox: &Sandbox, before: Option<ChannelId>) -> Stream {
    loop {
        let connect = sandbox.link().connect_with(port::ECHO).label("private").on_fork(OnFork::Reset);
        let stream = connect.stream().await.unwrap();
        match before {
            Some(before) if stream.id().slot != before.slot => {
                // The guest has yet to see the reset.
                stream.abort();
                tokio::task::yield_now().await;
            }
            Some(before) => {
                assert!(stream.id().generation > before.generation, "{:?} after {before:?}", stream.id());
                return stream;
            }
            None => return stream,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_fork_of_forks_resets_each_use_of_a_slot_and_the_others_go_on() {
    watched(async {
        let mut sandbox = restored().await;
        let mut kept = sandbox.link().connect_with(port::ECHO).label("kept").stream().await.unwrap();
        let mut before = None;
        for generation in 0..GENERATIONS {
            let secret = [b"generation ".as_slice(), &[b'0' + generation; 40]].concat();
            let mut private = private(&sandbox, before).await;
            // In use before, and on its way at the fork: so is the other.
            echoes(&mut private, b"in use").await;
            for stream in [&mut private, &mut kept] {
                stream.write_all(&secret).await.unwrap();
                until(async || stream.info().unwrap().unread == secret.len() as u64).await;
            }
            let zygote = sandbox.zygote().await.unwrap();
            let child = zygote.spawn().start().await.unwrap();
            assert_eq!(labels(&child), ["kept"], "generation {generation}");
            let id = ChannelId { timeline: child.link().timeline(), ..kept.id() };
            let mut inherited = child.link().adopt(id).unwrap().stream().unwrap();
            for stream in [&mut inherited, &mut kept, &mut private] {
                let mut back = vec![0; secret.len()];
                stream.read_exact(&mut back).await.unwrap();
                assert_eq!(back, secret);
                echoes(stream, b"and on").await;
            }
            assert!(!holds(&child, &secret), "consumed, or reset");
            before = Some(private.id());
            drop((private, zygote));
            (sandbox, kept) = (child, inherited);
        }
    })
    .await;
}

/// A snapshot that ended its sandbox is a zygote: it stays, whoever spawns from it, and is looked at for damage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_zygote_at_rest_has_children_for_as_long_as_it_is_there_and_whole() {
    watched(async {
        let (sandbox, folder) = (restored().await, folder());
        let mut reader = printer(&sandbox).await;
        reader.read(10_000).await;
        let (bundle, _) = sandbox.snapshot_and_stop(&folder.path().join("bundle")).await.unwrap();
        let (place, from) = (bundle.folder().to_path_buf(), reader.bytes.len());
        drop(reader);
        for _ in 0..2 {
            let zygote = Zygote::at_rest(Bundle::open(&place).unwrap());
            assert!(zygote.report().is_none());
            let children = zygote.spawn_many(2).await;
            drop(zygote);
            for (number, child) in (1..).zip(children) {
                let child = child.unwrap();
                let Event::Forked { index, .. } = child.link().event().await else { panic!("no child") };
                assert_eq!(index, number);
                goes_on(&child, from).await;
                child.kill().await.unwrap();
            }
        }
        let (file, zygote) = (place.join("state"), Zygote::at_rest(Bundle::open(&place).unwrap()));
        let mut state = fs::read(&file).unwrap();
        let middle = state.len() / 2;
        state[middle] ^= 1;
        fs::write(&file, state).unwrap();
        let error = zygote.spawn().start().await.unwrap_err();
        assert!(matches!(error, SandboxError::Bundle(BundleError::Damaged { .. })), "{error}");
    })
    .await;
}

/// How often the backstop had to find something, here and in the guest.
async fn finds(sandbox: &Sandbox) -> [u64; 2] {
    let mut channel = sandbox.link().connect_messages(port::INFO).await.unwrap();
    channel.send(&encode(&info::Request).unwrap()).await.unwrap();
    let answer = channel.recv().await.unwrap().unwrap();
    let guest = decode::<info::Info>(&answer).unwrap();
    let (_, guest) = guest.counters.into_iter().find(|(name, _)| name == "backstop_finds").unwrap();
    [sandbox.link().counters().backstop_finds, guest]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_no_wake_up_is_lost_by_a_fork_a_pool_or_going_back() {
    watched(async {
        let source = restored().await;
        let mut reader = printer(&source).await;
        reader.read(10_000).await;
        let (zygote, from) = (source.zygote().await.unwrap(), reader.bytes.len());
        let child = zygote.spawn().start().await.unwrap();
        let pool = zygote.pool(1);
        let taken = pool.take(None).await.unwrap();
        drop(pool);
        // The source has stood still in the middle of it, twice.
        reader.read(20_000).await;
        source.checkpoint().await.unwrap();
        let kept = reader.bytes.len();
        reader.read(10_000).await;
        assert_eq!(finds(&source).await, [0, 0], "the source");
        die(&source).await;
        let back = source.roll_back().await.unwrap();
        drop((reader, source));
        for (how, sandbox, from) in [("fork", child, from), ("pool", taken, from), ("going back", back, kept)] {
            goes_on(&sandbox, from).await;
            assert_eq!(finds(&sandbox).await, [0, 0], "{how}");
            sandbox.kill().await.unwrap();
        }
    })
    .await;
}

/// Says in the guest and on its console when it begins and ends; for the first child it takes its time.
const SLOW: &str = r"cat >/etc/throughline/restore.d/50-slow <<'END'
#!/bin/sh
say() { echo $1 $THROUGHLINE_EPOCH $(hostname) $(cat /etc/machine-id) | tee -a /run/trace >/dev/console; }
say begun; [ $THROUGHLINE_INDEX = 1 ] && sleep 2; say ended
END
chmod 755 /etc/throughline/restore.d/50-slow";

fn identity(seq: u64, index: u64) -> Identity {
    let hostname = Some(Hostname::new(&format!("number-{index}")).unwrap());
    let (epoch, entropy) = (u128::from(index) << 64, [index as u8; 64]);
    Identity { seq, epoch, parent: 1, index, clock_ns: 0, flags: Identity::RENEW_NAMES, entropy, hostname }
}

/// As where a child is forked again before its guest has taken on who it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_identity_that_changes_while_a_hook_runs_is_the_one_that_is_taken_on_in_the_end() {
    watched(async {
        let sandbox = restored().await;
        text(&sandbox, SLOW).await;
        let (link, console) = (sandbox.link(), places(sandbox.name())[1].join("console.log"));
        let said = |what: &str| fs::read_to_string(&console).unwrap_or_default().contains(what);
        let seq = link.identity_seq();
        let [first, second] = [identity(seq + 1, 1), identity(seq + 2, 2)];
        let trace = |what: &str, of: &Identity| format!("{what} {:032x} number-{}", of.epoch, of.index);
        link.give_identity(&first);
        until(async || said(&trace("begun", &first))).await;
        link.give_identity(&second);
        assert!(!said(&trace("ended", &first)), "it is not in the middle of its hook");
        let asked = "cat /run/trace; cat /run/throughline/epoch; hostname; cat /etc/hostname /etc/machine-id";
        // Whoever asks is served when it has taken on the second one.
        let (answer, taken) = tokio::join!(text(&sandbox, asked), link.identity_taken(Duration::from_mins(1)));
        taken.unwrap();
        let lines: Vec<_> = answer.lines().collect();
        let machine_id = lines[7];
        assert_ne!(lines[0].rsplit(' ').next(), Some(machine_id));
        let expected = [("begun", &first), ("ended", &first), ("begun", &second), ("ended", &second)];
        for (line, (what, of)) in lines.iter().zip(expected) {
            assert!(line.starts_with(&trace(what, of)), "{answer}");
        }
        assert!(lines[3].ends_with(machine_id), "{answer}");
        assert_eq!(lines[4..7], [&format!("{:032x}", second.epoch), "number-2", "number-2"], "{answer}");

        // And a child of it is none of both.
        let child = sandbox.zygote().await.unwrap().spawn().hostname("number-3").start().await.unwrap();
        let answer = text(&child, asked).await;
        let lines: Vec<_> = answer.lines().collect();
        let epoch = format!("{:032x}", child.link().timeline());
        assert!(lines.len() == 10 && lines[5].starts_with(&format!("ended {epoch} number-3")), "{answer}");
        assert_eq!(lines[6..9], [&epoch, "number-3", "number-3"], "{answer}");
        assert!(lines[9] != machine_id && lines[5].ends_with(lines[9]), "{answer}");
    })
    .await;
}
