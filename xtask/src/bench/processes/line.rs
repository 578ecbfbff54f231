//! A signal that two processes pass to and fro, each in a cache line of its own: how near their cores
//! are, now. It is the least that a message and its answer can cost where each word has one writer.

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

/// The place of the leader's word, in words.
const LEADER: usize = 0;
/// That of the follower's: two cache lines further, as processors fetch them in pairs.
const FOLLOWER: usize = 16;

/// Each side counts passes in a word of its own, in a page that serves nothing else.
pub struct Line(Mapping);

impl Line {
    pub fn new(page: Mapping) -> Self {
        Self(page)
    }

    /// Leads, and returns the nanoseconds of a pass to and fro: the median of batches, as any of them
    /// may have been interrupted.
    pub fn lead(&self, gait: Gait) -> Result<f64> {
        let mut batches = Vec::with_capacity(BATCHES);
        let mut pass = 0;
        for batch in 0..WARM_UP + BATCHES {
            let started = Instant::now();
            for _ in 0..BATCH {
                pass += 1;
                self.0.store(LEADER, pass, Ordering::Release);
                self.wait(FOLLOWER, pass, gait)?;
            }
            if batch >= WARM_UP {
                batches.push(started.elapsed().as_secs_f64() * 1e9 / 64.0);
            }
        }
        Ok(Samples::new(batches)?.median())
    }

    pub fn follow(&self, gait: Gait) -> Result<()> {
        for pass in 1..=(WARM_UP + BATCHES) as u64 * BATCH {
            self.wait(LEADER, pass, gait)?;
            self.0.store(FOLLOWER, pass, Ordering::Release);
        }
        Ok(())
    }

    /// To be called before the follower is told to begin.
    pub fn reset(&self) {
        self.0.store(LEADER, 0, Ordering::Release);
        self.0.store(FOLLOWER, 0, Ordering::Release);
    }

    fn wait(&self, word: usize, pass: u64, gait: Gait) -> Result<()> {
        let mut patience = Patience::new();
        while self.0.load(word, Ordering::Acquire) != pass {
            if gait == Gait::Pause {
                std::hint::spin_loop();
            }
            patience.count()?;
        }
        Ok(())
    }
}
