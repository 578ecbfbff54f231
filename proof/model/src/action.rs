//! What may happen next.

use std::fmt;

use throughline_ring::Side;

/// Something that one side's process, or what is around it, does in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Opens a channel to the port that the peer listens on.
    Open,
    /// Opens a channel to a port that nobody listens on.
    OpenElsewhere,
    /// Accepts the next open.
    Accept,
    /// Sends the next message, or writes the next bytes.
    Send,
    /// Stages them only.
    Feed,
    /// Publishes what is staged.
    Flush,
    /// Receives the next message, or reads the next bytes.
    Recv,
    /// Looks at them only.
    Peek,
    /// Consumes what was looked at.
    Commit,
    /// Ends the own direction.
    Shutdown,
    /// Closes both.
    Close,
    /// Gives both up.
    Reset,
    /// The driver serves, and falls asleep where nothing was there.
    Drive,
    /// The bell wakes the driver.
    Woken,
    /// A bell comes that nobody rang.
    Spurious,
    /// The bell on its way is lost, and nobody notices.
    Lose,
    /// The next bell to this side will find nobody, and say so.
    HangUp,
    /// The driver's timer looks whether a bell was lost.
    Backstop,
    /// The process dies.
    Die,
    /// A new process attaches.
    Attach,
    /// Publishes nothing from now on.
    Freeze,
    /// Goes on.
    Thaw,
    /// The host's process saves the region and its sidecar, and the copies are restored under another one. The guest
    /// stands where it stood: it is in the machine's memory.
    Restore,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::Open,
        Self::OpenElsewhere,
        Self::Accept,
        Self::Send,
        Self::Feed,
        Self::Flush,
        Self::Recv,
        Self::Peek,
        Self::Commit,
        Self::Shutdown,
        Self::Close,
        Self::Reset,
        Self::Drive,
        Self::Woken,
        Self::Spurious,
        Self::Lose,
        Self::HangUp,
        Self::Backstop,
        Self::Die,
        Self::Attach,
        Self::Freeze,
        Self::Thaw,
        Self::Restore,
    ];

    /// Whether it takes a process that makes accesses, in the middle of which something else may happen.
    pub(crate) fn has_a_middle(self) -> bool {
        !matches!(self, Self::Spurious | Self::Lose | Self::HangUp | Self::Die | Self::Freeze | Self::Restore)
    }

    /// Whether it may happen in the middle of an operation of the peer. What a bell does in between, and where a
    /// process dies that does nothing, makes no difference there.
    pub(crate) fn goes_between(self) -> bool {
        !matches!(self, Self::Spurious | Self::Lose | Self::HangUp | Self::Die | Self::Backstop)
    }
}

/// What happens in the middle of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cut {
    /// Nothing.
    Whole,
    /// The peer does this before access number so much to the region.
    Meets(u16, Op),
    /// The process dies before store number so much.
    Dies(u16),
}

/// One step of a run.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Action {
    /// Who.
    pub side: Side,
    /// Does what.
    pub op: Op,
    /// And what happens meanwhile.
    pub cut: Cut,
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |side| if side == Side::Host { "host" } else { "guest" };
        write!(f, "{} {:?}", side(self.side), self.op)?;
        match self.cut {
            Cut::Whole => Ok(()),
            Cut::Meets(at, op) => write!(f, " (before access {at}: {} {op:?})", side(self.side.peer())),
            Cut::Dies(at) => write!(f, " (dies before store {at})"),
        }
    }
}
