//! From a fuzzer's bytes to lists of operations.

use arbitrary::{Arbitrary, Unstructured};

/// How a run begins, and what is done in it; `None` where the bytes do not suffice for the one.
pub(crate) fn list<'a, S: Arbitrary<'a>, O: Arbitrary<'a>>(data: &'a [u8], most: usize) -> Option<(S, Vec<O>)> {
    let mut data = Unstructured::new(data);
    let start = S::arbitrary(&mut data).ok()?;
    let mut operations = Vec::new();
    // Bytes that have run out read as zeros, without end.
    while !data.is_empty() && operations.len() < most {
        operations.push(O::arbitrary(&mut data).ok()?);
    }
    Some((start, operations))
}

/// Bytes that are never zero, and differ from those close by.
#[derive(Debug, Default)]
pub(crate) struct Bytes(u64);

impl Bytes {
    pub(crate) fn take(&mut self, count: usize) -> Vec<u8> {
        let from = self.0;
        self.0 += count as u64;
        (from..self.0).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1).collect()
    }
}
