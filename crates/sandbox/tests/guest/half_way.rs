//! Take-overs and ways back that fail half-way, or that others come upon: what is there stays whole, for the next one.

use std::fs;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use throughline_sandbox::engine::ExitReason;
use throughline_sandbox::{Known, Sandbox, SandboxError, State, Wanted};

use crate::checkpoints::die;
use crate::host_death::runs;
use crate::support::{children, folder, gone, let_go, places, restored, text, unheld, until, watched};

/// How often one goes back to a checkpoint.
const TRIES: u32 = 5;
/// Orders that are given by who does not wait for the answer.
const ORDERS: u32 = 40;

fn paper(name: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(places(name)[1].join("sandbox.json")).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_snapshot_that_waits_while_its_timeline_is_lost_fails_and_writes_nothing() {
    watched(async {
        let sandbox = restored().await;
        sandbox.checkpoint().await.unwrap();
        die(&sandbox).await;
        let (name, folder) = (sandbox.name().to_owned(), folder());
        let place = folder.path().join("bundle");
        let late = async {
            // From then on it has to wait for its turn.
            until(async || paper(&name)["checkpoints"]["going_back"] == true).await;
            sandbox.snapshot(&place).await
        };
        let (back, refused) = tokio::join!(sandbox.roll_back(), late);
        let (back, refused) = (back.unwrap(), refused.unwrap_err());
        assert!(matches!(refused, SandboxError::Dead(_)), "{refused}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(paper(&name), serde_json::to_value(back.record()).unwrap());
        assert!(sandbox.conclude(sandbox.exited().await).await.is_err() && sandbox.pause().await.is_err());
        assert_eq!(paper(&name), serde_json::to_value(back.record()).unwrap());
        drop(sandbox);
        assert_eq!(text(&back, "echo on").await, "on");
        back.kill().await.unwrap();
        gone(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_take_over_that_fails_half_way_leaves_everything_to_the_next_one() {
    watched(async {
        let sandbox = restored().await;
        let epoch = text(&sandbox, "cat /run/throughline/epoch").await;
        let machine = sandbox.machine().clone();
        let name = let_go(sandbox).await;
        let [memory, runtime] = places(&name);
        // It finds a snapshot that is nobody's, and cannot write down that it is gone.
        let mut record = paper(&name);
        record["snapshot"] = memory.join(".throughline-partial-0").to_str().into();
        fs::write(runtime.join("sandbox.json"), record.to_string()).unwrap();
        let obstacle = runtime.join("sandbox.json.new");
        fs::create_dir(&obstacle).unwrap();
        for _ in 0..2 {
            let error = Sandbox::take_over(&name).await.unwrap_err().to_string();
            assert!(error.contains("write sandbox.json"), "{error}");
            unheld(&name).await;
            assert!(machine.is_running() && memory.join("current/region").exists());
            assert_eq!(paper(&name), record);
        }
        fs::remove_dir(&obstacle).unwrap();
        let sandbox = Sandbox::take_over(&name).await.unwrap();
        assert_eq!(sandbox.machine(), &machine);
        assert_eq!(text(&sandbox, "cat /run/throughline/epoch").await, epoch);
        sandbox.kill().await.unwrap();
        until(async || !machine.is_running()).await;
        gone(&name).await;
    })
    .await;
}

/// The machine answers who is there, if whoever gave the order has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_take_over_takes_no_answer_for_its_own_that_was_for_who_had_the_sandbox_before() {
    watched(async {
        let mut sandbox = restored().await;
        let name = sandbox.name().to_owned();
        for _ in 0..ORDERS {
            let mut order = Box::pin(sandbox.pause());
            poll_fn(|context| Poll::Ready(order.as_mut().poll(context).is_ready())).await;
            // It is on its way.
            tokio::task::yield_now().await;
            drop(order);
            let_go(sandbox).await;
            sandbox = Sandbox::take_over(&name).await.unwrap();
            sandbox.resume().await.unwrap();
            assert_eq!(text(&sandbox, "echo on").await, "on");
        }
        sandbox.kill().await.unwrap();
        gone(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_checkpoint_that_cannot_be_gone_back_to_is_given_up_after_five_tries_and_not_before() {
    watched(async {
        let (mut sandbox, folder) = (restored().await, folder());
        let away = folder.path().join("state");
        sandbox.checkpoint().await.unwrap();
        let damaged = async |sandbox: &Sandbox| {
            let last = sandbox.record().checkpoints.last.unwrap().folder;
            let state = places(sandbox.name())[0].join(last).join("state");
            die(sandbox).await;
            fs::rename(&state, &away).unwrap();
            state
        };
        let state = damaged(&sandbox).await;
        let name = let_go(sandbox).await;
        let fails = async |tries: u32| {
            let error = Sandbox::take_over(&name).await.unwrap_err();
            assert!(
                matches!(&error, SandboxError::NotBack(why) if matches!(**why, SandboxError::Bundle(_))),
                "{error}"
            );
            unheld(&name).await;
            assert_eq!(Known::find(&name).unwrap().state, State::Lost);
            assert_eq!(paper(&name)["checkpoints"]["tries"], tries);
        };
        for tries in 1..TRIES {
            fails(tries).await;
        }
        fs::rename(&away, &state).unwrap();
        sandbox = Sandbox::take_over(&name).await.unwrap();
        assert_eq!(text(&sandbox, "echo back").await, "back");
        assert_eq!((sandbox.record().checkpoints.times, sandbox.record().may_go_back()), (1, false));

        // It may again from the next checkpoint on, tried by one who saw the end or by another. It comes back once.
        sandbox.checkpoint().await.unwrap();
        die(&sandbox).await;
        let back = sandbox.roll_back().await.unwrap();
        drop(std::mem::replace(&mut sandbox, back));
        damaged(&sandbox).await;
        for tries in 2..TRIES {
            sandbox.roll_back().await.unwrap_err();
            assert_eq!(paper(&name)["checkpoints"]["tries"], tries);
        }
        let_go(sandbox).await;
        fails(TRIES).await;
        let error = Sandbox::take_over(&name).await.unwrap_err();
        for told in ["4 tries to go back to the last checkpoint came to nothing", "state is damaged: it is missing"] {
            assert!(error.to_string().contains(told), "{error}");
        }
        let SandboxError::Ended(exit) = error else { panic!("{error}") };
        assert_eq!((exit.reason, exit.vain_tries), (ExitReason::Signal(9), TRIES - 1));
        assert_eq!(Known::find(&name).unwrap().state, State::Exited);
        let left = fs::read_dir(&places(&name)[0]).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(left, ["runtime"], "its memory is given back");
        Known::remove(&name).unwrap();
        gone(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_checkpoint_of_a_sandbox_that_was_paused_since_comes_back_paused() {
    watched(async {
        let mut sandbox = restored().await;
        sandbox.checkpoint().await.unwrap();
        let name = sandbox.name().to_owned();
        sandbox.pause().await.unwrap();
        for seen in [true, false] {
            die(&sandbox).await;
            if seen {
                let back = sandbox.roll_back().await.unwrap();
                drop(std::mem::replace(&mut sandbox, back));
            } else {
                let_go(sandbox).await;
                sandbox = Sandbox::take_over(&name).await.unwrap();
            }
            assert_eq!(sandbox.record().wanted, Wanted::Paused);
            let_go(sandbox).await;
            assert!(!runs(&name).await);
            sandbox = Sandbox::take_over(&name).await.unwrap();
        }
        assert_eq!(sandbox.record().checkpoints.times, 2);
        sandbox.resume().await.unwrap();
        assert_eq!(text(&sandbox, "echo on").await, "on");
        sandbox.kill().await.unwrap();
        gone(&name).await;
    })
    .await;
}

/// One more look at going back: whether it has come to its end.
type GoingBack<'a> = Pin<Box<dyn Future<Output = Result<Sandbox, SandboxError>> + 'a>>;

/// Goes back until something is on paper, and no further; where its answers come at once, to its end.
async fn until_on_paper(back: &mut GoingBack<'_>, name: &str, wanted: impl Fn(&serde_json::Value) -> bool) {
    poll_fn(|context| match back.as_mut().poll(context) {
        // It is let go, as one that was broken off.
        Poll::Ready(back) => {
            back.unwrap().detach();
            Poll::Ready(())
        }
        Poll::Pending if wanted(&paper(name)["checkpoints"]) => Poll::Ready(()),
        Poll::Pending => Poll::Pending,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_going_back_that_fails_for_want_of_something_else_costs_no_try_and_leaves_no_machine() {
    watched(async {
        let sandbox = restored().await;
        sandbox.checkpoint().await.unwrap();
        die(&sandbox).await;
        let name = sandbox.name().to_owned();
        let [memory, runtime] = places(&name);
        let secrets = memory.join("secrets");
        fs::create_dir(&secrets).unwrap();
        fs::write(secrets.join("values"), "not these").unwrap();
        for _ in 0..=TRIES {
            let error = sandbox.roll_back().await.unwrap_err().to_string();
            assert!(error.contains("read the secrets"), "{error}");
            let known = &paper(&name)["checkpoints"];
            assert_eq!((&known["tries"], &known["vain_tries"]), (&0.into(), &0.into()));
            assert!(error.contains(known["vain_error"].as_str().unwrap()), "{known}");
            assert_eq!(children(), [""; 0]);
        }
        fs::remove_dir_all(&secrets).unwrap();

        // The guest has run, but that cannot be put on paper.
        let mut back: GoingBack<'_> = Box::pin(sandbox.roll_back());
        until_on_paper(&mut back, &name, |known| known["tries"] == 1).await;
        let obstacle = runtime.join("sandbox.json.new");
        fs::create_dir(&obstacle).unwrap();
        let error = back.await.unwrap_err().to_string();
        assert!(error.contains("write sandbox.json"), "{error}");
        assert_eq!(children(), [""; 0]);
        fs::remove_dir(&obstacle).unwrap();

        let back = sandbox.roll_back().await.unwrap();
        let known = back.record().checkpoints;
        assert_eq!((known.tries, known.vain_tries, known.vain_error), (2, 0, None));
        assert_eq!(text(&back, "echo back").await, "back");
        drop(sandbox);
        back.kill().await.unwrap();
        gone(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_going_back_that_is_broken_off_loses_nothing_and_no_machine_outlives_the_sandbox() {
    watched(async {
        let sandbox = restored().await;
        sandbox.checkpoint().await.unwrap();
        sandbox.pause().await.unwrap();
        die(&sandbox).await;
        let name = sandbox.name().to_owned();
        // It is back, and has yet to be paused.
        let mut back: GoingBack<'_> = Box::pin(sandbox.roll_back());
        until_on_paper(&mut back, &name, |known| known["times"] == 1).await;
        drop(back);
        drop(sandbox);
        unheld(&name).await;
        let sandbox = Sandbox::take_over(&name).await.unwrap();
        let record = sandbox.record();
        assert_eq!((record.wanted, record.checkpoints.times), (Wanted::Paused, 1));
        assert!(record.checkpoints.last.is_some_and(|last| places(&name)[0].join(last.folder).is_dir()));
        sandbox.resume().await.unwrap();
        assert_eq!(text(&sandbox, "echo on").await, "on");

        // It is not, and nobody goes on with it.
        die(&sandbox).await;
        let mut back: GoingBack<'_> = Box::pin(sandbox.roll_back());
        until_on_paper(&mut back, &name, |known| known["tries"] == 2).await;
        drop(back);
        assert_eq!(children().len(), 1, "its machine");
        sandbox.conclude(sandbox.exited().await).await.unwrap();
        until(async || children().is_empty()).await;
        drop(sandbox);
        Known::remove(&name).unwrap();
        gone(&name).await;
    })
    .await;
}
