//! Loom's runs, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use throughline_effort::{is_full, proved};

/// Executions end after so many steps, or something goes round for ever.
const MOST_STEPS: usize = 100_000;
/// The full effort of a model ends after so long, whatever it came to by then: some models have more orders than
/// days have seconds.
const MOST_TIME: Duration = Duration::from_secs(600);
/// Executions between two looks at the clock.
const LOOK: usize = 1000;

/// Runs a model in every order that the memory model allows, or in those with so many preemptions at most, and
/// tells their number, and whether the time did for all of them.
///
/// Each side attaches before the threads begin: of a thread that loads a word and then stores to it, loom does
/// not try the store before another thread's load.
pub fn explore(what: &str, preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let executions = Arc::new(AtomicU64::new(0));
    let counted = executions.clone();
    let mut builder = loom::model::Builder::new();
    builder.max_branches = MOST_STEPS;
    builder.preemption_bound = preemptions;
    builder.max_duration = is_full().then_some(MOST_TIME);
    builder.checkpoint_interval = LOOK;
    let began = Instant::now();
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let all = if is_full() && began.elapsed() >= MOST_TIME { "not all" } else { "all" };
    let unit = preemptions.map_or(format!("executions, {all} there are"), |most| {
        format!("executions, {all} with {most} preemptions at most")
    });
    proved(what, executions.load(Ordering::Relaxed), &unit);
}
