//! What a guest's commands printed before it powered off is read to its last byte, however slowly.

use std::time::Duration;

use throughline_sandbox::{ChildEvent, SandboxError};
use throughline_shim::client::Remote;

use crate::support::{Name, printed, program, row, watched};

/// Bytes that are read while the guest runs.
const BEFORE: usize = 2 << 20;
/// No more than a ring holds: the command can end while nobody reads.
const AFTER: usize = 40_000;
/// Between two reads. Longer than anybody waits for a client that has gone.
const PACE: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vm_all_that_a_command_printed_before_its_guest_powered_off_reaches_a_slow_client() {
    watched(async {
        let name = Name::new("last-reads");
        printed(["run", "--memory", "128M", "--name", &name.0]);
        // The agent closes its end of the pipe once all that was in it is on its way.
        let script = format!(
            "pipe=$(readlink /proc/$$/fd/1); head -c {} /dev/zero | tr '\\0' x; exec >/dev/null 2>/dev/null; \
             while ls -l /proc/1/fd | grep -qF \"$pipe\"; do usleep 10000; done; poweroff -f",
            BEFORE + AFTER
        );
        let remote = Remote::connect(&name.0, program()).await.unwrap();
        let mut events = remote.command("sh").arg("-c").arg(script).spawn().await.unwrap().events;
        let (mut read, mut late) = (0, 0);
        let ended = loop {
            match events.next().await {
                Ok(Some(ChildEvent::Stdout { at, data })) => {
                    assert!(at == read as u64 && data.iter().all(|byte| *byte == b'x'));
                    read += data.len();
                }
                Ok(other) => panic!("{other:?} after {read} bytes"),
                Err(ended) => break ended,
            }
            if read >= BEFORE {
                while row(&name.0).unwrap()["state"] != "exited" {}
                tokio::time::sleep(PACE).await;
                late += 1;
            }
        };
        assert_eq!(read, BEFORE + AFTER);
        assert!(late > 1, "{late} reads were late");
        assert!(matches!(&ended, SandboxError::Ended(_)), "{ended}");
    })
    .await;
}
