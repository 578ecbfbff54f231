//! Two cores over one region: everything that owners and drivers do, deaths and snapshots, and a guest that writes
//! whatever it likes. What was sent on a channel that nobody lied on arrives, in order, once; and whatever the
//! guest writes, the host panics at nothing and is kept busy by nothing.

mod model;
mod process;
mod world;

use arbitrary::Arbitrary;
use throughline::Kind;
use throughline::core::{Publish, Take};

use crate::input::list;
use world::World;

/// More is nothing new.
const MOST_STEPS: usize = 200;

/// One of the two sides. The guest is the one that lies.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Host,
    Guest,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Way {
    Bytes,
    Messages,
}

impl From<Way> for Kind {
    fn from(way: Way) -> Self {
        match way {
            Way::Bytes => Self::Stream,
            Way::Messages => Self::Message,
        }
    }
}

/// Something that a side does. Channels are named by their number in the list of those that the side has, or had.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Act {
    Open {
        way: Way,
        port: u8,
        waits: bool,
        expires: bool,
    },
    Accept,
    Send {
        channel: u8,
        len: u16,
        now: bool,
        waits: bool,
    },
    Receive {
        channel: u8,
        len: u16,
        peek: bool,
        waits: bool,
    },
    Commit {
        channel: u8,
        bytes: Option<u8>,
    },
    Flush(u8),
    Shut(u8),
    Answer(u8),
    Close {
        channel: u8,
        reset: bool,
    },
    Release(u8),
    Adopt(u8),
    Listen(u8),
    Unlisten(u8),
    Serve,
    Sleep,
    Expire,
    List,
    Freeze,
    Thaw,
    /// The process dies, and another one takes over.
    Anew,
    Say {
        word: u8,
        value: u8,
    },
}

/// What the guest writes where it should not, or should write something else.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Rubbish {
    /// Any value.
    Any(u64),
    /// What stands there, and this much more or less.
    Near(i16),
    /// What stands there, with one bit changed.
    Flip(u8),
    /// What the host says there itself.
    HostsOwn,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Place {
    /// A word of the guest's record of a channel.
    Record {
        slot: u8,
        word: u8,
    },
    /// A word of the guest's ring, near where something goes on.
    Ring {
        slot: u8,
        word: u16,
    },
    /// A word of the host's ring, or of its pages: nobody's business but the host's.
    HostRing {
        slot: u8,
        word: u16,
    },
    HostRecord {
        slot: u8,
        word: u8,
    },
    /// A word of the guest's first page.
    Link(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Do(Who, Act),
    Write(Place, Rubbish),
    /// A snapshot of this moment is restored: all that is left is the copies.
    Restore,
}

#[derive(Arbitrary, Debug)]
struct Start {
    /// Bytes that every ring has carried before, in words.
    begin: u16,
    /// Whether the guest lies at all; if not, nothing may be lost.
    honest: bool,
}

/// Runs one list of operations.
///
/// # Panics
/// When something is lost, doubled or torn on a channel that nobody lied on, and when a side panics or is kept busy.
pub fn run(data: &[u8]) {
    let Some((start, steps)) = list::<Start, Step>(data, MOST_STEPS) else { return };
    let mut world = World::new(u64::from(start.begin) * 8);
    for step in steps {
        match step {
            Step::Do(who, act) => world.act(who, act),
            Step::Write(..) if start.honest => {}
            Step::Write(place, rubbish) => world.write(place, rubbish),
            Step::Restore => world.restore(),
        }
    }
    world.finish();
}

fn publish(now: bool) -> Publish {
    if now { Publish::Now } else { Publish::Batch }
}

fn take(peek: bool) -> Take {
    if peek { Take::Peek } else { Take::Consume }
}
