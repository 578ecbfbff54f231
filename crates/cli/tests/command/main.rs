//! The command and its shims, against real guests.

mod aborts;
mod checkpoints;
mod clients;
mod clocks;
mod creators;
mod doctor;
mod dying;
mod examples;
mod forks;
mod kills;
mod pools;
mod random;
mod schema;
mod secrets;
mod stops;
mod support;
mod terminals;
mod tour;
mod verbs;
mod versions;
