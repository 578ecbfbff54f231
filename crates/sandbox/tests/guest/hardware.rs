//! What machines have, as their guests see it: before and after a restore.

use throughline_sandbox::Sandbox;
use throughline_sandbox::engine::Hardware;

use crate::support::{folder, image, text, watched};

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
