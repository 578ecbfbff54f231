//! Pages that need not be kept.

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// Whether a page, or what there is of one, holds nothing. Comparing runs at the speed of memory;
/// looking at byte after byte is ten times as slow.
pub(crate) fn is_zero(page: &[u8]) -> bool {
    const ZEROS: [u8; PAGE] = [0; PAGE];
    page.chunks(PAGE).all(|piece| piece == &ZEROS[..piece.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_anywhere_is_something() {
        for length in [0, 1, 7, PAGE, PAGE + 1, 3 * PAGE] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 1;
                assert!(!is_zero(&bytes), "byte {at} of {length}");
                bytes[at] = 0;
            }
        }
    }
}
