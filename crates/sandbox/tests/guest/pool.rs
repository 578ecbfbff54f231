//! Warm pools: children that wait, loaded and rehearsed, and are taken.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use throughline::Event;
use throughline_sandbox::{Given, Known, Sandbox};

use crate::fork::{expected, goes_on, printer};
use crate::host_death::{NAME, killed_host, ready};
use crate::support::{children, gone, name, restored, template, text, until, watched};

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What tells one guest from another.
const WHO: &str = "head -c 16 /dev/urandom | hexdump -v; cat /etc/machine-id /run/throughline/epoch; hostname";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_pool_children_go_on_at_the_frozen_byte_and_are_guests_of_their_own() {
    watched(async {
        let sandbox = restored().await;
        let mut reader = printer(&sandbox).await;
        reader.read(10_000).await;
        let (zygote, from) = (sandbox.zygote().await.unwrap(), reader.bytes.len());
        let pool = zygote.pool(3);
        pool.filled(3).await;
        let names: Vec<_> = (0..4).map(|number| name(&format!("pool-{number}"))).collect();
        let listed = || Known::list().unwrap().into_iter().map(|known| known.name).collect::<Vec<_>>();
        assert!(listed().iter().all(|name| !name.contains('~')), "those that wait are seen");
        let (mut seen, mut indices, mut taken) = (HashSet::new(), HashSet::new(), Vec::new());
        // Time goes by, of which those that wait know nothing.
        tokio::time::sleep(Duration::from_secs(3)).await;
        // The fourth waits until another one is loaded.
        for name in &names {
            let child = pool.take(Some(name)).await.unwrap();
            assert_eq!(child.name(), name);
            assert!(listed().contains(name));
            let (parent, epoch) = (sandbox.link().timeline(), child.link().timeline());
            let Event::Forked { from, to, index } = child.link().event().await else { panic!("no fork") };
            assert_eq!((from, to), (parent, epoch));
            assert!(indices.insert(index) && seen.insert(epoch.to_string()));
            let began = now();
            let clock: u64 = text(&child, "date +%s").await.parse().unwrap();
            assert!((began - 1..=now() + 1).contains(&clock), "{clock} is not {began}");
            let who = text(&child, WHO).await;
            assert!(who.contains(&format!("{epoch:032x}")), "{who}");
            assert!(seen.insert(who));
            taken.push(child);
        }
        let again = pool.take(Some(&names[0])).await.unwrap_err();
        assert!(again.to_string().contains("exists already"), "{again}");
        drop(pool);
        for child in &taken {
            goes_on(child, from).await;
        }
        reader.finish().await;
        assert!(reader.bytes == expected());
        for child in taken.into_iter().chain([sandbox]) {
            child.kill().await.unwrap();
        }
        until(async || children().is_empty()).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_pool_of_a_killed_process_leaves_nothing_but_what_was_taken() {
    if let Some(name) = std::env::var_os(NAME) {
        let zygote = restored().await.freeze().await.unwrap();
        let place = zygote.bundle().folder().parent().unwrap().display().to_string();
        let pool = zygote.pool(2);
        let taken = pool.take(name.to_str()).await.unwrap();
        taken.detach();
        pool.filled(2).await;
        let others = children().into_iter().filter(|pid| *pid != taken.machine().pid.to_string());
        let log = |pid: &str| std::fs::read_link(format!("/proc/{pid}/fd/2")).unwrap();
        let others = others.map(|pid| format!("{pid} {}", log(&pid).parent().unwrap().display()));
        ready(others.chain([place]).collect::<Vec<_>>().join(" "));
        return std::future::pending().await;
    }
    watched(async {
        let name = name("pool-owner");
        template().await;
        let test = "pool::vm_pool_of_a_killed_process_leaves_nothing_but_what_was_taken";
        let inner = name.clone();
        let owner = tokio::task::spawn_blocking(move || killed_host(test, &inner, Path::new("")));
        let waited = owner.await.unwrap();
        let words: Vec<&str> = waited.split(' ').collect();
        assert_eq!(words.len(), 5, "{waited}");
        let (words, zygote) = words.split_at(4);
        // Whoever comes next; it may be another test.
        assert!(Known::list().unwrap().iter().any(|known| known.name == name));
        until(async || !Path::new(zygote[0]).exists()).await;
        for machine in words.chunks(2) {
            let (pid, runtime) = (machine[0], Path::new(machine[1]));
            let memory = crate::support::places(runtime.file_name().unwrap().to_str().unwrap())[0].clone();
            // Nobody may have taken notice of its end, as its starter is dead.
            let stat = || std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
            let ended = || stat().map_or(true, |stat| stat.contains(") Z "));
            until(async || ended() && !runtime.exists() && !memory.exists()).await;
        }
        let sandbox = Sandbox::take_over(&name).await.unwrap();
        assert_eq!(text(&sandbox, "echo here").await, "here");
        sandbox.kill().await.unwrap();
        gone(&name).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_pool_replaces_a_child_whose_machine_dies() {
    watched(async {
        let sandbox = restored().await;
        let pool = sandbox.zygote().await.unwrap().pool(2);
        pool.filled(2).await;
        let own = sandbox.machine().pid.to_string();
        let waiting = || children().into_iter().filter(|pid| *pid != own).collect::<Vec<_>>();
        let dead = waiting().pop().unwrap();
        let pid = rustix::process::Pid::from_raw(dead.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        until(async || waiting().len() == 2 && !waiting().contains(&dead) && pool.waiting() == 2).await;
        for _ in 0..2 {
            let child = pool.take(None).await.unwrap();
            assert_eq!(text(&child, "echo here").await, "here");
            child.kill().await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_pool_child_is_given_what_it_is_to_have_when_it_is_taken_and_none_is_used_up_in_vain() {
    watched(async {
        let sandbox = restored().await;
        let zygote = sandbox.zygote().await.unwrap();
        // From the tenth child on a host name with its number has a letter more.
        (0..9).for_each(|_| drop(zygote.spawn()));
        let pool = zygote.pool(2);
        pool.filled(2).await;
        let given = |hostname: &str, secrets: &[(&str, &str)]| {
            let mut given = Given { hostname: Some(hostname.to_owned()), ..Given::default() };
            for (name, value) in secrets {
                given.secrets.insert(*name, *value);
            }
            given
        };
        let before = children();
        pool.take(Some(sandbox.name())).await.unwrap_err();
        pool.take(Some("no/name")).await.unwrap_err();
        pool.take_with(None, given("web_{index}", &[])).await.unwrap_err();
        pool.take_with(None, given("web", &[("../key", "")])).await.unwrap_err();
        assert_eq!((children(), pool.waiting()), (before, 2), "one was used up");
        // That it cannot have this is known when it is known which one it is; another one takes its place.
        let long = format!("{}{{index}}", "w".repeat(62));
        let error = pool.take_with(None, given(&long, &[])).await.unwrap_err();
        assert!(error.to_string().contains("is no host name"), "{error}");
        pool.filled(2).await;
        let ask = "hostname; cat /run/secrets/* 2>/dev/null; :";
        let child = pool.take_with(None, given("web-{index}", &[("key", "for this one")])).await.unwrap();
        let answer = text(&child, ask).await;
        let (name, secret) = answer.split_once('\n').unwrap();
        assert!(name.strip_prefix("web-").is_some_and(|number| number.parse::<u64>().unwrap() >= 10), "{name}");
        assert_eq!(secret, "for this one");
        let other = pool.take(None).await.unwrap();
        let answer = text(&other, ask).await;
        assert!(!answer.starts_with("web-") && answer.lines().count() == 1, "{answer}");
    })
    .await;
}
