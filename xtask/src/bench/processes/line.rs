//! A cache line that two processes pass to and fro: how near their cores are, now.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use throughline_shmem::sync::Ordering;
use throughline_shmem::{Mapping, Words};

use crate::bench::figure::Samples;

/// Passes between two looks at the clock.
const BATCH: u64 = 64;
/// The first of them wait for the peer to begin.
const WARM_UP: usize = 16;
const BATCHES: usize = 256;

/// How to wait for the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Gait {
    /// Looking all the time.
    Rush,
    /// With a pause instruction between two looks, as the link's pollers do.
    Pause,
}

/// Ends a polling loop whose peer has died.
pub struct Patience {
    looks: u32,
    began: Option<Instant>,
}

impl Patience {
    const LOOKS: u32 = 1 << 16;
    const DEADLINE: Duration = Duration::from_secs(10);

    pub fn new() -> Self {
        Self { looks: 0, began: None }
    }

    /// To be called after each fruitless look.
    #[inline]
    pub fn look(&mut self) -> Result<()> {
        std::hint::spin_loop();
        self.count()
    }

    #[inline]
    fn count(&mut self) -> Result<()> {
        self.looks += 1;
        if self.looks < Self::LOOKS {
            return Ok(());
        }
        self.looks = 0;
        let began = *self.began.get_or_insert_with(Instant::now);
        ensure!(began.elapsed() < Self::DEADLINE, "the peer did nothing for {:?}", Self::DEADLINE);
        Ok(())
    }
}

/// One word in a page of its own: odd while it is the follower's turn, even while it is the leader's.
pub struct Line(Mapping);

impl Line {
    pub fn new(page: Mapping) -> Self {
        Self(page)
    }

    /// Leads, and returns the nanoseconds of a pass to and fro: the median of batches, as any of them
    /// may have been interrupted.
    pub fn lead(&self, gait: Gait) -> Result<f64> {
        let mut batches = Vec::with_capacity(BATCHES);
        let mut turn = 0;
        for batch in 0..WARM_UP + BATCHES {
            let started = Instant::now();
            for _ in 0..BATCH {
                self.0.store(0, turn + 1, Ordering::Release);
                turn += 2;
                self.wait(turn, gait)?;
            }
            if batch >= WARM_UP {
                batches.push(started.elapsed().as_secs_f64() * 1e9 / 64.0);
            }
        }
        Ok(Samples::new(batches)?.median())
    }

    pub fn follow(&self, gait: Gait) -> Result<()> {
        for pass in 0..(WARM_UP + BATCHES) as u64 * BATCH {
            self.wait(2 * pass + 1, gait)?;
            self.0.store(0, 2 * pass + 2, Ordering::Release);
        }
        Ok(())
    }

    /// The leader's turn begins. To be called before the follower is told to begin.
    pub fn reset(&self) {
        self.0.store(0, 0, Ordering::Release);
    }

    fn wait(&self, turn: u64, gait: Gait) -> Result<()> {
        let mut patience = Patience::new();
        while self.0.load(0, Ordering::Acquire) != turn {
            if gait == Gait::Pause {
                std::hint::spin_loop();
            }
            patience.count()?;
        }
        Ok(())
    }
}
