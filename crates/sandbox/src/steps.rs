//! The steps between which a process may die. Tests let it die at each of them: see [`step`].

/// The folder that switches it on, in builds with debug assertions.
const SWITCH: &str = "THROUGHLINE_STEPS";

/// A point at which what this process does is half done: dying here, it must leave a whole sandbox or none, and the
/// next process puts in order what is left.
///
/// Nothing happens in a release build, or without the environment variable `THROUGHLINE_STEPS`. With it, in the folder
/// that it names, the step is written down as a line of `steps`: `shim NAME 3` for the third time that a shim came to
/// the step NAME, `command NAME 1` for any other process. If `die` there holds that line, the process is killed;
/// if `stop` does, it stops, until it is told to go on.
pub fn step(name: &'static str) {
    if cfg!(debug_assertions)
        && let Some(folder) = std::env::var_os(SWITCH)
    {
        taken(std::path::Path::new(&folder), name);
    }
}

fn taken(folder: &std::path::Path, name: &'static str) {
    use std::collections::HashMap;
    use std::io::Write;
    use std::sync::{Mutex, PoisonError};

    use rustix::process::{Signal, getpid, kill_process};

    static TIMES: Mutex<Option<HashMap<&'static str, u32>>> = Mutex::new(None);
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    let count = times.get_or_insert_default().entry(name).or_default();
    *count += 1;
    let role = if std::env::args().nth(1).is_some_and(|verb| verb == "shim") { "shim" } else { "command" };
    let line = format!("{role} {name} {count}\n");
    let noted = std::fs::File::options().append(true).create(true).open(folder.join("steps"));
    // A folder that is gone switches it off.
    let Ok(mut noted) = noted else { return };
    let _ = noted.write_all(line.as_bytes());
    for (file, signal) in [("die", Signal::KILL), ("stop", Signal::STOP)] {
        if std::fs::read_to_string(folder.join(file)).is_ok_and(|asked| asked == line) {
            let _ = kill_process(getpid(), signal);
        }
    }
}
