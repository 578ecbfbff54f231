//! Folders in shared memory, and this test again in another process.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use throughline_ring::{Class, Geometry, Side};

const WATCHDOG: Duration = Duration::from_mins(1);
const ROLE: &str = "THROUGHLINE_TEST_ROLE";

/// A folder on tmpfs that goes with its tests.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("throughline-test-").tempdir_in("/dev/shm").unwrap()
}

/// Two channels of small rings.
pub fn small() -> Geometry {
    Geometry::new(vec![
        Class { opener: Side::Host, count: 1, ring_bytes: 4096 },
        Class { opener: Side::Guest, count: 1, ring_bytes: 8192 },
    ])
    .unwrap()
}

/// What the parent told this process to do: see [`again`].
pub fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// The command line that runs the named test of this binary again, in a role. `prefix` goes before.
pub fn again(prefix: &[&str], test: &str, role: &str) -> Command {
    let this = std::env::current_exe().unwrap();
    let mut line = prefix.iter().map(Into::into).chain([this.into_os_string()]);
    let mut command = Command::new(line.next().unwrap());
    command.args(line).args(["--exact", test, "--nocapture"]).env(ROLE, role);
    command
}

/// A child that is killed and reaped at the latest when this is dropped.
pub struct Other {
    child: Child,
    lines: mpsc::Receiver<String>,
    _stdin: ChildStdin,
}

impl Other {
    /// Starts it.
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, lines, _stdin: stdin }
    }

    /// Waits until it has printed a line that ends so.
    pub fn wait_for(&self, end: &str) {
        while !self.lines.recv_timeout(WATCHDOG).unwrap().ends_with(end) {}
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and wait until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Blocks a child until its parent dies or kills it.
pub fn wait_for_the_end() {
    let _ = std::io::stdin().read_line(&mut String::new());
}
