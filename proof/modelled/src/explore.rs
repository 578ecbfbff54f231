//! Loom's runs, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Executions end after so many steps, or something goes round for ever.
const MOST_STEPS: usize = 100_000;

/// Runs a model in every order that the memory model allows, or in those with so many preemptions at most, and
/// tells their number.
///
/// Each side attaches before the threads begin: of a thread that loads a word and then stores to it, loom does
/// not try the store before another thread's load.
pub fn explore(what: &str, preemptions: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let executions = Arc::new(AtomicU64::new(0));
    let counted = executions.clone();
    let mut builder = loom::model::Builder::new();
    builder.max_branches = MOST_STEPS;
    builder.preemption_bound = preemptions;
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let unit = preemptions.map_or("executions, all there are".to_owned(), |most| {
        format!("executions, all with {most} preemptions at most")
    });
    throughline_effort::proved(what, executions.load(Ordering::Relaxed), &unit);
}
