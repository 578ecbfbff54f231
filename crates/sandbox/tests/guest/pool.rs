//! Warm pools: children that wait, loaded and rehearsed, and are taken.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use throughline::Event;
use throughline_sandbox::{Known, Sandbox};

use crate::fork::{expected, goes_on, printer};
use crate::support::{children, name, restored, text, until, watched};

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
        assert_eq!(listed(), [sandbox.name()], "nobody sees those that wait");
        let (mut seen, mut indices, mut taken) = (HashSet::new(), HashSet::new(), Vec::new());
        // The fourth waits until another one is loaded.
        for name in &names {
            let child = pool.take(Some(name)).await.unwrap();
            assert_eq!(child.name(), name);
            assert!(listed().contains(name));
            let (parent, epoch) = (sandbox.link().timeline(), child.link().timeline());
            let Event::Forked { from, to, index } = child.link().event().await else { panic!("no fork") };
            assert_eq!((from, to), (parent, epoch));
            assert!(indices.insert(index) && seen.insert(epoch.to_string()));
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
async fn vm_pool_measure() {
    for rehearse in [false, true] {
        let sandbox: Sandbox = restored().await;
        let zygote = sandbox.zygote().await.unwrap();
        let pool = if rehearse { zygote.pool(2) } else { zygote.pool_without_rehearsal(2) };
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for _ in 0..15 {
            pool.filled(2).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            let started = Instant::now();
            let child = pool.take(None).await.unwrap();
            a.push(started.elapsed());
            child.command("true").output().await.unwrap();
            b.push(started.elapsed());
            let s2 = Instant::now();
            child.command("true").output().await.unwrap();
            let second = s2.elapsed();
            let pss = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", child.record().machine.pid)).unwrap();
            let pss = pss.lines().find(|l| l.starts_with("Pss:")).unwrap().to_owned();
            println!("{rehearse} {:?} {:?} second {second:?} {pss}", a.last().unwrap(), b.last().unwrap());
        }
        a.sort();
        b.sort();
        println!("{rehearse} median {:?} {:?}", a[7], b[7]);
    }
}
