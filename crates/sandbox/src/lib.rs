//! Sandboxes on microVMs: boot, exec, snapshot, restore.
//!
//! | Module | Purpose |
//! |---|---|
//! | [`image`] | what a guest boots from: kernel and initramfs, built once and cached by content |
//! | [`engine`] | one trait for virtual machine monitors; QEMU is the first |

pub mod engine;
mod folders;
pub mod image;

/// The guest's agent: a static executable, process 1 of every guest.
pub static AGENT: &[u8] = include_bytes!(env!("THROUGHLINE_AGENT_BINARY"));
