//! Bytes in pieces that come from elsewhere, or go there: a thread's ends of two queues. Buffers go round, so that
//! no piece costs fresh memory.

use std::io::{self, BufRead, Read, Write};

use throughline_wire::files::HEADER;
use tokio::sync::mpsc::{Receiver, Sender};

/// What comes to a thread.
#[derive(Debug)]
pub(crate) enum Piece {
    /// A whole data frame.
    Data(Vec<u8>),
    /// Everything has come.
    End,
}

/// What was received.
#[derive(Debug)]
pub struct Input {
    full: Receiver<Piece>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Input {
    pub(crate) fn new(full: Receiver<Piece>, empty: Sender<Vec<u8>>) -> Self {
        Self { full, empty, current: Vec::new(), at: 0, ended: false }
    }
}

impl BufRead for Input {
    /// Bytes that have come; none only at the announced end. A channel that ended before is an error.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at >= self.current.len() && !self.ended {
            // The queue has room for every buffer there is; nobody takes them once everything has come.
            let _ = self.empty.try_send(std::mem::take(&mut self.current));
            self.at = 0;
            match self.full.blocking_recv() {
                Some(Piece::Data(frame)) => (self.current, self.at) = (frame, HEADER),
                Some(Piece::End) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        Ok(self.current.get(self.at..).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.fill_buf()?;
        let length = bytes.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

/// What is to be sent.
#[derive(Debug)]
pub struct Output {
    full: Sender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    /// Length of a whole frame.
    whole: usize,
}

impl Output {
    pub(crate) fn new(full: Sender<Vec<u8>>, empty: Receiver<Vec<u8>>, data: usize) -> Self {
        Self { full, empty, current: Vec::new(), at: 0, whole: HEADER + data.max(1) }
    }

    /// Where the next bytes go: at least one.
    pub fn space(&mut self) -> io::Result<&mut [u8]> {
        if self.at >= self.current.len() {
            self.pass_on()?;
            let mut frame = self.empty.blocking_recv().ok_or(io::ErrorKind::BrokenPipe)?;
            frame.resize(self.whole, 0);
            (self.current, self.at) = (frame, HEADER);
        }
        Ok(self.current.get_mut(self.at..).unwrap_or_default())
    }

    /// So many bytes were put into [`space`](Self::space).
    pub fn filled(&mut self, bytes: usize) {
        self.at = (self.at + bytes).min(self.current.len());
    }

    /// Sends what there is. An error if nobody wants it any more.
    pub fn pass_on(&mut self) -> io::Result<()> {
        let mut frame = std::mem::take(&mut self.current);
        frame.truncate(self.at);
        self.at = 0;
        if frame.len() <= HEADER {
            return Ok(());
        }
        self.full.blocking_send(frame).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let length = self.space()?.write(bytes)?;
        self.filled(length);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass_on()
    }
}
