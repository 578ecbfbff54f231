//! When a command's time is up.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// What `timeout` and its like return.
pub const TIMED_OUT: u8 = 124;

/// The moment by which a command must have ended, if there is one.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    pub const NONE: Self = Self(None);

    /// So long after now.
    pub fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.map(|timeout| Instant::now() + timeout))
    }

    /// The same with some time more, and not before that has passed from now on.
    pub fn with(self, grace: Duration) -> Self {
        Self(self.0.map(|deadline| deadline.max(Instant::now()) + grace))
    }

    /// Does something until then; `None` if it was not done, and is dropped.
    pub async fn within<T>(self, doing: impl Future<Output = T>) -> Option<T> {
        match self.0 {
            Some(deadline) => timeout_at(deadline, doing).await.ok(),
            None => Some(doing.await),
        }
    }
}
