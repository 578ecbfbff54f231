//! The command and its shims, against real guests.

mod clients;
mod creators;
mod doctor;
mod kills;
mod support;
mod tour;
mod verbs;
mod versions;
