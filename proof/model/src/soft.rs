//! What there is besides the two cores: applications, drivers, bells, and what an onlooker knows.

use throughline_ring::{Kind, Side};

use crate::action::Op;
use crate::scenario::{Budget, Scenario};

/// A task of a side's application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Reader,
    Writer,
    /// Opens, or accepts.
    Opener,
}

/// How a side has ended a use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum End {
    #[default]
    Open,
    Shut,
    Closed,
    Reset,
}

/// What an onlooker knows of one direction of one use. Units are messages, or bytes of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    /// The sender has begun to send so many,
    pub(crate) attempted: u8,
    /// and been told that so many are sent.
    pub(crate) accepted: u8,
    /// The reader has got so many for good,
    pub(crate) delivered: u8,
    /// and, in the middle of an operation, perhaps so many.
    pub(crate) at_most: u8,
    pub(crate) end: End,
    /// The reader may have seen an end that was no reset, whatever came later.
    pub(crate) ended: bool,
    /// A new process of the sender sends other bytes from here on: `salted - 1` units were accepted before.
    pub(crate) salted: u8,
}

/// All that a state has besides the cores and their memory.
#[expect(clippy::struct_excessive_bools, reason = "flags of different things, none of which excludes another")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Soft {
    pub(crate) alive: [bool; 2],
    /// The driver waits for a bell.
    pub(crate) asleep: [bool; 2],
    pub(crate) frozen: bool,
    /// Generation of the use that the application holds; zero for none.
    pub(crate) live: [u8; 2],
    /// Tasks that pend, as bits.
    pub(crate) blocked: [u8; 2],
    /// Of those, tasks that were woken.
    pub(crate) woken: [u8; 2],
    /// The reader has seen the end, or an error.
    pub(crate) read_up: [bool; 2],
    /// The writer has seen an error.
    pub(crate) unwritable: [bool; 2],
    /// Units that were looked at and not consumed.
    pub(crate) peeked: [u8; 2],
    /// Generation that was opened last.
    pub(crate) opened: u8,
    /// It was opened to a port that nobody listens on.
    pub(crate) elsewhere: bool,
    /// By sender, then by generation: a use is over on both sides before the next one begins.
    pub(crate) flows: [[Flow; 2]; 2],
    pub(crate) left: Budget,
    /// A bell was lost without notice.
    pub(crate) silent: bool,
    /// A process has died.
    pub(crate) died: bool,
    /// As of the doorbells.
    pub(crate) pending: [bool; 2],
    pub(crate) hung: [bool; 2],
    pub(crate) lost: [bool; 2],
}

impl Soft {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        Self { left: scenario.budget, ..Self::default() }
    }

    /// A direction of the use that the sender or, after it has closed, its peer is in.
    pub(crate) fn flow(&mut self, from: Side, generation: u8) -> &mut Flow {
        &mut self.flows[from as usize][usize::from(generation % 2)]
    }

    fn flow_of(&self, from: Side, generation: u8) -> Flow {
        self.flows[from as usize][usize::from(generation % 2)]
    }

    pub(crate) fn is_blocked(&self, side: Side, task: Task) -> bool {
        self.blocked[side as usize] & 1 << task as u8 != 0
    }

    fn is_woken(&self, side: Side, task: Task) -> bool {
        self.woken[side as usize] & 1 << task as u8 != 0
    }

    /// Whether a task may run: it never pended, or was woken since.
    pub(crate) fn runs(&self, side: Side, task: Task) -> bool {
        !self.is_blocked(side, task) || self.is_woken(side, task)
    }

    /// Whether something can happen now.
    pub(crate) fn enables(&self, scenario: &Scenario, side: Side, op: Op) -> bool {
        let at = side as usize;
        let live = self.live[at] != 0;
        let flow = self.flow_of(side, self.live[at]);
        let left = &self.left;
        if !self.alive[at] {
            return op == Op::Attach;
        }
        match op {
            Op::Open | Op::OpenElsewhere => {
                side == scenario.opener && !live && self.opened < scenario.uses && self.runs(side, Task::Opener)
            }
            Op::Accept => side != scenario.opener && !live && self.runs(side, Task::Opener),
            Op::Send | Op::Feed => {
                let more = flow.attempted < scenario.most(side) && flow.end == End::Open && !self.unwritable[at];
                live && more && self.runs(side, Task::Writer)
            }
            Op::Flush => live && flow.attempted > flow.accepted,
            Op::Recv | Op::Peek => live && !self.read_up[at] && self.peeked[at] == 0 && self.runs(side, Task::Reader),
            Op::Commit => live && self.peeked[at] > 0 && self.runs(side, Task::Reader),
            Op::Shutdown => live && flow.end == End::Open && self.runs(side, Task::Writer),
            Op::Close | Op::Reset => live,
            Op::Drive => !self.asleep[at],
            Op::Woken => self.asleep[at] && self.pending[at],
            Op::Spurious => left.spurious > 0 && !self.pending[at],
            Op::Lose => left.losses > 0 && self.pending[at],
            Op::HangUp => left.hang_ups > 0 && !self.hung[at],
            Op::Backstop => self.silent && self.asleep[at],
            Op::Die => left.deaths > 0,
            Op::Attach => false,
            Op::Freeze => side == Side::Host && !self.frozen && left.freezes > 0,
            Op::Thaw => side == Side::Host && self.frozen,
            Op::Restore => side == Side::Host && left.restores > 0,
        }
    }

    /// Whether the scenario has it, and it can happen now.
    pub(crate) fn allows(&self, scenario: &Scenario, side: Side, op: Op) -> bool {
        let always = matches!(
            op,
            Op::Spurious
                | Op::Lose
                | Op::HangUp
                | Op::Backstop
                | Op::Die
                | Op::Attach
                | Op::Freeze
                | Op::Thaw
                | Op::Restore
                | Op::Drive
                | Op::Woken
        );
        (always || scenario.may(side, op)) && self.enables(scenario, side, op)
    }
}

/// A byte of what a side sends: another one for every side, use, unit and process; mixed bytes of two processes are
/// neither's.
fn byte(side: Side, generation: u8, unit: u8, salted: bool) -> u8 {
    let byte = side as u8 | (generation & 3) << 1 | (unit & 15) << 3;
    if salted { !byte } else { byte }
}

/// Unit `index` of a flow, `length` bytes long.
pub(crate) fn unit(flow: Flow, from: Side, generation: u8, index: u8, length: usize) -> Vec<u8> {
    let salted = flow.salted > 0 && index >= flow.salted - 1;
    vec![byte(from, generation, index, salted); length]
}

/// Bytes of a unit.
pub(crate) fn length(scenario: &Scenario, index: u8) -> usize {
    if scenario.kind == Kind::Message { scenario.length(index).into() } else { 1 }
}
