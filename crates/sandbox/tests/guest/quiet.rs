//! A guest that does not become quiet, and one that is stopped.

use std::time::Duration;

use throughline_sandbox::{Sandbox, SandboxError};

use crate::support::{folder, image, restored, text, watched};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_guest_that_does_not_become_quiet_makes_no_bundle_and_goes_on() {
    watched(async {
        let builder = Sandbox::builder(image().await).kernel_argument("throughline.test=no-quiesce");
        let mut sandbox = builder.create().await.unwrap();
        let folder = folder();
        let place = folder.path().join("bundle");
        sandbox.quiet_deadline(Duration::from_millis(300));
        for _ in 0..2 {
            let error = sandbox.snapshot(&place).await.unwrap_err();
            assert!(matches!(error, SandboxError::NotQuiet(..)), "{error}");
            let words = error.to_string();
            for part in ["to be quiet", "300ms", "Snapshot::allow_unquiesced"] {
                assert!(words.contains(part), "{words}");
            }
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
            assert_eq!(text(&sandbox, "echo on").await, "on");
        }
        let error = sandbox.snapshot_with(&place).take_and_stop().await.unwrap_err();
        assert!(matches!(error, SandboxError::NotQuiet(..)), "{error}");
        assert_eq!(text(&sandbox, "echo still on").await, "still on");
        assert!(sandbox.snapshot_and_stop(&place).await.is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");
    })
    .await;
}

/// The request is taken back: a guest that follows it a moment later does not stay frozen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_guest_that_becomes_quiet_too_late_goes_on() {
    watched(async {
        let mut sandbox = restored().await;
        let folder = folder();
        let mut late = 0;
        // A host that is held up for a moment gives its guest time: some rounds may succeed.
        for micros in [0, 50, 100, 200, 400, 800].into_iter().chain(std::iter::repeat(0)) {
            sandbox.quiet_deadline(Duration::from_micros(micros));
            let place = folder.path().join("bundle");
            let result = sandbox.snapshot(&place).await;
            assert!(matches!(result, Ok(_) | Err(SandboxError::NotQuiet(..))), "{result:?}");
            assert_eq!(text(&sandbox, "echo on").await, "on");
            match result {
                Ok(_) => std::fs::remove_dir_all(&place).unwrap(),
                Err(_) if late == 3 => break,
                Err(_) => late += 1,
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_that_stops_hands_its_memory_over_without_a_copy() {
    watched(async {
        let sandbox = Sandbox::builder(image().await).create().await.unwrap();
        text(&sandbox, "echo kept > /tmp/kept").await;
        let folder = folder();
        let (bundle, report) = sandbox.snapshot_and_stop(&folder.path().join("one")).await.unwrap();
        assert_eq!((report.copied, report.corrected, report.stand_still), (0, 0, Duration::ZERO));
        assert!(report.quiesced && bundle.manifest().quiesced);
        let sandbox = Sandbox::restore(bundle).start().await.unwrap();
        assert_eq!(text(&sandbox, "cat /tmp/kept").await, "kept");
        text(&sandbox, "echo also > /tmp/also").await;
        // One that was restored keeps its memory over another's file: that is a copy.
        let (bundle, report) = sandbox.snapshot_and_stop(&folder.path().join("two")).await.unwrap();
        assert!(report.copied > 0);
        std::fs::remove_dir_all(folder.path().join("one")).unwrap();
        let sandbox = Sandbox::restore(bundle).start().await.unwrap();
        assert_eq!(text(&sandbox, "cat /tmp/kept /tmp/also").await, "kept\nalso");
    })
    .await;
}

/// Appends for as long as it runs, in the control group `$1`, to the file `$2`.
const OUTSIDE: &str = "(echo 0 >$1/cgroup.procs; while :; do echo >>$2; sleep 0.01; done) >/dev/null 2>&1 &";
/// Looks twice at what those have written, which must be the same: the identity is not taken on yet.
const LOOKS: &str = "cd /etc/throughline/restore.d && printf '#!/bin/sh\\ncd /run; wc -c other root inside >before\\n\
    sleep 0.5; wc -c other root inside | cmp - before && echo still >>looked\\n' >50-look && chmod 755 50-look";

/// Container tools make control groups beside the user's, and root may leave it for none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_what_runs_outside_of_the_users_group_does_not_run_before_the_identity_either() {
    watched(async {
        let sandbox = restored().await;
        text(&sandbox, LOOKS).await;
        text(&sandbox, "cd /sys/fs/cgroup; mkdir -p other/inside held; echo 1 >held/cgroup.freeze").await;
        for (group, file) in [("other", "other"), ("other/inside", "inside"), (".", "root")] {
            let script =
                OUTSIDE.replace("$1", &format!("/sys/fs/cgroup/{group}")).replace("$2", &format!("/run/{file}"));
            text(&sandbox, &script).await;
        }
        let grows = async |sandbox: &Sandbox| {
            let script = "cd /run; for i in other inside root; do until [ -s $i ]; do sleep 0.01; done; n=$(wc -c <$i); \
                while [ $(wc -c <$i) = $n ]; do sleep 0.01; done; done; cat looked /sys/fs/cgroup/held/cgroup.freeze";
            text(sandbox, &format!("{script} 2>/dev/null; true")).await
        };
        assert_eq!(grows(&sandbox).await, "1");
        let folder = folder();
        let (bundle, report) = sandbox.snapshot(&folder.path().join("bundle")).await.unwrap();
        assert!(report.quiesced);
        // What the user froze stays so; everything else goes on, in the source and after its restore.
        assert_eq!(grows(&sandbox).await, "1");
        let restored = Sandbox::restore(bundle).start().await.unwrap();
        assert_eq!(grows(&restored).await, "still\n1");
        restored.kill().await.unwrap();
        let zygote = sandbox.freeze().await.unwrap();
        let child = zygote.spawn().start().await.unwrap();
        assert_eq!(grows(&child).await, "still\n1");
    })
    .await;
}
