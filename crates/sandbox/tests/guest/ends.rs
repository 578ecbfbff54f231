//! Every end of a sandbox is told at once to whoever waits, and leaves nothing behind.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use throughline_sandbox::engine::{EngineError, ExitReason, Qemu};
use throughline_sandbox::{Sandbox, SandboxError};
use throughline_wire::exec::Exit;
use throughline_wire::power::{Reply, Request};
use throughline_wire::{decode, encode, port};

use crate::support::{gone, image, name, template, text, watched};

async fn restored(name: &str) -> Sandbox {
    Sandbox::restore(template().await).name(name).start().await.unwrap()
}

/// How whoever waits is told: for output, for an event, and for room for input.
async fn told(sandbox: &Sandbox, end: impl Future) -> [SandboxError; 4] {
    let mut reading = sandbox.command("sleep").arg("1000").spawn().await.unwrap();
    let mut writing = sandbox.command("sleep").arg("1000").stdin().spawn().await.unwrap();
    let big = vec![0; 1 << 20];
    let everybody = Box::pin(async {
        tokio::join!(
            async { sandbox.command("sleep").arg("1000").output().await.unwrap_err() },
            async {
                loop {
                    if let Err(error) = reading.events.next().await {
                        break error;
                    }
                }
            },
            async { writing.input.write_all(&big).await.unwrap_err() },
            async { sandbox.alive(std::future::pending::<()>()).await.unwrap_err() },
        )
    });
    let (errors, _) = tokio::join!(everybody, end);
    errors.into()
}

fn check(errors: &[SandboxError], expected: ExitReason, words: &str) {
    for error in errors {
        let SandboxError::Ended(exit) = error else { panic!("{error}") };
        assert_eq!(exit.reason, expected, "{error}");
        assert!(exit.console.contains(words) && error.to_string().contains(words), "{error}");
    }
}

/// As `output`, where the end of the command is that of the machine.
async fn last_words(sandbox: &Sandbox, script: &str) {
    let ended = Box::pin(sandbox.command("sh").args(["-c", script]).output()).await;
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_panic_of_the_guest_is_told_to_whoever_waits() {
    watched(async {
        let name = name("panic");
        let sandbox = restored(&name).await;
        let errors = told(&sandbox, last_words(&sandbox, "echo c > /proc/sysrq-trigger")).await;
        check(&errors, ExitReason::Panicked, "Kernel panic");
        drop(sandbox);
        gone(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_power_off_is_told_to_whoever_waits() {
    watched(async {
        let name = name("off");
        let sandbox = restored(&name).await;
        let off = last_words(&sandbox, "echo good night > /dev/console; poweroff -f");
        check(&told(&sandbox, off).await, ExitReason::PoweredOff, "good night");
        drop(sandbox);
        gone(&name).await;

        // In good order, by the agent: processes end first.
        let sandbox = restored(&name).await;
        let script = "trap 'echo bye; exit 4' TERM; echo up; while :; do :; done";
        let child = sandbox.command("sh").args(["-c", script]).spawn().await.unwrap();
        let mut reader = crate::support::Reader::new(child);
        reader.read(3).await;
        let mut power = sandbox.link().connect_messages(port::POWER).await.unwrap();
        power.send(&encode(&Request::Off { grace_ms: 5000 }).unwrap()).await.unwrap();
        reader.finish().await;
        assert_eq!((reader.bytes.as_slice(), reader.exit.map(Exit::shell_code)), (&b"up\nbye\n"[..], Some(4)));
        assert_eq!(decode::<Reply>(&power.recv().await.unwrap().unwrap()).unwrap(), Reply::PoweringOff);
        assert_eq!(sandbox.exited().await.reason, ExitReason::PoweredOff);
        drop((power, reader, sandbox));
        gone(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_killed_monitor_is_told_to_whoever_waits() {
    watched(async {
        let name = name("killed");
        let sandbox = restored(&name).await;
        text(&sandbox, "echo last words > /dev/console").await;
        let pid = Pid::from_raw(sandbox.machine().pid).unwrap();
        let errors = told(&sandbox, async { kill_process(pid, Signal::KILL).unwrap() }).await;
        check(&errors, ExitReason::Signal(9), "last words");
        let place = crate::support::folder();
        let error = sandbox.snapshot(&place.path().join("bundle")).await.unwrap_err();
        println!("{error}");
        assert!(error.to_string().contains("ended"), "{error}");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "nothing is left");
        drop(sandbox);
        gone(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_agent_of_another_version_is_refused() {
    watched(async {
        let name = name("version");
        let builder = Sandbox::builder(image().await).name(&name).kernel_argument("throughline.test=other-protocol");
        let error = builder.create().await.unwrap_err();
        let (found, expected) = (throughline_wire::PROTOCOL + 1, throughline_wire::PROTOCOL);
        assert!(
            matches!(error, SandboxError::Agent { found: f, expected: e } if (f, e) == (found, expected)),
            "{error}"
        );
        assert!(error.to_string().contains(&format!("speaks protocol {found}")), "{error}");
        gone(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_missing_monitor_is_named_and_nothing_is_left() {
    watched(async {
        let name = name("missing");
        let engine = || Arc::new(Qemu::new().binary("qemu-system-nowhere"));
        let created = Sandbox::builder(image().await).name(&name).engine(engine()).create().await;
        let restored = Sandbox::restore(template().await).name(&name).engine(engine()).start().await;
        for error in [created.unwrap_err(), restored.unwrap_err()] {
            assert!(matches!(error, SandboxError::Engine(EngineError::Missing { .. })), "{error}");
            assert!(error.to_string().contains("apt-get install qemu-system-x86"), "{error}");
        }
        gone(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_that_is_not_ready_in_time_is_ended_and_says_why() {
    watched(async {
        let name = name("late");
        let builder = Sandbox::builder(image().await).name(&name).deadline(Duration::from_millis(200));
        let error = builder.create().await.unwrap_err();
        assert!(matches!(error, SandboxError::Unanswered(..)), "{error}");
        assert!(error.to_string().contains("200ms: to start its agent"), "{error}");
        gone(&name).await;
    })
    .await;
}
