//! A channel of bytes, for threads.

use std::io::{self, Read, Write};
use std::time::Duration;

use super::{Link, Patience};
use crate::{ChannelId, ChannelInfo, Error};

/// A channel of bytes. Dropping it closes both directions, after what was written.
///
/// `Read` hands bytes over once: if the application dies with them, they are gone. Who needs more peeks,
/// processes, and commits. Every byte that `Write` accepts is published when the call returns, so flushing does
/// nothing.
#[derive(Debug)]
pub struct Stream {
    reader: StreamReader,
    writer: StreamWriter,
}

/// The reading half.
#[derive(Debug)]
pub struct StreamReader {
    inner: crate::StreamReader,
    patience: Patience,
}

/// The writing half. Dropping it does not end the direction; `shutdown` does.
#[derive(Debug)]
pub struct StreamWriter {
    inner: crate::StreamWriter,
    patience: Patience,
}

impl Stream {
    pub(super) fn new(stream: crate::Stream, link: &Link) -> Self {
        let (reader, writer) = stream.into_split();
        let patience = Patience::new(link);
        let reader = StreamReader { inner: reader, patience: patience.clone() };
        Self { reader, writer: StreamWriter { inner: writer, patience } }
    }

    /// Two halves for two threads. The channel closes with the last of them.
    pub fn into_split(self) -> (StreamReader, StreamWriter) {
        (self.reader, self.writer)
    }

    /// How long each call waits, in either direction; for as long as it takes, unless said otherwise.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.reader.set_timeout(timeout);
        self.writer.set_timeout(timeout);
    }

    /// The channel's name, for a successor that adopts it.
    pub fn id(&self) -> ChannelId {
        self.reader.inner.0.id()
    }

    /// Positions and bytes in flight.
    pub fn info(&self) -> Result<ChannelInfo, Error> {
        self.reader.info()
    }

    /// See [`StreamReader::peek`].
    pub fn peek(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        self.reader.peek(out)
    }

    /// See [`StreamReader::commit`].
    pub fn commit(&mut self, bytes: usize) -> Result<(), Error> {
        self.reader.commit(bytes)
    }

    /// See [`StreamWriter::shutdown`].
    pub fn shutdown(&mut self) -> Result<(), Error> {
        self.writer.shutdown()
    }

    /// Closes both directions and drops what the peer has not read.
    pub fn abort(self) {
        self.whole().abort();
    }

    /// Lets go of the channel without closing it; it can be adopted by its id.
    pub fn release(self) -> ChannelId {
        self.whole().release()
    }

    fn whole(self) -> crate::Stream {
        crate::Stream::from_split(self.reader.inner, self.writer.inner)
    }
}

impl StreamReader {
    /// How long each call waits; for as long as it takes, unless said otherwise.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.patience.timeout = timeout;
    }

    /// Copies unread bytes without consuming them, and returns their number; zero at the end. Waits
    /// until there is at least one.
    pub fn peek(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        self.patience.wait(self.inner.peek(out))
    }

    /// Consumes bytes that were peeked at. Waits only for a freeze to end.
    pub fn commit(&mut self, bytes: usize) -> Result<(), Error> {
        self.patience.wait(self.inner.commit(bytes))
    }

    /// Reads what is there, without waiting: `None` if there is nothing now, zero bytes at the end.
    pub fn try_read(&mut self, out: &mut [u8]) -> Result<Option<usize>, Error> {
        self.inner.try_read(out)
    }

    /// Positions and bytes in flight.
    pub fn info(&self) -> Result<ChannelInfo, Error> {
        self.inner.info()
    }
}

impl StreamWriter {
    /// How long each call waits; for as long as it takes, unless said otherwise.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.patience.timeout = timeout;
    }

    /// Writes what there is space for, without waiting: `None` if there is none now.
    pub fn try_write(&mut self, bytes: &[u8]) -> Result<Option<usize>, Error> {
        self.inner.try_write(bytes)
    }

    /// Ends this direction: the peer reads what was written, and then the end.
    pub fn shutdown(&mut self) -> Result<(), Error> {
        self.patience.wait(self.inner.end())
    }

    /// Positions and bytes in flight.
    pub fn info(&self) -> Result<ChannelInfo, Error> {
        self.inner.info()
    }
}

impl Read for StreamReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        Ok(self.patience.wait(self.inner.read_some(out))?)
    }
}

impl Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.patience.wait(self.inner.write_some(bytes))?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.reader.read(out)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
