//! Many words at a time.
//!
//! A processor's string instructions move and clear aligned 64-bit words, as the loops beside them do, only more
//! of them at once. To the language they are a sequence of relaxed loads or stores of atomic words, in no order
//! among themselves; what is stored after them comes after them (Intel SDM, volume 3, 9.2.4). They are used where
//! the processor says that it does them fast; an emulated one does not.

#![expect(unsafe_code, reason = "mapped memory is reached through raw pointers")]

use std::sync::LazyLock;

use crate::WORD;
use crate::sync::{AtomicU64, Ordering};

/// From how many bytes on a string instruction pays for its start.
const STRING: usize = 1024;

/// CPUID leaf 7, EBX bit 9: "enhanced REP MOVSB/STOSB", which tells of the wider ones as well.
static FAST_STRINGS: LazyLock<bool> = LazyLock::new(|| {
    use core::arch::x86_64::{__cpuid, __cpuid_count};
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & 1 << 9 != 0
});

fn is_bulk(bytes: usize) -> bool {
    bytes >= STRING && *FAST_STRINGS
}

/// Copies as many words as `out` holds.
///
/// # Safety
/// The words must lie inside a mapping.
#[inline]
pub(crate) unsafe fn copy_out(mut word: *const AtomicU64, out: &mut [u8]) {
    if is_bulk(out.len()) {
        // SAFETY: the caller's promise; `out` is as long, and nobody else's.
        return unsafe { move_words(word.cast(), out.as_mut_ptr(), out.len() / WORD) };
    }
    for bytes in out.as_chunks_mut::<WORD>().0 {
        // SAFETY: the caller's promise; an `AtomicU64` may be written by others, any bit pattern is valid.
        *bytes = unsafe { &*word }.load(Ordering::Relaxed).to_ne_bytes();
        // SAFETY: at most one past the words of the mapping.
        word = unsafe { word.add(1) };
    }
}

/// Copies `bytes`, whole words of them, to the words.
///
/// # Safety
/// The words must lie inside a mapping.
#[inline]
pub(crate) unsafe fn copy_in(mut word: *const AtomicU64, bytes: &[u8]) {
    if is_bulk(bytes.len()) {
        // SAFETY: the caller's promise; `bytes` is as long. Atomics may be written through a shared pointer.
        return unsafe { move_words(bytes.as_ptr(), word.cast_mut().cast(), bytes.len() / WORD) };
    }
    for chunk in bytes.as_chunks::<WORD>().0 {
        // SAFETY: as in `copy_out`.
        unsafe { &*word }.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
        // SAFETY: at most one past the words of the mapping.
        word = unsafe { word.add(1) };
    }
}

/// Clears `count` words.
///
/// # Safety
/// The words must lie inside a mapping.
#[inline]
pub(crate) unsafe fn zero(first: *const AtomicU64, count: usize) {
    if is_bulk(count * WORD) {
        // SAFETY: the caller's promise. Atomics may be written through a shared pointer.
        return unsafe { clear_words(first.cast_mut().cast(), count) };
    }
    for index in 0..count {
        // SAFETY: the caller's promise; see `copy_out` for the rest.
        unsafe { &*first.add(index) }.store(0, Ordering::Relaxed);
    }
}

/// # Safety
/// `count` words may be read at `from` and written at `to`. Who else has them uses them as atomics only.
unsafe fn move_words(from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: the caller's promise; the direction flag is clear between functions.
    unsafe {
        core::arch::asm!(
            "rep movsq", inout("rcx") count => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// # Safety
/// `count` words may be written at `to`. Who else has them uses them as atomics only.
unsafe fn clear_words(to: *mut u8, count: usize) {
    // SAFETY: the caller's promise; the direction flag is clear between functions.
    unsafe {
        core::arch::asm!(
            "rep stosq", inout("rcx") count => _, inout("rdi") to => _, in("rax") 0,
            options(nostack, preserves_flags)
        );
    }
}
