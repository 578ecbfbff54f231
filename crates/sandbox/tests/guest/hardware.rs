//! What machines have, as their guests see it: before and after a restore.

use throughline_sandbox::Sandbox;
use throughline_sandbox::engine::{Confinement, Hardware, Measure, Net};

use crate::support::{folder, image, restored, text, watched};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_guest_has_the_processors_that_it_was_given_and_keeps_them_over_a_restore() {
    watched(async {
        let folder = folder();
        let sandbox = Sandbox::builder(image().await).cpus(2).create().await.unwrap();
        assert_eq!(text(&sandbox, "nproc").await, "2");
        // Both have work when the snapshot is taken, and go on with it.
        let count = "cd /run; for n in 0 1; do (while :; do echo >>$n; done) & echo $! >pid$n; done; taskset -p 1 $(cat pid0); taskset -p 2 $(cat pid1)";
        let run = sandbox.command("sh").args(["-c", &format!("({count}) >/dev/null 2>&1 </dev/null; sleep 1000")]);
        let _worker = run.spawn().await.unwrap();
        let grows = async |sandbox: &Sandbox| {
            for n in ["0", "1"] {
                text(sandbox, &format!("until [ -s /run/{n} ]; do sleep 0.01; done; at=$(wc -c </run/{n}); while [ $(wc -c </run/{n}) = $at ]; do sleep 0.01; done")).await;
            }
        };
        grows(&sandbox).await;
        let (bundle, _) = sandbox.snapshot(&folder.path().join("bundle")).await.unwrap();
        assert_eq!(bundle.manifest().hardware, Hardware { cpus: 2, ..Hardware::default() });
        sandbox.kill().await.unwrap();
        let sandbox = Sandbox::restore(bundle).start().await.unwrap();
        assert_eq!(sandbox.record().hardware.cpus, 2);
        assert_eq!(text(&sandbox, "nproc").await, "2");
        grows(&sandbox).await;
        sandbox.kill().await.unwrap();
    })
    .await;
}

/// Beyond 3 GiB the region lies elsewhere, and most of RAM beyond the first 4 GiB of addresses.
#[tokio::test]
async fn vm_guest_of_little_memory_and_of_much_keeps_what_is_in_it_over_restores() {
    watched(async {
        let folder = folder();
        for mib in [Hardware::LEAST_MEMORY_MIB, 5000] {
            let mut sandbox = Sandbox::builder(image().await).memory_mib(mib).create().await.unwrap();
            let total: u32 = text(&sandbox, "awk '/MemTotal/ { print $2 }' /proc/meminfo").await.parse().unwrap();
            assert!(total > (mib - 48) * 1000, "{total} kB of {mib} MiB");
            let sum = text(&sandbox, "head -c 8000000 /dev/urandom >/root/kept; md5sum /root/kept").await;
            // The second bundle is a delta of the first.
            for time in ["once", "again"] {
                let (bundle, _) =
                    sandbox.snapshot_and_stop(&folder.path().join(format!("{mib}-{time}"))).await.unwrap();
                sandbox = Sandbox::restore(bundle).start().await.unwrap();
                assert_eq!(sandbox.record().hardware.memory_mib, mib);
                assert_eq!(text(&sandbox, "md5sum /root/kept").await, sum, "{mib} MiB, {time}");
            }
            sandbox.kill().await.unwrap();
        }
    })
    .await;
}

/// What the guest's network cards are called.
const CARDS: &str = "ls /sys/class/net | tr '\\n' ' '";

/// Answers each connection with what it said, until it is dropped; the port.
async fn parrot() -> (u16, tokio::task::JoinSet<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            let (mut from, mut to) = socket.split();
            // A guest that is killed hangs up.
            let _ = tokio::io::copy(&mut from, &mut to).await;
        }
    });
    (port, serving)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_guest_with_a_network_reaches_the_host_and_has_it_again_after_a_restore() {
    watched(async {
        let (port, _serving) = parrot().await;
        let folder = folder();
        let hello = format!("{{ echo hello; sleep 0.2; }} | nc 10.0.2.2 {port}");
        let sandbox = Sandbox::builder(image().await).net(Net::User).create().await.unwrap();
        assert_eq!(text(&sandbox, CARDS).await, "eth0 lo");
        assert_eq!(text(&sandbox, &hello).await, "hello");
        assert_eq!(text(&sandbox, "cat /etc/resolv.conf").await, "nameserver 10.0.2.3");
        let waived = sandbox.machine().confinement.of(Measure::NetworkNamespace).unwrap();
        assert!(waived.waived && !waived.in_force, "{waived:?}");
        let others = |confinement: &Confinement| {
            let others = confinement.measures.iter().filter(|outcome| outcome.measure != Measure::NetworkNamespace);
            others.map(|outcome| (outcome.measure, outcome.in_force)).collect::<Vec<_>>()
        };
        let with = others(&sandbox.machine().confinement);
        let (bundle, _) = sandbox.snapshot(&folder.path().join("bundle")).await.unwrap();
        assert_eq!(bundle.manifest().hardware.net, Net::User);
        sandbox.kill().await.unwrap();
        let sandbox = Sandbox::restore(bundle).start().await.unwrap();
        assert_eq!(sandbox.record().hardware.net, Net::User);
        assert_eq!(text(&sandbox, &hello).await, "hello");
        sandbox.kill().await.unwrap();
        // The exception is this one: all else is as without.
        let sandbox = restored().await;
        assert_eq!(others(&sandbox.machine().confinement), with);
        assert!(sandbox.machine().confinement.holds(Measure::NetworkNamespace));
        sandbox.kill().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_guest_that_asked_for_no_network_has_its_loopback_only() {
    watched(async {
        let sandbox = restored().await;
        assert_eq!(text(&sandbox, CARDS).await, "lo");
        assert_eq!(
            text(&sandbox, "{ echo hello | nc -l -p 7 & }; until nc 127.0.0.1 7 </dev/null; do sleep 0.05; done").await,
            "hello"
        );
        assert_ne!(text(&sandbox, "nc -w 1 10.0.2.2 7 </dev/null; echo $?").await, "0");
        assert_eq!(sandbox.record().hardware.net, Net::None);
        sandbox.kill().await.unwrap();
    })
    .await;
}
