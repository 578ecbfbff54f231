//! The command and its shims, against real guests.

mod aborts;
mod checkpoints;
mod clients;
mod clocks;
mod creators;
mod crowd;
mod doctor;
mod dying;
mod examples;
mod forks;
mod kills;
mod last_reads;
mod limits;
mod pools;
mod random;
mod roll_backs;
mod schema;
mod secrets;
mod space;
mod stops;
mod support;
mod terminals;
mod timeouts;
mod tour;
mod verbs;
mod versions;
