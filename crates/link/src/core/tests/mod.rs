//! The core under fault injection: what no driver and no timing is needed for.

mod abort;
mod app;
mod control;
mod hostile;
mod kill;
mod killed;
mod mended;
mod ops;
mod pairs;
mod racing;
mod random;
mod rig;
mod scene;
mod secrets;
mod standing;
