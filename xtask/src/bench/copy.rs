//! `cp` into a guest, beside the same bytes over TCP through QEMU's own network, in the same guest.

use std::fs::File;
use std::io::{self, Write};
use std::net::TcpListener;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use super::Runs;
use super::command::Running;
use super::figure::{Figure, Goal};

const MIB: u32 = 256;
const BYTES: u64 = (MIB as u64) << 20;

pub fn measure(runs: Runs, program: &Path) -> Result<Vec<Figure>> {
    let folder = tempfile::tempdir_in("/dev/shm").context("cannot make a folder in /dev/shm")?;
    let file = folder.path().join("file");
    fill(&file).context("cannot write the file to copy")?;
    let sandbox = Running::start(program, "copy", &["--memory", "1G", "--net", "user"])?;
    let (mut copies, mut streams, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..runs.slow() {
        // One after the other, as what else runs on the host changes.
        let copy = copied(&sandbox, &file)?;
        let stream = streamed(&sandbox, &file)?;
        copies.push(rate(copy));
        streams.push(rate(stream));
        ratios.push(stream / copy);
    }
    let ratio = Figure::new("`cp` of 256 MiB: times as fast as TCP", "×", ratios)?;
    Ok(vec![
        Figure::new("`cp` of 256 MiB into a 1 GiB guest", "MB/s", copies)?,
        Figure::new("the same over TCP through slirp", "MB/s", streams)?
            .note("busybox nc in the guest, one plain socket on the host, to the same file system"),
        ratio.goal(Goal::AtLeast(3.0)),
    ])
}

fn rate(seconds: f64) -> f64 {
    f64::from(MIB) * 1.048_576 / seconds
}

/// Bytes that no compression and no hole makes less.
fn fill(path: &Path) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    let mut state = 1_u64;
    let mut piece = Vec::with_capacity(1 << 20);
    for _ in 0..MIB {
        piece.clear();
        while piece.len() < 1 << 20 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            piece.extend((state >> 7).to_le_bytes());
        }
        file.write_all(&piece)?;
    }
    Ok(())
}

/// Seconds for the whole command.
fn copied(sandbox: &Running, file: &Path) -> Result<f64> {
    let source = file.to_str().context("a path that is text")?;
    let started = Instant::now();
    sandbox.run(&["cp", source, &format!("{}:/tmp/copy", sandbox.name)])?;
    let took = started.elapsed().as_secs_f64();
    drop_copy(sandbox)?;
    Ok(took)
}

/// Seconds for a command in the guest that connects to the host and writes down what it gets.
fn streamed(sandbox: &Running, file: &Path) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
    let port = listener.local_addr()?.port();
    let mut file = File::open(file)?;
    let sending = thread::spawn(move || {
        let (mut socket, _) = listener.accept()?;
        io::copy(&mut file, &mut socket)
    });
    let script = format!("nc 10.0.2.2 {port} </dev/null >/tmp/copy");
    let started = Instant::now();
    let done = sandbox.run(&["exec", "--timeout", "2m", &sandbox.name, "--", "sh", "-c", &script]);
    let took = started.elapsed().as_secs_f64();
    // On failure nobody may ever connect to the thread: it ends with the program.
    done?;
    sending.join().map_err(|_| anyhow!("the sender panicked"))?.context("the host could not send")?;
    drop_copy(sandbox)?;
    Ok(took)
}

/// Removes the copy, if it is whole.
fn drop_copy(sandbox: &Running) -> Result<()> {
    // Not `wc`: busybox's looks at each byte, which takes longer than the copy.
    let script = format!("[ $(stat -c %s /tmp/copy) = {BYTES} ] && rm /tmp/copy");
    sandbox.run(&["exec", &sandbox.name, "--", "sh", "-c", &script]).context("the copy is not whole")
}
