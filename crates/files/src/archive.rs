//! Tar archives, a header at a time. The format is the `tar` crate's; its own reader keeps names of any length in
//! memory, and copies the bytes once more.

use std::io::{self, BufRead, Write};

use tar::{EntryType, Header, PaxExtensions};
use throughline_wire::files::{Failure, FailureKind};

use crate::chunks::Output;
use crate::failure::failure;

/// Bytes of a header, and what data is rounded up to.
const BLOCK: usize = 512;
/// Longest name, and longest set of extended attributes, in bytes.
const MAX_EXTENSION: u64 = 64 * 1024;

/// One thing in an archive.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: EntryType,
    pub(crate) mode: u32,
    pub(crate) mtime: u64,
    pub(crate) size: u64,
    /// What a link names.
    pub(crate) link: Vec<u8>,
}

/// What stands before an entry and changes it.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

/// The next entry, whose data follows; `None` at the archive's end, after which nothing is looked at.
pub(crate) fn next(input: &mut impl BufRead) -> Result<Option<Entry>, Failure> {
    let mut extensions = Extensions::default();
    loop {
        let Some(header) = header(input)? else { return Ok(None) };
        let bad = |error: io::Error| malformed(error.to_string());
        let size = header.entry_size().map_err(bad)?;
        let kind = header.entry_type();
        match kind {
            EntryType::GNULongName => extensions.path = Some(name(extension(input, size)?)),
            EntryType::GNULongLink => extensions.link = Some(name(extension(input, size)?)),
            EntryType::XHeader => extensions.read(&extension(input, size)?),
            EntryType::XGlobalHeader => drop(extension(input, size)?),
            _ => {
                let has_data = kind.is_file() || kind.is_contiguous();
                return Ok(Some(Entry {
                    path: extensions.path.unwrap_or_else(|| header.path_bytes().into_owned()),
                    kind,
                    mode: header.mode().map_err(bad)?,
                    mtime: header.mtime().map_err(bad)?,
                    size: if has_data { extensions.size.unwrap_or(size) } else { 0 },
                    link: extensions.link.or_else(|| header.link_name_bytes().map(Into::into)).unwrap_or_default(),
                }));
            }
        }
    }
}

impl Extensions {
    fn read(&mut self, records: &[u8]) {
        for record in PaxExtensions::new(records).flatten() {
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                b"size" => self.size = record.value().ok().and_then(|size| size.parse().ok()),
                _ => {}
            }
        }
    }
}

/// The next header that is not empty.
fn header(input: &mut impl BufRead) -> Result<Option<Header>, Failure> {
    let mut header = Header::new_old();
    let block = header.as_mut_bytes();
    // An archive without its two empty blocks is one all the same, if it ends here.
    if at_end(input)? {
        return Ok(None);
    }
    exactly(input, block)?;
    if block.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    let (before, rest) = block.split_at(148);
    let sum = before.iter().chain(&[b' '; 8]).chain(&rest[8..]).map(|&byte| u32::from(byte)).sum::<u32>();
    if header.cksum().ok() != Some(sum) {
        return Err(malformed("this is no tar archive, or it is damaged"));
    }
    Ok(Some(header))
}

fn at_end(input: &mut impl BufRead) -> Result<bool, Failure> {
    input.fill_buf().map(<[u8]>::is_empty).map_err(cut_off)
}

fn exactly(input: &mut impl BufRead, buffer: &mut [u8]) -> Result<(), Failure> {
    input.read_exact(buffer).map_err(cut_off)
}

/// A short entry's data.
fn extension(input: &mut impl BufRead, size: u64) -> Result<Vec<u8>, Failure> {
    if size > MAX_EXTENSION {
        return Err(malformed(format!("a name or attribute of {size} bytes; at most {MAX_EXTENSION}")));
    }
    let mut data = vec![0; size as usize];
    exactly(input, &mut data)?;
    skip_padding(input, size)?;
    Ok(data)
}

/// Reads up to the next header.
pub(crate) fn skip_padding(input: &mut impl BufRead, size: u64) -> Result<(), Failure> {
    exactly(input, &mut [0; BLOCK][..padding(size)])
}

fn padding(size: u64) -> usize {
    size.next_multiple_of(BLOCK as u64).wrapping_sub(size) as usize
}

/// Without the zero that ends it.
fn name(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

pub(crate) fn malformed(message: impl Into<String>) -> Failure {
    failure(FailureKind::Malformed, b"archive", message)
}

/// What reading came to that should have found more.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn cut_off(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => malformed("it ends before it is complete"),
        _ => malformed(error.to_string()),
    }
}

/// Writes an entry's header; its data and [`pad`] follow.
pub(crate) fn write(output: &mut Output, entry: &Entry) -> io::Result<()> {
    let mut header = Header::new_gnu();
    if let Some(gnu) = header.as_gnu_mut() {
        set(output, &mut gnu.name, &entry.path, EntryType::GNULongName)?;
        set(output, &mut gnu.linkname, &entry.link, EntryType::GNULongLink)?;
    }
    header.set_entry_type(entry.kind);
    header.set_mode(entry.mode);
    header.set_mtime(entry.mtime);
    header.set_size(entry.size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    output.write_all(header.as_bytes())
}

/// Puts a name into its field; one that is too long stands in an entry before.
fn set(output: &mut Output, field: &mut [u8], value: &[u8], long: EntryType) -> io::Result<()> {
    let fitting = value.len().min(field.len());
    field[..fitting].copy_from_slice(&value[..fitting]);
    if value.len() > field.len() {
        let mut header = Header::new_gnu();
        if let Some(gnu) = header.as_gnu_mut() {
            gnu.name[..LONG.len()].copy_from_slice(LONG);
        }
        header.set_entry_type(long);
        header.set_mode(0o644);
        header.set_size(value.len() as u64 + 1);
        header.set_cksum();
        output.write_all(header.as_bytes())?;
        output.write_all(value)?;
        output.write_all(&[0])?;
        pad(output, value.len() as u64 + 1)?;
    }
    Ok(())
}

const LONG: &[u8] = b"././@LongLink";

/// Fills an entry's last block.
pub(crate) fn pad(output: &mut Output, size: u64) -> io::Result<()> {
    output.write_all(&[0; BLOCK][..padding(size)])
}

/// Ends an archive.
pub(crate) fn end(output: &mut Output) -> io::Result<()> {
    output.write_all(&[0; 2 * BLOCK])
}
