//! The command and its shims, against real guests.

mod kills;
mod support;
mod verbs;
