//! How hard a proof tries, and what it came to.
//!
//! The proofs are ordinary tests that count: seeds, states, schedules. Every run tries a little; `cargo xtask prove`
//! sets [`FULL`] and has them try in earnest. It collects their counts through the file that [`RECORD`] names.
//!
//! ```
//! let seeds = throughline_effort::of(20_000, 2_000_000);
//! // … try them …
//! throughline_effort::proved("example: what was shown", seeds, "seeds");
//! ```

use std::fs::File;
use std::io::Write;

use serde::{Deserialize, Serialize};

/// Set by whoever wants the full counts.
pub const FULL: &str = "THROUGHLINE_PROVE_FULL";
/// Names the file that counts are appended to, a JSON object a line.
pub const RECORD: &str = "THROUGHLINE_PROVE_RECORD";

/// What a proof came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proved {
    /// The test's id, or the end of it.
    pub test: String,
    /// What was shown.
    pub what: String,
    /// How often, or for how many.
    pub count: u64,
    /// Of what.
    pub unit: String,
    /// Whether this was the full effort.
    pub full: bool,
}

/// How often to try: so often in every run, or so often in the full one.
pub fn of(every_run: u64, full: u64) -> u64 {
    if is_full() { full } else { every_run }
}

/// Whether the full effort is wanted.
pub fn is_full() -> bool {
    std::env::var_os(FULL).is_some()
}

/// Tells what was shown, on the standard output and to whoever collects it. To be called by the test itself, at its end.
///
/// # Panics
/// When the record cannot be written: a proof that is not told is not one.
pub fn proved(what: &str, count: u64, unit: &str) {
    println!("proved: {what}: {count} {unit}");
    let Some(path) = std::env::var_os(RECORD) else { return };
    // The test harness names each test's thread after it.
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let proved = Proved { test, what: what.to_owned(), count, unit: unit.to_owned(), full: is_full() };
    let mut line = serde_json::to_vec(&proved).expect("plain data");
    line.push(b'\n');
    // One write of a line: proofs that run side by side do not mix theirs.
    let file = File::options().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(&line)).expect("the record can be written");
}
