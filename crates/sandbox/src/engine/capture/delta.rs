//! Pages that differ from an image: an image that is shared, and a delta over it, make the RAM of a guest that has
//! written little since it was loaded from that image.
//!
//! A delta is a file: the pages, one after another, and then the number of each in RAM, as 64 bits, little-endian. It has
//! no holes that mean anything, so any copy of it is as good.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::pages::CHUNK;
use super::private::Private;
use crate::zeros::PAGE;

/// Bytes of a page and its number.
const ENTRY: u64 = PAGE as u64 + 8;
/// The most pages with which a capture goes on as a delta. Each guest that is loaded from it has a copy of them, which takes
/// time and memory; of a whole image it has none.
const MOST: usize = 2048;

/// A delta in the making.
#[derive(Debug)]
pub(super) struct Delta {
    private: Private,
    image: File,
    file: File,
    /// Where in the file each page lies: how many come before it.
    slots: HashMap<u64, u64>,
}

impl Delta {
    /// Writes what differs now, while the guest may change it, and says how many bytes that was. `None` if it is too much.
    pub(super) fn copy(private: Private, image: File, path: &Path) -> io::Result<Option<(Self, u64)>> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let mut delta = Self { private, image, file, slots: HashMap::new() };
        let written = delta.write_changed(MOST)?;
        Ok(written.map(|written| (delta, written)))
    }

    /// Corrects it, and completes it. Returns how many bytes differed.
    pub(super) fn finish(&mut self) -> io::Result<u64> {
        let corrected = self.write_changed(usize::MAX)?.unwrap_or_default();
        let mut numbers: Vec<_> = self.slots.iter().map(|(number, slot)| (slot, number)).collect();
        numbers.sort_unstable();
        let index: Vec<u8> = numbers.into_iter().flat_map(|(_, number)| number.to_le_bytes()).collect();
        self.file.write_all_at(&index, (self.slots.len() * PAGE) as u64)?;
        Ok(corrected)
    }

    fn write_changed(&mut self, most: usize) -> io::Result<Option<u64>> {
        let Self { private, image, file, slots } = self;
        let (mut under, mut old) = (Vec::new(), [0; PAGE]);
        let mut written = 0;
        let done = private.each_own(|at, bytes| {
            under.resize(bytes.len(), 0);
            image.read_exact_at(&mut under, at)?;
            for ((number, new), under) in (at / PAGE as u64..).zip(bytes.chunks(PAGE)).zip(under.chunks(PAGE)) {
                let slot = match slots.get(&number) {
                    Some(slot) => {
                        file.read_exact_at(&mut old, slot * PAGE as u64)?;
                        (new != old).then_some(*slot)
                    }
                    None => (new != under).then_some(slots.len() as u64),
                };
                let Some(slot) = slot else { continue };
                if slots.len() >= most {
                    return Ok(false);
                }
                file.write_all_at(new, slot * PAGE as u64)?;
                slots.insert(number, slot);
                written += PAGE as u64;
            }
            Ok(true)
        })?;
        Ok(done.then_some(written))
    }
}

/// Lays a delta over RAM of `length` bytes that a monitor, whose `memory` this is, has mapped copy-on-write at `address`. The
/// guest must not run.
///
/// # Errors
/// [`InvalidData`](io::ErrorKind::InvalidData) where it is no delta of such RAM; nothing is changed then.
pub(in crate::engine) fn lay(delta: &File, length: u64, memory: &File, address: u64) -> io::Result<()> {
    let damaged =
        |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, format!("the RAM's delta is damaged: {why}")));
    let bytes = delta.metadata()?.len();
    if bytes % ENTRY != 0 || bytes / ENTRY > length / PAGE as u64 {
        return damaged("it has a length that none has");
    }
    let count = bytes / ENTRY;
    let mut index = vec![0; count as usize * 8];
    delta.read_exact_at(&mut index, count * PAGE as u64)?;
    let numbers: Vec<_> = index.as_chunks().0.iter().map(|number| u64::from_le_bytes(*number)).collect();
    if numbers.iter().any(|number| *number >= length / PAGE as u64) {
        return damaged("it has a page beyond the RAM");
    }
    let (mut slot, mut bytes) = (0, vec![0; CHUNK]);
    for run in numbers.chunk_by(|one, next| one + 1 == *next).flat_map(|run| run.chunks(CHUNK / PAGE)) {
        let pages = &mut bytes[..run.len() * PAGE];
        delta.read_exact_at(pages, slot * PAGE as u64)?;
        memory.write_all_at(pages, address + run[0] * PAGE as u64)?;
        slot += run.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_delta_of_this_ram_is_refused() {
        const RAM: u64 = 100 * PAGE as u64;
        let memory = tempfile::tempfile().unwrap();
        let refused = |bytes: &[u8], why: &str| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            let error = lay(&file, RAM, &memory, 0).unwrap_err();
            assert_eq!(memory.metadata().unwrap().len(), 0, "it was written to");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            assert!(error.to_string().contains(why), "{error}");
        };
        let of = |numbers: &[u64]| {
            let index = numbers.iter().flat_map(|number| number.to_le_bytes());
            vec![7; numbers.len() * PAGE].into_iter().chain(index).collect::<Vec<_>>()
        };
        for length in [1, 8, PAGE, ENTRY as usize - 1, ENTRY as usize + 1, 2 * ENTRY as usize - 8] {
            refused(&vec![0; length], "a length that none has");
        }
        refused(&of(&(0..101).collect::<Vec<_>>()), "a length that none has");
        refused(&of(&[100]), "a page beyond the RAM");
        refused(&of(&[3, u64::MAX, 0]), "a page beyond the RAM");
        let good = of(&[3, 4, 9]);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&good, 0).unwrap();
        lay(&file, RAM, &memory, 0).unwrap();
        assert_eq!(memory.metadata().unwrap().len(), 10 * PAGE as u64);
    }
}
