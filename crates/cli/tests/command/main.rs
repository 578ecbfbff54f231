//! The command and its shims, against real guests.

mod doctor;
mod kills;
mod support;
mod tour;
mod verbs;
