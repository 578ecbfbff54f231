//! What the figures were taken on.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;
use throughline_sandbox::engine::{Accelerator, Engine, Qemu};

/// The machine, and what guests run on.
#[derive(Debug, Serialize)]
pub struct Surroundings {
    processor: String,
    cores: usize,
    kernel: String,
    /// Load average of the last minute before the start: others' work shows in every figure.
    load: String,
    guests: Option<Guests>,
}

#[derive(Debug, Serialize)]
struct Guests {
    monitor: String,
    machine_type: String,
    accelerator: Accelerator,
    reason: String,
}

impl Surroundings {
    pub fn look(with_guests: bool) -> Result<Self> {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find(|line| line.starts_with("model name"));
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let system = rustix::system::uname();
        Ok(Self {
            processor: model.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            kernel: system.release().to_string_lossy().into_owned(),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            guests: if with_guests { Some(Guests::look()?) } else { None },
        })
    }

    pub fn to_text(&self) -> String {
        let Self { processor, cores, kernel, load, guests } = self;
        let machine = format!("{processor}, {cores} cores, Linux {kernel}, load {load} at the start");
        match guests {
            None => machine,
            Some(Guests { monitor, machine_type, reason, .. }) => {
                format!("{machine}\n{monitor}, {machine_type}; {reason}")
            }
        }
    }
}

impl Guests {
    fn look() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let found = runtime.block_on(Qemu::new().capabilities()).context("cannot ask the monitor what it can do")?;
        let machine = found.machine;
        Ok(Self {
            monitor: format!("{} {}", machine.engine, machine.version),
            machine_type: machine.machine_type,
            accelerator: machine.accelerator,
            reason: found.accelerator_reason,
        })
    }
}
