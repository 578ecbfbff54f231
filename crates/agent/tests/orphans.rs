//! The agent as process 1 sees it: every orphan becomes its child. Alone in its file, because it waits for
//! any child of the process.

#[expect(dead_code, reason = "the other tests use the rest")]
mod common;

use std::path::Path;

use common::{Command, run, shell};
use throughline_agent::reaper::Scope;
use throughline_agent::spawn::Spawner;
use throughline_wire::exec::Exit;

#[test]
fn orphans_are_reaped_and_no_status_is_lost_to_it() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    run(Scope::Everything, Spawner::new(None, false), Path::new("/etc"), async |executor| {
        let mut commands = Vec::new();
        for code in 0..50 {
            let script = format!("(true & (true &) ) & exit {code}");
            commands.push((code, Command::start(&executor, shell(&script)).await));
        }
        for (code, command) in commands {
            assert_eq!(command.finish().await.exit, Some(Exit::Code(code)));
        }
        // A program that cannot be executed is a child too, for a moment, and none of the reaper's.
        let missing = Command::start(&executor, common::argv(&["/no/such/program"])).await.finish().await;
        assert!(missing.failure.is_some());
        while !children().is_empty() {
            tokio::task::yield_now().await;
        }
    });
}

fn children() -> String {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    threads.filter_map(|thread| std::fs::read_to_string(thread.unwrap().path().join("children")).ok()).collect()
}
