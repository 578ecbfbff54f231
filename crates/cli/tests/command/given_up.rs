//! Clients that give up, clients that ask for much, and shims that die while they take over: whoever asks is answered.

use std::time::Duration;

use throughline_shim::client::Remote;
use tokio::time::timeout;

use crate::dying::{Steps, kill_shim};
use crate::support::{Name, printed, program, text, throughline, throughline_with, until, watched};

/// How often is given up, and how often waiting is: more calls than a shim carries out for one client.
const TIMES: u64 = 100;
const WAITS: u64 = 1100;

fn created(test: &str) -> Name {
    let name = Name::new(test);
    printed(["run", "--memory", "128M", "--name", &name.0]);
    name
}

#[tokio::test]
async fn vm_a_client_that_gives_up_waiting_again_and_again_is_still_answered() {
    let name = Name::new("given-up-waits");
    printed(["run", "--memory", "128M", "--rm", "--name", &name.0]);
    watched(async {
        let remote = Remote::connect(&name.0, program()).await.unwrap();
        for _ in 0..WAITS {
            timeout(Duration::from_millis(1), remote.wait()).await.unwrap_err();
        }
        assert_eq!(remote.record().await.unwrap().name, name.0);
        // One that nobody looks after is in nobody's way.
        let mut idle = std::pin::pin!(remote.wait());
        timeout(Duration::from_millis(1), &mut idle).await.unwrap_err();
        // The one that does not give up is told, and so are others, though the sandbox vanishes with its machine.
        let waiting = [remote.clone(), remote.clone()].map(|remote| tokio::spawn(async move { remote.wait().await }));
        let exit = remote.kill().await.unwrap();
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap().unwrap().reason, exit.reason);
        }
        assert_eq!(idle.await.unwrap().reason, exit.reason);
        assert_eq!(remote.wait().await.unwrap().reason, exit.reason);
    })
    .await;
}

#[tokio::test]
async fn vm_commands_that_are_given_up_at_any_moment_leave_no_channel_while_their_client_lives() {
    let name = created("given-up-commands");
    watched(async {
        let remote = Remote::connect(&name.0, program()).await.unwrap();
        let mut given_up = 0;
        for round in 0..TIMES {
            let command = remote.command("sleep").args(["1000"]);
            let moment = Duration::from_micros(round % 50 * 100);
            given_up += u64::from(timeout(moment, command.spawn()).await.is_err());
        }
        assert!(given_up > TIMES / 4, "{given_up} of {TIMES} were given up");
        while !remote.channels().await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        drop(remote);
    })
    .await;
}

/// What a command is called needs no line to the shim that has room for all of it.
#[test]
fn vm_exec_of_a_command_line_of_megabytes_runs_or_says_why_not() {
    let name = created("long-lines");
    let long = "x".repeat(100_000);
    let script = "echo ${#1} ${#2} ${#3}";
    let ran = throughline(["exec", &name.0, "--", "sh", "-c", script, "sh", &long, &long, &long]);
    assert_eq!(text(&ran.stdout), "100000 100000 100000\n", "{}", text(&ran.stderr));
    let mut megabytes = vec!["exec", &name.0, "--", "true"];
    megabytes.extend(std::iter::repeat_n(long.as_str(), 15));
    let refused = throughline_with(&megabytes, b"");
    assert_eq!(refused.status.code(), Some(125));
    let why = text(&refused.stderr);
    assert!(why.contains("is too long") && why.contains("send less"), "{why}");
}

#[test]
fn vm_a_shim_that_is_killed_while_it_takes_over_is_followed_by_another() {
    let (name, steps) = (created("killed-successor"), Steps::new());
    kill_shim(&name);
    steps.die("shim listen 1");
    let exec = steps.start(&["exec", &name.0, "--", "echo", "there"]);
    until(|| steps.noted().iter().filter(|step| *step == "shim listen 1").count() > 1);
    steps.live();
    let ran = exec.wait_with_output().unwrap();
    assert_eq!(text(&ran.stdout), "there\n", "{}", text(&ran.stderr));
}
