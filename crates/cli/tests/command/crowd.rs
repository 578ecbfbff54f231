//! A hundred clients of one sandbox, whose shim dies.

use std::collections::HashSet;

use throughline_sandbox::{Child, ChildEvent};
use throughline_shim::client::{Event, Remote};
use tokio::task::JoinSet;

use crate::pools::children;
use crate::support::{Name, printed, program, until, watched};

const CLIENTS: usize = 100;

/// What is given to a `cat` comes back.
async fn echoes(child: &mut Child, line: &str) {
    child.input.write_all(line.as_bytes()).await.unwrap();
    let mut back = Vec::new();
    while back.len() < line.len() {
        match child.events.next().await.unwrap().unwrap() {
            ChildEvent::Stdout { data, .. } => back.extend(data),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(back, line.as_bytes());
}

/// The processes that this one started, and that run.
fn running() -> Vec<u64> {
    let runs = |pid: &u64| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
    children(std::process::id().into()).into_iter().filter(runs).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_a_hundred_clients_of_a_shim_that_dies_get_one_successor_and_all_go_on() {
    watched(async {
        let name = Name::new("crowd");
        printed(["run", "--name", &name.0]);
        let mut clients = Vec::new();
        for number in 0..CLIENTS {
            let remote = Remote::connect(&name.0, program()).await.unwrap();
            let mut cat = remote.command("cat").stdin().spawn().await.unwrap();
            echoes(&mut cat, &format!("before {number}\n")).await;
            clients.push((remote, cat));
        }
        let before = clients[0].0.shim();
        assert!(clients.iter().all(|(remote, _)| remote.shim() == before));
        crate::dying::kill(before.cast_signed());
        let mut going_on = JoinSet::new();
        for (number, (remote, mut cat)) in clients.into_iter().enumerate() {
            going_on.spawn(async move {
                // Some at once, some when they know.
                if number % 2 == 0 {
                    echoes(&mut cat, &format!("at once {number}\n")).await;
                }
                let Event::TakenOver { shim } = remote.event().await else { panic!("no machine dies here") };
                echoes(&mut cat, &format!("after {number}\n")).await;
                (shim, remote, cat)
            });
        }
        let clients = going_on.join_all().await;
        let shims: HashSet<_> = clients.iter().map(|(shim, ..)| *shim).collect();
        assert!(shims.len() == 1 && !shims.contains(&before), "{shims:?} after {before}");
        assert!(clients.iter().all(|(shim, remote, _)| remote.shim() == *shim), "there was another one");
        // Those that came too late have gone.
        until(|| running().into_iter().all(|pid| shims.contains(&u32::try_from(pid).unwrap())));
        drop(clients);
    })
    .await;
}
