//! From any state both sides come to rest: every driver sleeps, every task that pends has to, and once both have
//! finished, the slot is free and its rings are empty.

use throughline_ring::{Phase, RecordWord, Side, State};

use crate::action::Op;
use crate::scenario::RING;
use crate::soft::Task;
use crate::world::{SIDES, SLOT, World};

/// Operations of both sides that all of it takes at most; a multiple of what it does take.
const MOST_OPS: usize = 400;

type Rest = Result<(), &'static str>;

impl World {
    /// Lets drivers, bells and woken tasks go on until nothing happens by itself, and looks who waits in vain; then has
    /// both applications finish.
    pub(crate) fn comes_to_rest(&self) -> Rest {
        for side in SIDES {
            if !self.soft.borrow().alive[side as usize] {
                self.does(side, Op::Attach);
            }
        }
        if self.soft.borrow().frozen {
            self.does(Side::Host, Op::Thaw);
        }
        let mut left = MOST_OPS;
        self.settles(&mut left, Self::woken_task)?;
        self.nobody_waits_in_vain()?;
        self.settles(&mut left, Self::finishing_task)?;
        self.nobody_waits_in_vain()?;
        self.is_over()?;
        self.broken.get().map_or(Ok(()), Err)
    }

    fn does(&self, side: Side, op: Op) {
        self.run(side, op);
        self.note();
    }

    /// Runs whatever can run, and the tasks that `next` names.
    fn settles(&self, left: &mut usize, next: fn(&Self, Side) -> Option<Op>) -> Rest {
        loop {
            let mut quiet = true;
            for side in SIDES {
                let soft = *self.soft.borrow();
                let at = side as usize;
                let driver = if soft.asleep[at] { soft.pending[at].then_some(Op::Woken) } else { Some(Op::Drive) };
                for op in driver.into_iter().chain(next(self, side)) {
                    *left = left.checked_sub(1).ok_or("both sides come to rest after a bounded number of steps")?;
                    self.does(side, op);
                    quiet = false;
                }
            }
            if quiet && !self.backstop() {
                return Ok(());
            }
        }
    }

    /// Where a bell was lost, or found nobody, a timer looks. Whether it found something.
    fn backstop(&self) -> bool {
        let soft = *self.soft.borrow();
        let lossy = soft.silent || soft.lost != [false; 2];
        let found = |side: Side| {
            let Some(core) = self.core(side).filter(|_| soft.asleep[side as usize]) else { return false };
            core.serve() > 0 && {
                core.wake_up();
                self.soft.borrow_mut().asleep[side as usize] = false;
                self.note();
                true
            }
        };
        lossy && SIDES.map(found) != [false; 2]
    }

    /// What a task that was woken does.
    fn woken_task(&self, side: Side) -> Option<Op> {
        let soft = *self.soft.borrow();
        let woken = |task| soft.is_blocked(side, task) && soft.runs(side, task);
        if woken(Task::Reader) {
            return Some(self.reads(side));
        }
        if woken(Task::Writer) {
            return [Op::Send, Op::Shutdown].into_iter().find(|op| soft.enables(&self.scenario, side, *op));
        }
        woken(Task::Opener).then(|| self.opens(side)).flatten()
    }

    fn reads(&self, side: Side) -> Op {
        if self.soft.borrow().peeked[side as usize] > 0 { Op::Commit } else { Op::Recv }
    }

    fn opens(&self, side: Side) -> Option<Op> {
        let op = if side == self.scenario.opener { Op::Open } else { Op::Accept };
        self.soft.borrow().enables(&self.scenario, side, op).then_some(op)
    }

    /// What an application does that ends its direction, reads up, and closes.
    fn finishing_task(&self, side: Side) -> Option<Op> {
        let soft = *self.soft.borrow();
        let at = side as usize;
        if soft.live[at] == 0 {
            let accepts = side != self.scenario.opener && soft.runs(side, Task::Opener);
            return accepts.then_some(Op::Accept);
        }
        if soft.enables(&self.scenario, side, Op::Shutdown) {
            return Some(Op::Shutdown);
        }
        if soft.read_up[at] {
            return Some(Op::Close);
        }
        soft.runs(side, Task::Reader).then(|| self.reads(side))
    }

    /// Every task that pends has to: asked once more, it pends again.
    fn nobody_waits_in_vain(&self) -> Rest {
        for side in SIDES {
            let soft = *self.soft.borrow();
            let tasks = [(Task::Reader, Some(self.reads(side))), (Task::Writer, Some(Op::Send)), (Task::Opener, None)];
            for (task, op) in tasks {
                if soft.runs(side, task) {
                    continue;
                }
                let op = op.or_else(|| Some(if side == self.scenario.opener { Op::Open } else { Op::Accept }));
                let Some(op) = op else { continue };
                self.does(side, op);
                if !self.soft.borrow().is_blocked(side, task) {
                    return Err("who waits is woken");
                }
            }
        }
        Ok(())
    }

    /// Nobody holds anything, the slot is free on both sides, and nothing is left in its rings.
    fn is_over(&self) -> Rest {
        let soft = *self.soft.borrow();
        if soft.live != [0; 2] {
            return Err("both applications come to their end");
        }
        let states = SIDES.map(|side| State::decode(self.word(side, RecordWord::State)));
        let [Ok(host), Ok(guest)] = states else { return Err("states are states") };
        if host != guest || host.phase != Phase::Free {
            return Err("a slot that both have closed is free on both sides");
        }
        for from in SIDES {
            let (produced, freed) = (self.word(from, RecordWord::Produced), self.word(from.peer(), RecordWord::Freed));
            if produced != freed {
                return Err("the rings of a free slot are empty");
            }
            let first = self.layout.slots()[SLOT].ring_at(from);
            let ring = first..first + RING as usize / 8;
            // What a process staged that died before it published lies there until its successor writes.
            let scrubbed = || !self.region.nonzero().any(|(at, _)| ring.contains(&at));
            if !soft.died && !scrubbed() {
                return Err("the rings of a free slot are zero");
            }
        }
        Ok(())
    }
}
