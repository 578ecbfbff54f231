//! The command and its shims, against real guests.

mod aborts;
mod checkpoints;
mod clients;
mod creators;
mod doctor;
mod examples;
mod forks;
mod kills;
mod pools;
mod schema;
mod secrets;
mod stops;
mod support;
mod terminals;
mod tour;
mod verbs;
mod versions;
