//! Switches that break a promise on purpose, to show that its check would notice.
//!
//! They exist only with the feature `test-switches`, which nothing that is shipped turns on.

use core::sync::atomic::{AtomicBool, Ordering};

static UNSCRUBBED: AtomicBool = AtomicBool::new(false);

/// From now on this process frees consumed bytes without scrubbing them.
pub fn stop_scrubbing() {
    UNSCRUBBED.store(true, Ordering::Relaxed);
}

pub(crate) fn scrubs() -> bool {
    !UNSCRUBBED.load(Ordering::Relaxed)
}
