//! `pool`: children in waiting, by the command.

use std::path::Path;

use crate::support::{Name, json, places, printed, refused, row, text, throughline, until};

/// A pool that ends with this, and is not there before.
struct Pool(String);

impl Drop for Pool {
    fn drop(&mut self) {
        throughline(["pool", "rm", &self.0]);
    }
}

/// What `pool ls` says of one.
fn standing(pool: &str) -> Option<serde_json::Value> {
    json(["pool", "ls", "--json"]).as_array().unwrap().iter().find(|row| row["name"] == pool).cloned()
}

fn filled(pool: &str, count: u64) {
    until(|| standing(pool).is_some_and(|row| row["waiting"] == count));
}

/// The children of a process.
fn children(pid: u64) -> Vec<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let lists = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
}

/// Whether a process runs.
fn runs(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| !"ZX".contains(state))
}

#[test]
fn vm_main_path_pool_children_wait_and_go_on_whatever_becomes_of_the_pool() {
    let name = Name::new("pool");
    printed(["run", "--name", &name.0]);
    let script = "i=0; while [ $i -lt 3 ]; do echo line $i; i=$((i+1)); sleep 0.2; done; exit 7";
    let id = printed(["exec", "-d", &name.0, "--", "sh", "-c", script]).trim().to_owned();
    let pool = Pool(format!("pool-{}", std::process::id()));
    assert_eq!(printed(["pool", "create", &name.0, &pool.0, "-n", "2"]).trim(), pool.0);
    let again = refused(&["--json", "pool", "create", &name.0, &pool.0]);
    assert_eq!(again["kind"], "taken", "{again}");
    filled(&pool.0, 2);
    let taken = [Name::new("pool-first"), Name::new("pool-second"), Name::new("pool-third")];
    let mut who = Vec::new();
    for Name(child) in &taken {
        let answer = json(["--json", "pool", "take", &pool.0, child]);
        assert!(answer["ok"] == true && answer["name"] == child.as_str(), "{answer}");
        let output = throughline(["attach", child, &id]);
        assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "line 0\nline 1\nline 2\n");
        who.push(printed(["exec", child, "--", "sh", "-c", "head -c 16 /dev/urandom | hexdump -v; hostname"]));
    }
    who.sort();
    who.dedup();
    assert_eq!(who.len(), 3, "each is a guest of its own");
    let failed = throughline(["--json", "pool", "take", &pool.0, &taken[0].0]);
    assert!(text(&failed.stdout).contains("exists already") && failed.status.code() == Some(125));
    let random = Name(printed(["pool", "take", &pool.0, "--rm"]).trim().to_owned());
    // One of a taken one, which is a sandbox like any other.
    let fork = Name::new("pool-fork");
    printed(["fork", &taken[0].0, &fork.0]);
    printed(["rm", "--force", &taken[0].0]);
    assert!(row(&taken[0].0).is_none() && places(&taken[0].0).iter().all(|place| !place.exists()));

    // The keeper dies: what waited ends, what was taken goes on.
    filled(&pool.0, 2);
    let keeper = standing(&pool.0).unwrap()["pid"].as_u64().unwrap();
    let shims = children(keeper);
    let machines: Vec<u64> = shims.iter().flat_map(|shim| children(*shim)).collect();
    assert!(shims.len() >= 2 && machines.len() >= 2, "{shims:?} {machines:?}");
    let alive = [&taken[1].0, &taken[2].0, &random.0].map(|name| row(name).unwrap()["pid"].as_u64().unwrap());
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(keeper).unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    until(|| machines.iter().all(|machine| alive.contains(machine) || !runs(*machine)));
    assert!(alive.iter().all(|machine| runs(*machine)));
    let missing = throughline(["pool", "take", &pool.0]);
    assert!(text(&missing.stderr).contains("there is no pool"), "{}", text(&missing.stderr));
    assert!(standing(&pool.0).is_none());
    printed(["prune"]);
    let runtime = places(&pool.0)[1].with_file_name("+pools").join(&pool.0);
    assert!(!Path::new(&runtime).exists());
    for sandbox in [&taken[1].0, &taken[2].0, &random.0, &fork.0] {
        assert_eq!(printed(["exec", sandbox, "--", "echo", "here"]), "here\n");
    }
    // It was to vanish with its machine.
    printed(["kill", &random.0]);
    until(|| row(&random.0).is_none());
}

#[test]
fn vm_pool_of_a_snapshot_is_filled_again_and_removed() {
    let name = Name::new("pool-snapshot");
    printed(["run", "--name", &name.0]);
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let bundle = folder.path().join("bundle").to_str().unwrap().to_owned();
    printed(["snapshot", "create", "--stop", &name.0, &bundle]);
    let pool = Pool(format!("pool-snapshot-{}", std::process::id()));
    assert_eq!(refused(&["--json", "pool", "create", "no-such-thing", &pool.0])["kind"], "missing");
    printed(["pool", "create", &bundle, &pool.0, "-n", "1"]);
    let children = [Name::new("pool-snapshot-1"), Name::new("pool-snapshot-2")];
    for Name(child) in &children {
        assert_eq!(printed(["pool", "take", &pool.0, child]).trim(), child);
        assert_eq!(printed(["exec", child, "--", "echo", "here"]), "here\n");
    }
    filled(&pool.0, 1);
    let folder = places(&pool.0)[1].with_file_name("+pools").join(&pool.0);
    assert!(folder.exists());
    printed(["pool", "rm", &pool.0]);
    assert!(!folder.exists(), "its folder was left");
    assert!(standing(&pool.0).is_none());
    assert_eq!(refused(&["--json", "pool", "rm", &pool.0])["kind"], "missing");
    assert_eq!(printed(["exec", &children[0].0, "--", "echo", "here"]), "here\n");
}
