//! Lines on the guest's console, which the host keeps the tail of.

use std::io::Write;

/// Prints one line. Never fails: there is nobody to tell.
pub fn say(line: &str) {
    // Not eprintln!, which panics when the console is gone.
    let _ = writeln!(std::io::stderr(), "throughline-agent: {line}");
}

/// Waits until the console has sent everything, so that the last words are not lost with the power.
pub fn drain() {
    let _ = rustix::termios::tcdrain(std::io::stderr());
}
