//! `pool`: children in waiting, by the command.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Name, json, places, printed, refused, row, text, throughline, throughline_with, until};

const VALUE: &str = "a-value-that-nobody-else-has-5c77e1";

/// A pool that ends with this, and is not there before.
pub struct Pool(pub String);

impl Drop for Pool {
    fn drop(&mut self) {
        throughline(["pool", "rm", &self.0]);
    }
}

/// What `pool ls` says of one.
pub fn standing(pool: &str) -> Option<serde_json::Value> {
    json(["pool", "ls", "--json"]).as_array().unwrap().iter().find(|row| row["name"] == pool).cloned()
}

pub fn filled(pool: &str, count: u64) {
    until(|| standing(pool).is_some_and(|row| row["waiting"] == count));
}

/// The children of a process; one that is gone has none.
pub fn children(pid: u64) -> Vec<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
}

/// The zygote of a keeper.
fn zygote(keeper: u64) -> PathBuf {
    let files = fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().flatten();
    let mut files = files.filter_map(|file| fs::read_link(file.path()).ok());
    let lock = files.find(|file| file.to_string_lossy().contains("/+zygotes/")).expect("the lock of a zygote");
    lock.parent().unwrap().to_owned()
}

fn signal(pid: u64, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

fn kill(pid: u64) {
    signal(pid, Signal::KILL);
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
    let zygote = zygote(keeper);
    assert!(zygote.is_dir());
    kill(keeper);
    until(|| machines.iter().all(|machine| alive.contains(machine) || !runs(*machine)));
    assert!(alive.iter().all(|machine| runs(*machine)));
    let missing = throughline(["pool", "take", &pool.0]);
    assert!(text(&missing.stderr).contains("there is no pool"), "{}", text(&missing.stderr));
    assert!(standing(&pool.0).is_none());
    assert!(!zygote.exists(), "its zygote takes memory");
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
    let error = refused(&["--json", "snapshot", "rm", &bundle]);
    assert!(error["message"].as_str().unwrap().contains("remove the pool first"), "{error}");
    printed(["snapshot", "verify", &bundle]);
    let folder = places(&pool.0)[1].with_file_name("+pools").join(&pool.0);
    assert!(folder.exists());
    printed(["pool", "rm", &pool.0]);
    printed(["snapshot", "rm", &bundle]);
    assert!(!folder.exists(), "its folder was left");
    assert!(standing(&pool.0).is_none());
    assert_eq!(refused(&["--json", "pool", "rm", &pool.0])["kind"], "missing");
    assert_eq!(printed(["exec", &children[0].0, "--", "echo", "here"]), "here\n");
}

#[test]
fn vm_pool_whose_children_cannot_be_made_says_why() {
    let (name, child) = (Name::new("pool-failing"), Name::new("pool-failing-child"));
    printed(["run", "--memory", "128M", "--name", &name.0]);
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let (bundle, away) = (folder.path().join("bundle"), folder.path().join("away"));
    printed(["snapshot", "create", "--stop", &name.0, bundle.to_str().unwrap()]);
    let pool = Pool(format!("pool-failing-{}", std::process::id()));
    printed(["pool", "create", bundle.to_str().unwrap(), &pool.0, "-n", "1"]);
    assert_eq!(
        (&standing(&pool.0).unwrap()["failures"], &standing(&pool.0).unwrap()["last_error"]),
        (&0.into(), &serde_json::Value::Null)
    );
    fs::rename(&bundle, &away).unwrap();
    printed(["pool", "take", &pool.0, &child.0]);
    until(|| standing(&pool.0).unwrap()["failures"].as_u64() > Some(0));
    let why = standing(&pool.0).unwrap()["last_error"].as_str().unwrap().to_owned();
    assert!(why.contains("is no snapshot"), "{why}");
    let table = printed(["pool", "ls"]);
    assert!(table.lines().any(|line| line.starts_with(&pool.0) && line.contains("is no snapshot")), "{table}");
    fs::rename(&away, &bundle).unwrap();
    filled(&pool.0, 1);
    assert_eq!(standing(&pool.0).unwrap()["last_error"], serde_json::Value::Null);
}

#[test]
fn vm_pool_of_the_command_replaces_a_child_whose_machine_dies() {
    let name = Name::new("pool-dead");
    printed(["run", "--name", &name.0]);
    let pool = Pool(format!("pool-dead-{}", std::process::id()));
    printed(["pool", "create", &name.0, &pool.0, "-n", "2"]);
    filled(&pool.0, 2);
    let keeper = standing(&pool.0).unwrap()["pid"].as_u64().unwrap();
    let shim = children(keeper)[0];
    let machine = children(shim)[0];
    let log = fs::read_link(format!("/proc/{machine}/fd/2")).unwrap();
    let places = places(log.parent().unwrap().file_name().unwrap().to_str().unwrap());
    assert!(places.iter().all(|place| place.is_dir()), "{places:?}");
    kill(machine);
    until(|| {
        let shims = children(keeper);
        shims.len() == 2 && !shims.contains(&shim) && standing(&pool.0).unwrap()["waiting"] == 2
    });
    assert!(places.iter().all(|place| !place.exists()), "{places:?}");
    for child in [Name::new("pool-dead-1"), Name::new("pool-dead-2")] {
        printed(["pool", "take", &pool.0, &child.0]);
        assert_eq!(printed(["exec", &child.0, "--", "echo", "here"]), "here\n");
    }
}

#[test]
fn vm_pool_child_has_the_host_name_and_the_secrets_that_it_was_given_when_it_was_taken() {
    const ASK: &str = "hostname; hostname | cmp - /etc/hostname || echo differs; \
        cd /run/secrets 2>/dev/null && for i in *; do [ -e $i ] && echo $i && cat $i; done; :";
    let folder = tempfile::tempdir().unwrap();
    let (file, long) = (folder.path().join("key"), folder.path().join("long"));
    fs::write(&file, VALUE).unwrap();
    fs::write(&long, vec![255; 64 << 10]).unwrap();
    let (file, long) = (format!("key=@{}", file.display()), format!("long=@{}", long.display()));
    let name = Name::new("pool-given");
    // Shorter than the name that its children rehearse with, of which nothing may be left in any of them.
    printed(["run", "--name", &name.0, "--hostname", "own", "--secret", "key=its-own"]);
    // It has the file open, from before there were children.
    let script = "exec 3</run/secrets/key; echo open; while [ ! -e /tmp/go ]; do sleep 0.05; done; cat <&3";
    let id = printed(["exec", "-d", &name.0, "--", "sh", "-c", script]).trim().to_owned();
    until(|| json(["--json", "ps", &name.0])[0]["unread"] != 0);
    let pool = Pool(format!("pool-given-{}", std::process::id()));
    printed(["pool", "create", &name.0, &pool.0, "-n", "2"]);
    filled(&pool.0, 2);
    let children = ["first", "second", "third"].map(|child| Name::new(&format!("pool-given-{child}")));
    let [first, second, third] = children.each_ref().map(|child| child.0.as_str());

    let keeper = standing(&pool.0).unwrap()["pid"].as_u64().unwrap();
    let waiting = self::children(keeper);
    for bad in [
        ["take", &pool.0, &name.0, "--hostname", "web"],
        ["take", &pool.0, first, "--hostname", "web_{index}"],
        ["take", &pool.0, first, "--secret", "key"],
        ["take", &pool.0, first, "--secret", "../key=1"],
    ] {
        let failed = throughline_with(&[&["pool"], &bad[..]].concat(), b"");
        assert_eq!(failed.status.code(), Some(125), "{bad:?}: {}", text(&failed.stdout));
    }
    let taken = throughline(["pool", "take", &pool.0, &name.0]);
    assert!(text(&taken.stderr).contains("exists already"), "{}", text(&taken.stderr));
    assert_eq!((self::children(keeper), standing(&pool.0).unwrap()["waiting"].as_u64()), (waiting, Some(2)));

    let given = ["--hostname", "web-{index}", "--secret", &file];
    printed(["pool", "take", &pool.0, first, given[0], given[1], given[2], given[3]]);
    let answer = printed(["exec", first, "--", "sh", "-c", ASK]);
    let (number, secrets) = answer.strip_prefix("web-").unwrap().split_once('\n').unwrap();
    assert!(number.parse::<u64>().unwrap() >= 1);
    assert_eq!(secrets, format!("key\n{VALUE}"));
    printed(["exec", first, "--", "touch", "/tmp/go"]);
    assert_eq!(printed(["attach", first, &id]), format!("open\n{VALUE}"));
    printed(["pool", "take", &pool.0, second]);
    let answer = printed(["exec", second, "--", "sh", "-c", ASK]);
    assert!(!answer.starts_with("web-") && answer.lines().count() == 1, "{answer}");
    // Longer than a line to the keeper may be.
    printed(["pool", "take", &pool.0, third, "--secret", &long, "--hostname", "third"]);
    let ask = "cat /etc/hostname; cat /run/secrets/* | tr -d '\\377' | wc -c; wc -c < /run/secrets/long";
    assert_eq!(printed(["exec", third, "--", "sh", "-c", ask]), "third\n0\n65536\n");
    assert_eq!(printed(["exec", &name.0, "--", "cat", "/run/secrets/key"]), "its-own");

    // Neither in logs, nor where processes are listed.
    let shim = json(["--json", "inspect", first])["shim"].as_u64().unwrap();
    let processes = [keeper, shim].map(|pid| [format!("/proc/{pid}/cmdline"), format!("/proc/{pid}/environ")]);
    let mut files: Vec<PathBuf> = processes.into_iter().flatten().map(PathBuf::from).collect();
    let runtime = places(first)[0].join("runtime");
    for folder in [places(&pool.0)[1].with_file_name("+pools").join(&pool.0), runtime] {
        files.extend(fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()));
    }
    for file in ["keeper.log", "shim.log", "sandbox.json"] {
        assert!(files.iter().any(|path| path.ends_with(file)), "{file} is not in {files:?}");
    }
    for file in files {
        assert!(!text(&fs::read(&file).unwrap()).contains(VALUE), "{}", file.display());
    }
}

#[test]
fn vm_prune_and_doctor_know_of_what_a_killed_keeper_leaves() {
    let name = Name::new("pool-left");
    printed(["run", "--name", &name.0]);
    let pool = Pool(format!("pool-left-{}", std::process::id()));
    printed(["pool", "create", &name.0, &pool.0, "-n", "1"]);
    let keeper = standing(&pool.0).unwrap()["pid"].as_u64().unwrap();
    let found = || {
        let found = json(["doctor", "--json"]);
        ["pools", "zygotes"].map(|name| {
            let check = found["checks"].as_array().unwrap().iter().find(|check| check["name"] == name);
            check.unwrap_or_else(|| panic!("{name} is not among {found}")).clone()
        })
    };
    assert!(found().iter().all(|check| check["state"] == "ok"), "{:?}", found());
    let zygote = zygote(keeper);
    // One that does not answer is listed, and keeps nobody waiting for long.
    signal(keeper, Signal::STOP);
    let stopped = standing(&pool.0).expect("it is not listed");
    assert!(stopped["error"].is_string() && stopped["waiting"].is_null(), "{stopped}");
    kill(keeper);
    until(|| !runs(keeper));
    let [pools, zygotes] = found();
    assert!(pools["detail"].as_str().unwrap().contains(&pool.0), "{pools}");
    assert!(zygotes["detail"].as_str().unwrap().starts_with("1 left"), "{zygotes}");
    for check in [pools, zygotes] {
        assert_eq!((&check["state"], &check["mend"]), (&"warning".into(), &"throughline prune".into()), "{check}");
    }
    let pruned = json(["prune", "--json"]);
    assert!(pruned["removed"].as_array().unwrap().contains(&pool.0.as_str().into()), "{pruned}");
    assert!(!zygote.exists());
    assert!(found().iter().all(|check| check["state"] == "ok"), "{:?}", found());
}
