//! The keeper itself and real processes, whose shims are scripts: so they end at the moment that matters.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::*;
use crate::pool::client;

const LOOK: Duration = Duration::from_millis(2);
const WATCHDOG: Duration = Duration::from_mins(1);

/// There as long as the test goes on; every shim that runs has it locked.
const GOING_ON: &str = "going-on";

/// A pool whose shims run this script with their number, once they know that they wait: in a folder of their own.
struct Pool {
    name: String,
    folder: TempDir,
    going_on: File,
    keeper: tokio::task::JoinHandle<Result<(), ShimError>>,
}

impl Pool {
    async fn begin(name: &str, size: usize, script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let going_on = File::create_new(folder.path().join(GOING_ON)).unwrap();
        let begun = format!("cd {} && exec 9<{GOING_ON} && flock -sn 9 && read start", folder.path().display());
        let number = "n=1; until mkdir $n; do [ -d $n ] || exit 0; n=$((n+1)); done 2>/dev/null";
        let script = format!("{{ {begun}; }} || exit 0; {number}; {script}");
        let program = Program { path: "/bin/sh".into(), arguments: vec!["-c".to_owned(), script] };
        let name = format!("test-{name}-{}", std::process::id());
        let create = Create { pool: name.clone(), source: Source::Snapshot(folder.path().to_owned()), size };
        let keeper = Keeper::begin(create, program).await.unwrap();
        Self { name, folder, going_on, keeper: tokio::spawn(keeper.serve()) }
    }

    fn has(&self, file: &str) -> bool {
        self.folder.path().join(file).exists()
    }

    async fn waiting(&self, count: usize) {
        loop {
            let listed = client::list().await.unwrap().into_iter().find(|listed| listed.name == self.name).unwrap();
            if listed.standing.unwrap().waiting == count {
                return;
            }
            sleep(LOOK).await;
        }
    }

    /// Waits until it has ended after its removal.
    async fn end(self) {
        self.keeper.await.unwrap().unwrap();
        assert!(!super::super::folder::path(&self.name).unwrap().exists());
        // Shims that were just starting: what they write would be left when the folder goes.
        std::fs::remove_file(self.folder.path().join(GOING_ON)).unwrap();
        while self.going_on.try_lock().is_err() {
            sleep(LOOK).await;
        }
    }
}

fn nothing() -> Take {
    Take { name: None, given: Given::default(), keeping: crate::start::Keeping::default() }
}

async fn until(done: impl Fn() -> bool) {
    while !done() {
        sleep(LOOK).await;
    }
}

fn create(path: &Path) {
    std::fs::write(path, "").unwrap();
}

/// Waits for a line, as one who can be taken, and becomes a sandbox.
const TAKEN: &str =
    "echo '\"waiting\"'; read take || exit 0; echo \"{\\\"ready\\\":{\\\"name\\\":\\\"child-$n\\\"}}\"; touch taken-$n";

#[tokio::test]
async fn a_child_that_has_just_ended_is_no_callers_child() {
    let ended = "if [ $n = 1 ]; then echo '\"waiting\"'; read take; exit 0; fi";
    // The second one no longer reads what it is told.
    let deaf =
        "if [ $n = 2 ]; then exec <&-; echo '\"waiting\"'; while [ -e going-on ]; do sleep 0.01; done; exit 0; fi";
    let test = async {
        let pool = Pool::begin("ended", 2, &format!("{ended}; {deaf}; {TAKEN}")).await;
        pool.waiting(2).await;
        // One of those that are made instead; which of them waits first is nobody's matter.
        let taken = client::take(&pool.name, nothing()).await.unwrap();
        assert!(["child-3", "child-4"].contains(&taken.as_str()), "{taken}");
        client::remove(&pool.name).await.unwrap();
        pool.end().await;
    };
    Box::pin(timeout(WATCHDOG, test)).await.unwrap();
}

#[tokio::test]
async fn a_child_that_was_killed_in_the_middle_may_be_a_sandbox_and_its_caller_is_told() {
    let test = async {
        let killed = "if [ $n = 1 ]; then echo '\"waiting\"'; read take; kill -9 $$; fi";
        let pool = Pool::begin("killed", 1, &format!("{killed}; {TAKEN}")).await;
        let error = client::take(&pool.name, nothing()).await.unwrap_err().to_string();
        assert!(error.contains("look whether there is a sandbox"), "{error}");
        client::remove(&pool.name).await.unwrap();
        pool.end().await;
    };
    Box::pin(timeout(WATCHDOG, test)).await.unwrap();
}

#[tokio::test]
async fn why_children_cannot_be_made_is_told_for_as_long_as_they_cannot() {
    let test = async {
        let failed = "{\\\"failed\\\":{\\\"kind\\\":\\\"failed\\\",\\\"message\\\":\\\"there is no room\\\"}}";
        let fails = format!("if [ $n -gt 1 ] && [ ! -e go ]; then echo \"{failed}\"; exit 125; fi");
        let pool = Pool::begin("failing", 2, &format!("{fails}; {TAKEN}")).await;
        let standing = async || {
            let listed = client::list().await.unwrap().into_iter().find(|listed| listed.name == pool.name).unwrap();
            listed.standing.unwrap()
        };
        let failing = loop {
            let standing = standing().await;
            if standing.failures > 0 {
                break standing;
            }
            sleep(LOOK).await;
        };
        assert_eq!((failing.waiting, failing.last_error.as_deref()), (1, Some("there is no room")));
        create(&pool.folder.path().join("go"));
        pool.waiting(2).await;
        let standing = standing().await;
        assert_eq!((standing.failures, standing.last_error), (0, None));
        client::remove(&pool.name).await.unwrap();
        pool.end().await;
    };
    Box::pin(timeout(WATCHDOG, test)).await.unwrap();
}

#[tokio::test]
async fn a_caller_who_has_gone_gets_no_child_later() {
    let test = async {
        let wait = "while [ $n -gt 1 ] && [ -e going-on ] && [ ! -e go ]; do sleep 0.01; done";
        let pool = Pool::begin("gone", 1, &format!("{wait}; {TAKEN}")).await;
        assert_eq!(client::take(&pool.name, nothing()).await.unwrap(), "child-1");
        tokio::select! {
            taken = client::take(&pool.name, nothing()) => panic!("{taken:?} although none waits"),
            // A child is being made for it.
            () = until(|| pool.has("2")) => {}
        }
        // The keeper has seen the end of its connection before that of this one.
        pool.waiting(0).await;
        create(&pool.folder.path().join("go"));
        pool.waiting(1).await;
        assert!(pool.has("taken-1") && !pool.has("taken-2"), "somebody who has gone took a child");
        assert_eq!(client::take(&pool.name, nothing()).await.unwrap(), "child-2");
        client::remove(&pool.name).await.unwrap();
        pool.end().await;
    };
    Box::pin(timeout(WATCHDOG, test)).await.unwrap();
}

#[tokio::test]
async fn a_child_that_is_being_taken_when_its_pool_is_removed_becomes_its_callers() {
    let test = async {
        let taken = "echo '\"waiting\"'; read take || exit 0; touch asked; while [ -e going-on ] && [ ! -e go ]; do sleep 0.01; done";
        let ready = "echo \"{\\\"ready\\\":{\\\"name\\\":\\\"child\\\"}}\"";
        // No more than one child is made.
        let other = "while [ $n -gt 1 ]; do read more || exit 0; done";
        let pool = Pool::begin("removed", 1, &format!("{other}; {taken}; {ready}")).await;
        let name = pool.name.clone();
        let mut first = std::pin::pin!(client::take(&name, nothing()));
        tokio::select! {
            taken = &mut first => panic!("{taken:?}"),
            () = until(|| pool.has("asked")) => {}
        }
        let mut second = std::pin::pin!(client::take(&name, nothing()));
        tokio::select! {
            taken = &mut second => panic!("{taken:?}"),
            () = until(|| pool.has("2")) => {}
        }
        let mut remove = std::pin::pin!(client::remove(&name));
        tokio::select! {
            biased;
            removed = &mut remove => panic!("{removed:?} although a child is being taken"),
            taken = &mut first => panic!("{taken:?}"),
            error = &mut second => {
                let error = error.unwrap_err().to_string();
                assert!(error.contains("there is no pool"), "{error}");
            }
        }
        create(&pool.folder.path().join("go"));
        assert_eq!(first.await.unwrap(), "child");
        remove.await.unwrap();
        pool.end().await;
    };
    Box::pin(timeout(WATCHDOG, test)).await.unwrap();
}
