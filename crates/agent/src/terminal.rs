//! Terminals of commands: the agent holds one end, the command lives on the other.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Gid, OFlags, Uid, fchown, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize};
use throughline_wire::exec::WindowSize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How often a terminal is looked at that was hung up once, so that its readiness tells nothing any more.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Both ends of a new terminal.
#[derive(Debug)]
pub(crate) struct Ends {
    /// The agent's, non-blocking.
    pub(crate) agent: OwnedFd,
    /// The command's.
    pub(crate) command: OwnedFd,
}

/// Opens a terminal that belongs to a user, who may then open it by its name too.
pub(crate) fn open(size: WindowSize, owner: Uid) -> io::Result<Ends> {
    let agent = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&agent)?;
    // Not by its name, which may mean something else, or nothing, where the user's files lie.
    let command = ioctl_tiocgptpeer(&agent, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    fchown(&command, Some(owner), None::<Gid>)?;
    resize(&agent, size)?;
    fcntl_setfl(&agent, fcntl_getfl(&agent)? | OFlags::NONBLOCK)?;
    Ok(Ends { agent, command })
}

fn resize(terminal: impl AsFd, size: WindowSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

/// The agent's end of a command's terminal.
#[derive(Debug)]
pub(crate) struct Terminal(AsyncFd<File>);

impl Terminal {
    /// Of the end that [`open`] gave.
    pub(crate) fn new(end: OwnedFd) -> io::Result<Self> {
        crate::sys::watch(File::from(end), Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// What was printed next; nothing when nobody has the command's end open any more. Cancel-safe.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.when(Interest::READABLE, |mut terminal| terminal.read(buffer)).await {
            // A hung-up terminal says so only when all that was printed has been read.
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(0),
            read => read,
        }
    }

    /// Types. Waits while the command does not read; an error once nobody can any more.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.when(Interest::WRITABLE, |mut terminal| terminal.write(bytes)).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Does something as soon as it would not block. A hang-up stays "ready" for ever in the runtime's eyes, and
    /// writing to a hung-up terminal would block all the same: waiting on that alone would spin.
    async fn when<T>(&self, interest: Interest, mut act: impl FnMut(&File) -> io::Result<T>) -> io::Result<T> {
        loop {
            let mut guard = self.0.ready(interest).await?;
            let is_hung_up = guard.ready().is_read_closed() || guard.ready().is_write_closed();
            match guard.try_io(|file| act(file.get_ref())) {
                Ok(done) => return done,
                Err(_) if !is_hung_up => {}
                Err(_) if self.is_hung_up()? => return Err(io::ErrorKind::BrokenPipe.into()),
                // Somebody has opened it again by its name.
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Whether nobody has the command's end open at this moment.
    fn is_hung_up(&self) -> io::Result<bool> {
        let mut look = [PollFd::new(self.0.get_ref(), PollFlags::empty())];
        poll(&mut look, Some(&Timespec::default()))?;
        Ok(look.iter().any(|look| look.revents().contains(PollFlags::HUP)))
    }

    /// Types the end of input, after a last byte: in the middle of a line the first end-of-file character only
    /// hands over what was typed so far. Nothing where the terminal has no such character.
    pub(crate) async fn write_end(&self, last: Option<u8>) -> io::Result<()> {
        let settings = tcgetattr(self.0.get_ref())?;
        let end = settings.special_codes[SpecialCodeIndex::VEOF];
        let in_a_line = settings.local_modes.contains(LocalModes::ICANON) && last.is_some_and(|last| last != b'\n');
        let ends: &[u8] = match (end, in_a_line) {
            (0, _) => &[],
            (_, true) => &[end, end],
            (_, false) => &[end],
        };
        self.write_all(ends).await
    }

    /// The window has another size: tells the foreground processes.
    pub(crate) fn resize(&self, size: WindowSize) -> io::Result<()> {
        resize(self.0.get_ref(), size)
    }
}
