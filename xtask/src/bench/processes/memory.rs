//! What the machine's memory does without any ring: `memcpy`.

use std::hint::black_box;
use std::time::Instant;

/// The ring's size, for a copy that goes through as much memory.
const WIDE: usize = 4 << 20;
const LAPS: usize = 8;

/// Bytes a second.
#[derive(Clone, Copy)]
pub struct Copies {
    /// The same block to the same place: both stay in the core's own L2.
    pub hot: f64,
    /// The same block to successive places of a buffer as large as the ring: written to the L3.
    pub streaming: f64,
}

/// Copies blocks both ways.
pub fn copies(block: usize) -> Copies {
    let from = vec![7_u8; block];
    let mut place = vec![0_u8; block];
    let mut wide = vec![0_u8; WIDE];
    let hot = median_rate(block, || {
        for _ in 0..WIDE / block {
            black_box(&mut place[..]).copy_from_slice(black_box(&from));
        }
    });
    let streaming = median_rate(block, || {
        for part in wide.chunks_exact_mut(block) {
            black_box(part).copy_from_slice(black_box(&from));
        }
    });
    Copies { hot, streaming }
}

/// The median lap's rate, after one to warm up.
fn median_rate(block: usize, mut lap: impl FnMut()) -> f64 {
    lap();
    let mut rates: Vec<f64> = (0..LAPS)
        .map(|_| {
            let started = Instant::now();
            lap();
            (WIDE / block * block) as f64 / started.elapsed().as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[LAPS / 2]
}
