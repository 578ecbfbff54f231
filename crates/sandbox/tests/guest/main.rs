//! Sandboxes as their users see them, on real guests.
//!
//! Most tests restore one template, which is booted once and kept between runs: that takes a fraction
//! of a boot.

mod bell;
mod checkpoints;
mod delta;
mod ends;
mod exec;
mod files;
mod folders;
mod fork;
mod generations;
mod half_way;
mod hardware;
mod host_death;
mod identity;
mod idle;
mod in_flight;
mod lineage;
mod numbered;
mod pool;
mod quiet;
mod rootfs;
mod secrets;
mod space;
mod support;
mod terminal;
mod unquiesced;
#[path = "../userland/mod.rs"]
mod userland;
