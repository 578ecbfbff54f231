//! The oracle for processes that another driver drives.

use throughline::Side;

use crate::call::{Outcome, Plan};
use crate::oracle::{Oracle, Violation};

/// What one link, in one timeline, must see. Attempts are to be judged in the order in which they were made.
#[derive(Debug)]
pub struct Judge(Oracle);

impl Judge {
    /// A new region, whose slots are opened by these sides.
    pub fn new(openers: impl Iterator<Item = Side>) -> Self {
        Self(Oracle::new(openers, 1))
    }

    /// A process of `side` has attached.
    pub fn attached(&mut self, side: Side) {
        self.0.attached(side);
    }

    /// A process of `side` has let go of everything, without a freeze and with nothing left to publish.
    pub fn detached(&mut self, side: Side) {
        self.0.detached(side);
    }

    /// Judges what an attempt came to.
    ///
    /// # Errors
    /// When it could not be.
    pub fn judge(&mut self, side: Side, plan: &Plan, outcome: &Outcome) -> Result<(), Violation> {
        self.0.judge(side, plan, outcome)
    }

    /// Whether every use has ended on both sides.
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }
}
