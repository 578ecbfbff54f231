//! What a guest's machine has.

use serde::{Deserialize, Serialize};

use super::EngineError;

/// Whether a machine has a network. A saved one has in a restore what it had, though its connections end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Net {
    /// None: its guest has a loopback, and no network card.
    #[default]
    None,
    /// A network of its own behind address translation: the guest reaches what the monitor's user reaches from this
    /// host, the host's own loopback included (as 10.0.2.2), and nobody reaches the guest.
    User,
}

/// What a machine has; a saved one loads only into the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// Memory in MiB, from [`LEAST_MEMORY_MIB`](Self::LEAST_MEMORY_MIB) to [`MOST_MEMORY_MIB`](Self::MOST_MEMORY_MIB).
    pub memory_mib: u32,
    /// Processors, from 1 to [`MOST_CPUS`](Self::MOST_CPUS).
    #[serde(default = "one")]
    pub cpus: u32,
    /// Its network.
    #[serde(default)]
    pub net: Net,
}

/// Machines had one processor before their number was recorded.
fn one() -> u32 {
    1
}

impl Default for Hardware {
    fn default() -> Self {
        Self { memory_mib: 256, cpus: 1, net: Net::None }
    }
}

impl Hardware {
    /// The least memory of a new machine: with less, there is no room for the distribution's kernel and the agent.
    pub const LEAST_MEMORY_MIB: u32 = 96;

    /// The most memory of any machine: an emulated one addresses 1 TiB, and the region comes after it.
    pub const MOST_MEMORY_MIB: u32 = 512 << 10;

    /// The most processors of any machine.
    pub const MOST_CPUS: u32 = 255;

    /// The most processors that a new machine gets: as many as the host has. With more, a guest waits for processors
    /// that do not run, at each of its locks.
    pub fn most_cpus_here() -> u32 {
        let here = std::thread::available_parallelism().map_or(1, usize::from);
        u32::try_from(here).unwrap_or(u32::MAX).min(Self::MOST_CPUS)
    }

    /// Refuses what a new machine cannot have here.
    pub(crate) fn check_new(self) -> Result<(), EngineError> {
        let (asked, least, most) = (self.memory_mib, Self::LEAST_MEMORY_MIB, Self::MOST_MEMORY_MIB);
        if !(least..=most).contains(&asked) {
            return Err(EngineError::Memory { asked, least, most });
        }
        self.check_cpus(Self::most_cpus_here(), "this host has as many")
    }

    /// Refuses what no machine can have. A saved machine goes on also where the host has fewer processors.
    pub(super) fn check(self) -> Result<(), EngineError> {
        self.check_cpus(Self::MOST_CPUS, "no machine has more")
    }

    /// The guest-physical address of the region: a frozen guest knows it. The board has memory devices at a GiB's
    /// boundary behind RAM, of which 2 GiB lie below the first 4 GiB where there is more (`pc_q35_init` and
    /// `pc_memory_init` of QEMU).
    pub fn region_address(self) -> u64 {
        const BELOW_MIB: u64 = 2 << 10;
        let above_gib = u64::from(self.memory_mib).saturating_sub(BELOW_MIB).div_ceil(1 << 10);
        // Machines with little memory have had it there from the beginning.
        (4 + above_gib.max(1)) << 30
    }

    fn check_cpus(self, most: u32, because: &'static str) -> Result<(), EngineError> {
        if (1..=most).contains(&self.cpus) {
            return Ok(());
        }
        Err(EngineError::Processors { asked: self.cpus, most, because })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_no_more_processors_than_the_host_and_room_for_a_kernel() {
        let with = |cpus| Hardware { cpus, ..Hardware::default() };
        let most = Hardware::most_cpus_here();
        with(1).check_new().unwrap();
        with(most).check_new().unwrap();
        for bad in [0, most + 1, u32::MAX] {
            let refused = with(bad).check_new().unwrap_err().to_string();
            assert!(refused.contains(&bad.to_string()) && refused.contains(&format!("1 to {most}")), "{refused}");
        }
        for bad in [0, 95, (512 << 10) + 1, u32::MAX] {
            let refused = Hardware { memory_mib: bad, ..with(1) }.check_new().unwrap_err().to_string();
            assert!(refused.contains(&format!("{bad} MiB")) && refused.contains("96 to 524288"), "{refused}");
        }
        with(Hardware::MOST_CPUS).check().unwrap();
        with(Hardware::MOST_CPUS + 1).check().unwrap_err();
    }

    #[test]
    fn the_region_lies_behind_ram() {
        let at = |memory_mib| Hardware { memory_mib, ..Hardware::default() }.region_address();
        for (mib, gib) in [(96, 5), (2048, 5), (3072, 5), (3073, 6), (4096, 6), (8192, 10), (512 << 10, 514)] {
            assert_eq!(at(mib), gib << 30, "{mib}");
        }
    }

    #[test]
    fn what_was_recorded_before_there_was_a_number_of_processors_has_one() {
        let old: Hardware = serde_json::from_str(r#"{"memory_mib":512}"#).unwrap();
        assert_eq!(old, Hardware { memory_mib: 512, cpus: 1, net: Net::None });
    }
}
