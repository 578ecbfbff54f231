//! A shim's log, which stays small whatever happens.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;

/// Bytes after which the log begins anew.
const MOST: u64 = 1 << 20;

/// A file that is cut when it has grown long.
struct Bounded(File);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.metadata()?.len() > MOST {
            // Opened for appending: the next write begins at the start.
            self.0.set_len(0)?;
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Logs to a file in a sandbox's or pool's folder: this program's messages, and its panics.
pub fn begin(folder: &Path, name: &str) -> io::Result<()> {
    let log = File::options().create(true).append(true).open(folder.join(name))?;
    rustix::stdio::dup2_stderr(&log)?;
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_target(false).with_max_level(tracing::Level::INFO);
    subscriber.with_writer(Mutex::new(Bounded(log))).init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_has_grown_long_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut log = Bounded(File::options().create(true).append(true).open(&path).unwrap());
        for _ in 0..30 {
            log.write_all(&vec![b'x'; 100_000]).unwrap();
        }
        let bytes = std::fs::metadata(&path).unwrap().len();
        assert!((1..=MOST + 100_000).contains(&bytes), "{bytes}");
    }
}
