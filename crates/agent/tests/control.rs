//! Identity, quiet and power: what the agent does when the host asks for it.

#[expect(dead_code, reason = "the other tests use the rest")]
mod common;

use std::time::Duration;

use common::rig::{exists, identity, rig, until};
use common::{WATCHDOG, argv, shell};
use throughline::{Identity, NotTaken};
use throughline_agent::control::Switches;
use throughline_wire::exec::{Event, Exit};
use throughline_wire::{PROTOCOL, decode, encode, info, port, power, secrets};

/// Long enough for something that must not happen to happen, if it can; a slow machine only makes a test weaker.
const WRONG: Duration = Duration::from_millis(50);
/// More bytes than a ring and a message hold; with a pipe they hold more.
const FILLING: usize = 90_000;

#[test]
fn nothing_is_served_before_the_first_identity() {
    rig("first-identity", Switches::default(), async |rig| {
        let trace = rig.file("trace");
        rig.hook(&format!("test ! -e {0} && echo $THROUGHLINE_EPOCH >{0}.hook", trace.display()));
        let mut command = rig.start(shell(&format!("echo ran >{}", trace.display()))).await;
        assert!(tokio::time::timeout(WRONG, command.recv()).await.is_err(), "served without an identity");
        assert!(!trace.exists());
        rig.identify(1).await;
        while command.recv().await.unwrap().is_some() {}
        assert!(trace.exists());
        let epoch = format!("{:032x}\n", identity(1).epoch);
        assert_eq!(std::fs::read_to_string(rig.file("trace.hook")).unwrap(), epoch);
        assert_eq!(std::fs::read_to_string(rig.file("run/epoch")).unwrap(), epoch);
        assert_eq!(rig.host.agent_version(), PROTOCOL);
    });
}

#[test]
fn a_quiesced_guest_is_frozen_and_serves_nothing_until_it_is_lifted() {
    rig("quiesce", Switches::default(), async |rig| {
        rig.identify(1).await;
        let (count, late) = (rig.file("count"), rig.file("late"));
        let busy = rig.start(shell(&format!("while :; do echo more; echo x >>{}; done", count.display()))).await;
        exists(&count).await;
        rig.host.quiesce(WATCHDOG).await.unwrap();
        assert!(rig.is_frozen());
        let before = std::fs::read(&count).unwrap().len();
        let mut command = rig.start(shell(&format!("echo >{}", late.display()))).await;
        assert!(tokio::time::timeout(WRONG, command.recv()).await.is_err(), "served while quiesced");
        assert_eq!(std::fs::read(&count).unwrap().len(), before, "the user's processes run on");
        assert!(!late.exists());
        rig.host.lift_quiesce();
        while command.recv().await.unwrap().is_some() {}
        assert!(late.exists() && !rig.is_frozen());
        until(|| std::fs::read(&count).unwrap().len() > before).await;
        drop(busy);
    });
}

#[test]
fn a_rehearsal_is_acknowledged_and_nothing_of_the_users_runs_in_it() {
    rig("rehearsal", Switches::default(), async |rig| {
        rig.identify(1).await;
        let (count, trace) = (rig.file("count"), rig.file("trace"));
        rig.hook(&format!("echo $THROUGHLINE_EPOCH >>{}", trace.display()));
        let busy = rig.start(shell(&format!("while :; do echo x >>{}; done", count.display()))).await;
        exists(&count).await;
        rig.host.quiesce(WATCHDOG).await.unwrap();
        let before = std::fs::read(&count).unwrap().len();
        let mut command = rig.start(shell(&format!("echo x >>{}", trace.display()))).await;
        for seq in [2, 3] {
            rig.host.give_identity(&Identity { flags: Identity::REHEARSE, ..identity(seq) });
            rig.host.identity_taken(WATCHDOG).await.unwrap();
            assert!(tokio::time::timeout(WRONG, command.recv()).await.is_err(), "served after a rehearsal");
            assert!(rig.is_frozen() && !trace.exists());
            assert_eq!(std::fs::read(&count).unwrap().len(), before, "the user's processes ran");
        }
        let groups = std::fs::read_dir(common::cgroup_mount()).unwrap();
        let left = groups.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().ends_with("-rehearsal"));
        assert_eq!(left.count(), 0, "its group was left");
        rig.host.lift_quiesce();
        rig.identify(4).await;
        while command.recv().await.unwrap().is_some() {}
        assert_eq!(std::fs::read_to_string(&trace).unwrap(), format!("{:032x}\nx\n", identity(4).epoch));
        until(|| std::fs::read(&count).unwrap().len() > before).await;
        // One that nobody holds waits for the identity all the same. What follows the first is done before the second.
        for seq in [5, 6] {
            rig.host.give_identity(&Identity { flags: Identity::REHEARSE, ..identity(seq) });
            rig.host.identity_taken(WATCHDOG).await.unwrap();
            assert!(rig.is_frozen(), "a rehearsal let the user's processes run");
        }
        rig.identify(7).await;
        until(|| !rig.is_frozen()).await;
        drop(busy);
    });
}

#[test]
fn after_a_restore_the_identity_comes_before_everything_else() {
    rig("restore", Switches::default(), async |rig| {
        rig.identify(1).await;
        let (late, trace) = (rig.file("late"), rig.file("trace"));
        // The hook sees whether anything of the user's ran before it.
        rig.hook(&format!("test -e {} || echo $THROUGHLINE_EPOCH >>{}", late.display(), trace.display()));
        rig.host.quiesce(WATCHDOG).await.unwrap();
        let mut command = rig.start(shell(&format!("echo >{}", late.display()))).await;
        // Lifted first: the order of the host's words must not matter.
        rig.host.lift_quiesce();
        rig.identify(2).await;
        while command.recv().await.unwrap().is_some() {}
        assert_eq!(std::fs::read_to_string(&trace).unwrap(), format!("{:032x}\n", identity(2).epoch));
    });
}

#[test]
fn an_identity_that_comes_while_the_guest_is_held_does_not_wake_it() {
    rig("held", Switches::default(), async |rig| {
        rig.identify(1).await;
        rig.host.quiesce(WATCHDOG).await.unwrap();
        rig.identify(2).await;
        assert!(rig.is_frozen());
        let mut command = rig.start(argv(&["true"])).await;
        assert!(tokio::time::timeout(WRONG, command.recv()).await.is_err(), "served while held");
        rig.host.lift_quiesce();
        assert!(command.recv().await.unwrap().is_some());
    });
}

#[test]
fn an_identity_that_changes_while_its_hook_runs_is_repaired_again_before_anything_runs() {
    // Between the two repairs there is no time: what would run for a moment is seen once in a while.
    const ROUNDS: u64 = 25;
    rig("changes", Switches::default(), async |rig| {
        rig.identify(1).await;
        let (count, trace, go) = (rig.file("count"), rig.file("trace"), rig.file("go"));
        let busy = rig.start(shell(&format!("while :; do echo x >>{}; done", count.display()))).await;
        exists(&count).await;
        let wait = format!("while [ ! -e {} ]; do sleep 0.01; done", go.display());
        let (count, file) = (count.display(), trace.display());
        let say = |what: &str| format!("echo {what} $THROUGHLINE_EPOCH $(wc -c <{count}) >>{file}");
        rig.hook(&format!("{}; {wait}; {}", say("begun"), say("ended")));
        for seq in (2..).step_by(2).take(ROUNDS as usize) {
            rig.host.give_identity(&identity(seq));
            exists(&trace).await;
            let mut command = rig.start(shell(&format!("echo ran >>{}", trace.display()))).await;
            rig.host.give_identity(&identity(seq + 1));
            std::fs::write(&go, "").unwrap();
            rig.host.identity_taken(WATCHDOG).await.unwrap();
            while command.recv().await.unwrap().is_some() {}
            let said = std::fs::read_to_string(&trace).unwrap();
            let bytes = said.split_whitespace().nth(2).unwrap();
            let lines = [seq, seq + 1].map(|seq| {
                let epoch = identity(seq).epoch;
                format!("begun {epoch:032x} {bytes}\nended {epoch:032x} {bytes}\n")
            });
            assert_eq!(said, lines.concat() + "ran\n");
            let epoch = std::fs::read_to_string(rig.file("run/epoch")).unwrap();
            assert_eq!(epoch, format!("{:032x}\n", identity(seq + 1).epoch));
            for file in [&trace, &go] {
                std::fs::remove_file(file).unwrap();
            }
        }
        drop(busy);
    });
}

#[test]
fn a_running_guest_is_stopped_for_a_new_identity() {
    rig("running", Switches::default(), async |rig| {
        rig.identify(1).await;
        let (count, trace) = (rig.file("count"), rig.file("trace"));
        let busy = rig.start(shell(&format!("while :; do echo x >>{}; done", count.display()))).await;
        exists(&count).await;
        let size = format!("wc -c <{}", count.display());
        rig.hook(&format!("a=$({size}); sleep 0.02; b=$({size}); echo $((b-a)) >{}", trace.display()));
        rig.identify(2).await;
        assert_eq!(std::fs::read_to_string(&trace).unwrap(), "0\n", "the user's processes ran during the repair");
        until(|| !rig.is_frozen()).await;
        drop(busy);
    });
}

#[test]
fn a_guest_whose_repair_failed_stays_closed_until_the_next_identity() {
    rig("failed-repair", Switches::default(), async |rig| {
        rig.identify(1).await;
        rig.hook("exit 1");
        rig.host.give_identity(&identity(2));
        assert_eq!(rig.host.identity_taken(WATCHDOG).await, Err(NotTaken::Refused));
        let mut command = rig.start(argv(&["true"])).await;
        assert!(tokio::time::timeout(WRONG, command.recv()).await.is_err(), "served with a stale identity");
        assert!(rig.is_frozen());
        // It follows the rest, and stays closed.
        rig.host.quiesce(WATCHDOG).await.unwrap();
        rig.host.lift_quiesce();
        assert!(tokio::time::timeout(WRONG, command.recv()).await.is_err(), "served with a stale identity");
        assert!(rig.is_frozen());
        rig.hook("exit 0");
        rig.identify(3).await;
        assert!(command.recv().await.unwrap().is_some());
    });
}

#[test]
fn nothing_runs_before_its_secrets_and_none_is_there_while_the_guest_is_quiet() {
    rig("secrets", Switches::default(), async |rig| {
        let file = rig.file("secrets/key");
        let show = shell(&format!("cat {}", file.display()));
        let follow = |seq| Identity { flags: Identity::SECRETS_FOLLOW, ..identity(seq) };
        rig.host.give_identity(&follow(1));
        rig.host.identity_taken(WATCHDOG).await.unwrap();
        let mut early = rig.start(show.clone()).await;
        assert!(tokio::time::timeout(WRONG, early.recv()).await.is_err(), "served without its secrets");
        assert_eq!(rig.hand_over(b"one").await, secrets::Reply::InPlace);
        assert_eq!(rig.finish(early).await.0, b"one");

        rig.host.quiesce(WATCHDOG).await.unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), [0; 3]);
        let mut early = rig.start(show.clone()).await;
        rig.host.lift_quiesce();
        assert!(tokio::time::timeout(WRONG, early.recv()).await.is_err(), "served without its secrets");
        // Quiet once more while they are owed.
        rig.host.quiesce(WATCHDOG).await.unwrap();
        rig.host.lift_quiesce();
        assert!(tokio::time::timeout(WRONG, early.recv()).await.is_err() && rig.is_frozen());
        assert_eq!(rig.hand_over(b"one").await, secrets::Reply::InPlace);
        assert_eq!(rig.finish(early).await.0, b"one");
        // Whoever does not know whether they are there hands them over.
        assert_eq!(rig.hand_over(b"one").await, secrets::Reply::InPlace);
        assert_eq!(rig.run(show).await.0, b"one");

        rig.identify(2).await;
        assert!(!file.exists(), "another identity has none");
        assert_eq!(rig.run(argv(&["true"])).await.1, Some(Exit::Code(0)));
    });
}

/// A program that copies a file by `sendfile` puts its pages into the pipe, not its bytes.
#[test]
fn what_a_command_has_printed_of_a_secret_is_read_when_the_secret_is_in_place_again() {
    rig("printed", Switches::default(), async |rig| {
        let (file, done) = (rig.file("secrets/key"), rig.file("done"));
        rig.host.give_identity(&Identity { flags: Identity::SECRETS_FOLLOW, ..identity(1) });
        rig.host.identity_taken(WATCHDOG).await.unwrap();
        assert_eq!(rig.hand_over(b"value").await, secrets::Reply::InPlace);
        // More than the ring holds: the secret waits in the pipe.
        let script = format!("head -c {FILLING} /dev/zero; busybox cat {}; echo >{}", file.display(), done.display());
        let mut command = rig.start(shell(&script)).await;
        exists(&done).await;
        rig.host.quiesce(WATCHDOG).await.unwrap();
        rig.host.lift_quiesce();
        let mut bytes = 0;
        while let Ok(message) = tokio::time::timeout(WRONG, command.recv()).await {
            if let Event::Stdout { data, .. } = decode(&message.unwrap().unwrap()).unwrap() {
                bytes += data.len();
            }
        }
        assert!((1..FILLING).contains(&bytes), "{bytes} bytes were read");
        assert_eq!(rig.hand_over(b"value").await, secrets::Reply::InPlace);
        let mut rest = Vec::new();
        while let Some(message) = command.recv().await.unwrap() {
            if let Event::Stdout { data, .. } = decode(&message).unwrap() {
                rest.extend_from_slice(data);
            }
        }
        assert_eq!(bytes + rest.len(), FILLING + 5);
        assert!(rest.ends_with(b"value"), "{:?}", &rest[rest.len() - 5..]);
    });
}

#[test]
fn the_test_switches_do_what_they_say() {
    let lazy = Switches { skip_repair: true, no_quiesce: true };
    rig("switches", lazy, async |rig| {
        rig.hook("exit 1");
        rig.identify(1).await;
        assert!(!rig.file("run/epoch").exists());
        rig.host.quiesce(WRONG).await.unwrap_err();
        let (output, exit) = rig.run(argv(&["echo", "still here"])).await;
        assert_eq!((&output[..], exit), (&b"still here\n"[..], Some(Exit::Code(0))));
        rig.identify(2).await;
    });
}

#[test]
fn info_tells_the_identity() {
    rig("info", Switches::default(), async |rig| {
        rig.identify(1).await;
        std::fs::write(rig.file("etc/machine-id"), "abc\n").unwrap();
        let mut channel = rig.host.connect_messages(port::INFO).await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..2 {
            channel.send(&encode(&info::Request).unwrap()).await.unwrap();
            seen.push(decode::<info::Info>(&channel.recv().await.unwrap().unwrap()).unwrap());
        }
        assert_eq!((seen[0].identity_seq, seen[0].epoch), (1, identity(1).epoch));
        assert_eq!((seen[0].machine_id.as_str(), seen[0].protocol), ("abc", PROTOCOL));
        assert_ne!(seen[0].random, seen[1].random);
        assert!(seen[0].monotonic_ns <= seen[1].monotonic_ns && !seen[0].hostname.is_empty());
    });
}

#[test]
fn power_off_ends_all_commands_first() {
    rig("power", Switches::default(), async |rig| {
        rig.identify(1).await;
        let (ready, polite) = (rig.file("ready"), rig.file("polite"));
        let obeys = format!(
            "trap 'echo >{}; exit 0' TERM; echo >{}; while :; do sleep 0.01; done",
            polite.display(),
            ready.display()
        );
        let obeying = rig.start(shell(&obeys)).await;
        let stubborn = rig.start(shell("trap '' TERM; while :; do sleep 1000; done")).await;
        exists(&ready).await;
        let mut channel = rig.host.connect_messages(port::POWER).await.unwrap();
        channel.send(&encode(&power::Request::Off { grace_ms: 300 }).unwrap()).await.unwrap();
        let reply = channel.recv().await.unwrap().unwrap();
        assert_eq!(decode::<power::Reply>(&reply).unwrap(), power::Reply::PoweringOff);
        assert!(polite.exists());
        until(|| rig.agent.is_finished()).await;
        drop((obeying, stubborn));
    });
}

#[test]
fn a_guest_that_cannot_be_frozen_takes_on_no_identity() {
    rig("unfrozen", Switches::default(), async |rig| {
        rig.identify(1).await;
        rig.remove_group();
        // Not the first, and not the next because the first was tried.
        for number in [2, 3] {
            rig.host.give_identity(&identity(number));
            assert_eq!(rig.host.identity_taken(WATCHDOG).await, Err(NotTaken::Refused));
        }
    });
}
