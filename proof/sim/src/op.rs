//! What happens in a run, as data.

use throughline::{Kind, Side};

use crate::bells::Bells;
use crate::call::{Call, LISTENED, UNLISTENED};
use crate::memory::Fate;

/// One thing that happens. Timelines and bundles are named by their number among those there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// In which timeline.
    pub timeline: u8,
    /// What.
    pub what: What,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named by what they are")]
pub enum What {
    /// A process does something, and may die, or be copied, in the middle of it.
    Call { side: Side, call: Call, fate: Fate },
    /// A process is killed between two calls.
    Kill { side: Side },
    /// A successor is started, where there is no process.
    Attach { side: Side, fate: Fate },
    /// Bells to a side take this way from now on.
    Bells { to: Side, way: Bells },
    /// A bell that nobody rang.
    Spurious { to: Side },
    /// A hostile guest writes a word.
    Scribble { slot: u8, word: u16, value: u64 },
    /// All that is under way comes to rest.
    Quiet,
    /// A snapshot between two calls: by the frozen host's core, or every word as it is.
    Snapshot { through_core: bool },
    /// A new timeline from a bundle; the guest goes on, or is started anew.
    Fork { bundle: u8, anew: bool },
    /// The same, in place of this timeline.
    RollBack { bundle: u8, anew: bool },
    /// This timeline ends; not the last one.
    Drop,
}

/// What may happen in a run at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a question of its own")]
pub struct Scope {
    /// Slots that the host opens, and that the guest does.
    pub slots: [u32; 2],
    /// Whether bells go astray.
    pub astray: bool,
    /// Whether processes die.
    pub deaths: bool,
    /// Whether there are snapshots.
    pub snapshots: bool,
    /// Whether the guest is hostile. Then only the host dies.
    pub hostile: bool,
    /// Number of operations.
    pub len: usize,
}

impl Scope {
    /// A scope for a seed's run.
    pub fn draw(rng: &mut fastrand::Rng) -> Self {
        let hostile = rng.u8(..6) == 0;
        let slots = match rng.u8(..8) {
            0..3 => [1, 0],
            3 => [0, 1],
            4..6 => [1, 1],
            6 => [2, 1],
            _ => [2, 0],
        };
        Self {
            slots,
            astray: rng.u8(..3) == 0,
            deaths: rng.u8(..2) == 0,
            snapshots: !hostile && rng.u8(..3) == 0,
            hostile,
            len: rng.usize(40..260),
        }
    }
}

/// Everything that happens in a run, from a seed.
pub fn generate(scope: &Scope, rng: &mut fastrand::Rng) -> Vec<Op> {
    (0..scope.len).map(|_| Op { timeline: rng.u8(..), what: what(scope, rng) }).collect()
}

fn side(rng: &mut fastrand::Rng) -> Side {
    if rng.bool() { Side::Host } else { Side::Guest }
}

fn what(scope: &Scope, rng: &mut fastrand::Rng) -> What {
    let side = side(rng);
    if scope.hostile && rng.u8(..30) == 0 {
        return What::Scribble { slot: rng.u8(..), word: rng.u16(..), value: value(rng) };
    }
    match rng.u8(..100) {
        0..8 if scope.deaths => {
            What::Attach { side, fate: if rng.u8(..4) == 0 { fate(scope, rng) } else { Fate::Lives } }
        }
        8 if scope.deaths => What::Kill { side: if scope.hostile { Side::Host } else { side } },
        9..12 if scope.astray => What::Bells { to: side, way: way(rng) },
        12 if scope.astray => What::Spurious { to: side },
        13..15 => What::Quiet,
        15..17 if scope.snapshots => What::Snapshot { through_core: rng.bool() },
        17..19 if scope.snapshots => What::Fork { bundle: rng.u8(..), anew: rng.u8(..4) == 0 },
        19 if scope.snapshots => What::RollBack { bundle: rng.u8(..), anew: rng.u8(..4) == 0 },
        20 if scope.snapshots => What::Drop,
        _ => {
            let may_die = !scope.hostile || side == Side::Host;
            let fate = if may_die && rng.u8(..8) == 0 { fate(scope, rng) } else { Fate::Lives };
            What::Call { side, call: call(side, rng), fate }
        }
    }
}

fn fate(scope: &Scope, rng: &mut fastrand::Rng) -> Fate {
    let after = match rng.u8(..10) {
        0..7 => rng.u16(..12),
        7..9 => rng.u16(..60),
        _ => rng.u16(..1100),
    };
    match (scope.deaths, scope.snapshots) {
        (true, true) if rng.bool() => Fate::IsCopied(after),
        (true, _) => Fate::Dies(after),
        (_, true) => Fate::IsCopied(after),
        _ => Fate::Lives,
    }
}

/// What a hostile guest writes: small, huge, anything, or almost right.
fn value(rng: &mut fastrand::Rng) -> u64 {
    match rng.u8(..6) {
        0 => rng.u64(..64),
        1 => rng.u64(..9000),
        2 => u64::MAX - rng.u64(..9000),
        3 => 1 << rng.u32(..64),
        4 => rng.u64(..4) | u64::from(rng.u8(..16)) << 2 | rng.u64(..4) << 8 | u64::from(LISTENED[0]) << 32,
        _ => rng.u64(..),
    }
}

fn way(rng: &mut fastrand::Rng) -> Bells {
    match rng.u8(..8) {
        0..3 => Bells::Work,
        3..5 => Bells::GetLost,
        5 => Bells::FindNobody,
        6 => Bells::AreLate,
        _ => Bells::ComeTwice,
    }
}

/// Bytes of one write: often few, now and then a whole ring and more.
fn len(rng: &mut fastrand::Rng) -> u16 {
    match rng.u8(..20) {
        0..9 => rng.u16(..40),
        9..15 => rng.u16(..700),
        15..19 => rng.u16(..4089),
        _ => rng.u16(4085..4200),
    }
}

fn call(side: Side, rng: &mut fastrand::Rng) -> Call {
    let channel = rng.u8(..);
    match rng.u8(..100) {
        0..24 => Call::Drive,
        24..48 => Call::Write { channel, len: len(rng), salt: rng.u32(..), feed: rng.u8(..4) == 0 },
        48..70 => Call::Read { channel, max: len(rng), peek: rng.u8(..4) == 0 },
        70..75 => Call::Commit { channel, part: if rng.bool() { 255 } else { rng.u8(..) } },
        75..80 => open(rng),
        80..85 => Call::Accept { port: rng.u8(..) },
        85..87 => Call::Flush { channel },
        87..89 => Call::Shutdown { channel },
        89..92 => Call::Close { channel, reset: rng.u8(..3) == 0 },
        92..94 => Call::Adopt,
        94..96 => Call::Tick,
        _ => control(side, rng),
    }
}

fn open(rng: &mut fastrand::Rng) -> Call {
    let kind = if rng.bool() { Kind::Stream } else { Kind::Message };
    let port = if rng.u8(..12) == 0 { UNLISTENED } else { *rng.choice(&LISTENED).unwrap_or(&UNLISTENED) };
    Call::Open { kind, port, expires: rng.u8(..4) == 0 }
}

fn control(side: Side, rng: &mut fastrand::Rng) -> Call {
    match (side, rng.u8(..12)) {
        (Side::Host, 0) => Call::Freeze,
        (Side::Host, 1..4) => Call::Thaw,
        (Side::Host, 4) => Call::GiveIdentity,
        (Side::Host, 5) => Call::AskQuiet,
        (Side::Host, 6..9) => Call::LiftQuiet,
        _ => Call::Control,
    }
}
