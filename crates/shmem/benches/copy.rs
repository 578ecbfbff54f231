//! Bulk copies through a mapping beside `memcpy`, hot: GB/s, the median of several runs.

use std::hint::black_box;
use std::time::Instant;

use throughline_shmem::{Mapping, Populate, Words};

const RUNS: usize = 31;
const BYTES_PER_RUN: usize = 256 << 20;

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn median_rate(size: usize, mut copy: impl FnMut()) -> f64 {
    let rounds = BYTES_PER_RUN / size;
    let mut rates: Vec<f64> = (0..RUNS)
        .map(|_| {
            let start = Instant::now();
            (0..rounds).for_each(|_| copy());
            (rounds * size) as f64 / start.elapsed().as_secs_f64() / 1e9
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[RUNS / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const LARGEST: usize = 1 << 20;
    let fd = rustix::fs::memfd_create("copy-bench", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, LARGEST as u64)?;
    let mapping = Mapping::file(&fd, LARGEST as u64, Populate::Now)?;
    println!("{:>9} {:>9} {:>9} {:>9} {:>9} {:>9}", "bytes", "out", "out+3", "in", "zero", "memcpy");
    for size in [64, 1 << 10, 4 << 10, 64 << 10, LARGEST] {
        let mut buffer = vec![1; size + 8];
        let from = vec![2; size];
        let out = median_rate(size, || mapping.copy_out(0, black_box(&mut buffer[..size])));
        let unaligned = median_rate(size, || {
            mapping.copy_out(0, black_box(&mut buffer[3..size + 3]));
        });
        let into = median_rate(size, || mapping.copy_in(0, black_box(&from)));
        let zero = median_rate(size, || mapping.zero(0, black_box(size / 8)));
        let plain = median_rate(size, || {
            black_box(&mut buffer[..size]).copy_from_slice(black_box(&from));
        });
        println!("{size:>9} {out:>9.1} {unaligned:>9.1} {into:>9.1} {zero:>9.1} {plain:>9.1}");
    }
    Ok(())
}
