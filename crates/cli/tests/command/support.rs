//! A sandbox per test, and the command.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use throughline_shim::start::Program;

/// How long anything may take before a test is called hung.
const WATCHDOG: Duration = Duration::from_mins(4);

/// The command that was built with the tests, or a copy of it, where another user runs them.
pub fn command() -> PathBuf {
    std::env::var_os("CARGO_BIN_EXE_throughline")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_throughline")), PathBuf::from)
}

/// It, as a shim.
pub fn program() -> Program {
    Program { path: command(), arguments: vec!["shim".to_owned()] }
}

/// Runs a test under the watchdog.
pub async fn watched<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(WATCHDOG, test).await.expect("the test hangs")
}

/// Waits for something that nobody tells.
pub fn until(mut done: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(began.elapsed() < WATCHDOG, "the test hangs");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A name that nobody else has; whatever has it ends with this.
pub struct Name(pub String);

impl Name {
    pub fn new(test: &str) -> Self {
        Self(format!("{test}-{}", std::process::id()))
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let removed = throughline(["rm", "--force", &self.0]);
        if !std::thread::panicking() {
            assert!(removed.status.success(), "{}", text(&removed.stderr));
        }
    }
}

/// Runs the command to its end.
pub fn throughline<const N: usize>(arguments: [&str; N]) -> Output {
    throughline_with(&arguments, b"")
}

/// The same with an input.
pub fn throughline_with(arguments: &[&str], input: &[u8]) -> Output {
    use std::io::Write;
    let mut command = Command::new(command());
    let piped = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the command");
    let mut stdin = child.stdin.take().expect("its input");
    let input = input.to_vec();
    // A command that ends early does not read it.
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("its end");
    feeding.join().expect("the input");
    output
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the command, which must succeed; what it printed.
pub fn printed<const N: usize>(arguments: [&str; N]) -> String {
    let output = throughline(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The same, as JSON.
pub fn json<const N: usize>(arguments: [&str; N]) -> serde_json::Value {
    serde_json::from_str(&printed(arguments)).expect("JSON")
}

/// Runs the command, which must fail by itself; the error that it printed.
pub fn refused(arguments: &[&str]) -> serde_json::Value {
    let output = throughline_with(arguments, b"");
    assert_eq!(output.status.code(), Some(125), "{arguments:?}: {}", text(&output.stdout));
    let error: serde_json::Value = serde_json::from_str(&text(&output.stderr)).expect("JSON");
    error["error"].clone()
}

/// What `ls` says of a sandbox.
pub fn row(name: &str) -> Option<serde_json::Value> {
    let listed = json(["ls", "--json"]);
    listed.as_array().expect("a list").iter().find(|row| row["name"] == name).cloned()
}

/// The folders of a sandbox: on tmpfs, and for sockets and logs.
pub fn places(name: &str) -> [PathBuf; 2] {
    let uid = rustix::process::getuid().as_raw();
    let runtime = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir()) {
        Some(folder) => folder.join("throughline"),
        None if uid == 0 => PathBuf::from("/run/throughline"),
        None => std::env::temp_dir().join(format!("throughline-{uid}")),
    };
    [PathBuf::from(format!("/dev/shm/throughline-{uid}")).join(name), runtime.join(name)]
}

/// The monitors of a sandbox, known by anybody or not: whatever has its messages go to its folder.
pub fn machines(name: &str) -> Vec<i32> {
    let log = format!("/{name}/monitor.log");
    let processes = std::fs::read_dir("/proc").expect("the processes").filter_map(Result::ok);
    processes
        .filter(|process| {
            let messages = std::fs::read_link(process.path().join("fd/2"));
            messages.is_ok_and(|messages| messages.to_string_lossy().contains(&log))
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}
