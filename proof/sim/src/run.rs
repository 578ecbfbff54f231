//! One seed's run.

use std::rc::Rc;

use throughline::{Class, Geometry, Side};

use crate::bells::Bells;
use crate::call::{Call, Outcome, RING};
use crate::memory::Fate;
use crate::op::{Op, Scope, What, generate};
use crate::oracle::{Judged, Violation, ensure};
use crate::world::{Bundle, SIDES, Shape, World};

/// Timelines, and bundles, that a run keeps at most.
const MOST: usize = 4;
/// Rounds in which two sides finish everything.
const MOST_ROUNDS: usize = 400;

/// What happened in runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Operations.
    pub ops: u64,
    /// Bytes that were handed over.
    pub bytes: u64,
    /// Processes that died.
    pub deaths: u64,
    /// Timelines that were begun.
    pub timelines: u64,
    /// Of those, in the middle of a call.
    pub amid: u64,
}

struct Run {
    shape: Rc<Shape>,
    worlds: Vec<World>,
    bundles: Vec<Bundle>,
    timelines: u128,
    tally: Tally,
    /// Traces of timelines that have ended; `None` where nobody wants to know.
    trace: Option<Vec<String>>,
}

/// Runs a seed.
pub fn run(seed: u64) -> Result<Tally, Violation> {
    go(seed, None).0
}

/// Runs a seed, and tells what happens.
pub fn trace(seed: u64) -> (Result<Tally, Violation>, Vec<String>) {
    go(seed, Some(Vec::new()))
}

fn go(seed: u64, trace: Option<Vec<String>>) -> (Result<Tally, Violation>, Vec<String>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let scope = Scope::draw(&mut rng);
    let ops = generate(&scope, &mut rng);
    let mut run = Run::new(&scope, trace);
    let result = run.all(&ops);
    let mut lines = run.trace.unwrap_or_default();
    for world in &mut run.worlds {
        lines.extend(world.trace.take().unwrap_or_default());
    }
    (result.map(|()| run.tally), lines)
}

impl Run {
    fn new(scope: &Scope, trace: Option<Vec<String>>) -> Self {
        let class = |opener, count| Class { opener, count, ring_bytes: RING };
        let classes = [class(Side::Host, scope.slots[0]), class(Side::Guest, scope.slots[1])];
        let classes = classes.into_iter().filter(|class| class.count > 0).collect();
        let shape = Rc::new(Shape::new(Geometry::new(classes).expect("a geometry")));
        let mut world = World::new(&shape, 1);
        world.trace = trace.is_some().then(|| vec![format!("{scope:?}")]);
        Self { shape, worlds: vec![world], bundles: Vec::new(), timelines: 1, tally: Tally::default(), trace }
    }

    fn all(&mut self, ops: &[Op]) -> Judged {
        for side in SIDES {
            self.worlds[0].attach(side, Fate::Lives)?;
        }
        for (number, op) in ops.iter().enumerate() {
            let at = usize::from(op.timeline) % self.worlds.len();
            let timeline = self.worlds[at].timeline();
            self.step(at, op.what)
                .map_err(|why| Violation(format!("{why} [timeline {timeline}, operation {number}: {:?}]", op.what)))?;
            self.tally.ops += 1;
        }
        for at in 0..self.worlds.len() {
            let timeline = self.worlds[at].timeline();
            self.finish(at).map_err(|why| Violation(format!("{why} [timeline {timeline}, at the end]")))?;
        }
        Ok(())
    }

    fn step(&mut self, at: usize, what: What) -> Judged {
        let world = &mut self.worlds[at];
        match what {
            What::Call { side, call, fate } => {
                let lived = world.is_alive(side);
                self.call(at, side, call, fate)?;
                self.tally.deaths += u64::from(lived && !self.worlds[at].is_alive(side));
            }
            What::Kill { side } => world.kill(side)?,
            What::Attach { side, fate } => world.attach(side, fate)?,
            What::Bells { to, way } => world.set_bells(to, way),
            What::Spurious { to } => world.wire_to(to).ring_spuriously(),
            What::Scribble { slot, word, value } => world.scribble(slot, word, value),
            What::Quiet => world.quiet()?,
            What::Snapshot { through_core } => {
                world.check_memory()?;
                let bundle = world.copy(through_core)?;
                self.keep(bundle);
            }
            What::Fork { bundle, anew } => {
                if self.worlds.len() < MOST
                    && let Some(world) = self.restored(bundle, anew)?
                {
                    self.worlds.push(world);
                }
            }
            What::RollBack { bundle, anew } => {
                if let Some(world) = self.restored(bundle, anew)? {
                    let mut before = std::mem::replace(&mut self.worlds[at], world);
                    self.end(&mut before);
                }
            }
            What::Drop => {
                if self.worlds.len() > 1 {
                    let mut before = self.worlds.remove(at);
                    self.end(&mut before);
                }
            }
        }
        Ok(())
    }

    fn call(&mut self, at: usize, side: Side, call: Call, fate: Fate) -> Judged<Option<Outcome>> {
        let outcome = self.worlds[at].call(side, call, fate)?;
        if let Some(Outcome::Got(bytes)) = &outcome {
            self.tally.bytes += bytes.len() as u64;
        }
        for bundle in std::mem::take(&mut self.worlds[at].bundles) {
            self.keep(bundle);
        }
        Ok(outcome)
    }

    fn keep(&mut self, bundle: Bundle) {
        if self.bundles.len() == MOST {
            self.bundles.remove(0);
        }
        self.bundles.push(bundle);
    }

    fn restored(&mut self, bundle: u8, anew: bool) -> Judged<Option<World>> {
        if self.bundles.is_empty() {
            return Ok(None);
        }
        let bundle = &self.bundles[usize::from(bundle) % self.bundles.len()];
        self.timelines += 1;
        self.tally.timelines += 1;
        self.tally.amid += u64::from(bundle.is_amid());
        World::restore(&self.shape, bundle, self.timelines, anew, self.trace.is_some()).map(Some)
    }

    fn end(&mut self, world: &mut World) {
        if let (Some(all), Some(lines)) = (&mut self.trace, world.trace.take()) {
            all.extend(lines);
        }
    }

    /// Everybody finishes what there is: everything is read to its end and closed.
    fn finish(&mut self, at: usize) -> Judged {
        let world = &mut self.worlds[at];
        world.note(|| "the end begins".to_owned());
        for side in SIDES {
            world.set_bells(side, Bells::Work);
            world.attach(side, Fate::Lives)?;
        }
        world.call(Side::Host, Call::Thaw, Fate::Lives)?;
        world.call(Side::Host, Call::LiftQuiet, Fate::Lives)?;
        // One that a host died over is given by nobody; the next one is.
        world.call(Side::Host, Call::GiveIdentity, Fate::Lives)?;
        // One that was frozen before its host was restored has no request to follow.
        world.call(Side::Guest, Call::Thaw, Fate::Lives)?;
        for side in SIDES {
            world.call(side, Call::Adopt, Fate::Lives)?;
        }
        self.worlds[at].quiet()?;
        for _ in 0..MOST_ROUNDS {
            for side in SIDES {
                self.finish_side(at, side)?;
            }
            let world = &self.worlds[at];
            let idle =
                SIDES.iter().all(|side| world.process(*side).is_none_or(|process| process.desk().held_count() == 0));
            if idle && world.is_settled() {
                self.worlds[at].quiet()?;
                ensure!(self.worlds[at].oracle.is_over(), "all slots are free, and uses of them have not ended");
                return self.worlds[at].check_memory();
            }
        }
        self.worlds[at].quiet()?;
        Err(Violation("it never comes to an end, and nobody waits for anything".to_owned()))
    }

    fn finish_side(&mut self, at: usize, side: Side) -> Judged {
        let lives = Fate::Lives;
        for call in [Call::Drive, Call::Control, Call::Accept { port: 0 }, Call::Accept { port: 1 }] {
            self.call(at, side, call, lives)?;
        }
        if !self.worlds[at].wire_to(side).is_faultless() {
            self.call(at, side, Call::Tick, lives)?;
        }
        let mut channel = 0;
        while self.worlds[at].process(side).is_some_and(|process| channel < process.desk().held_count()) {
            let number = channel as u8;
            self.call(at, side, Call::Shutdown { channel: number }, lives)?;
            let read = self.call(at, side, Call::Read { channel: number, max: 4096, peek: false }, lives)?;
            // A channel that a hostile guest spoilt may have no end.
            let spoilt = self.worlds[at].is_held_spoilt(side, channel);
            if spoilt || matches!(read, Some(Outcome::End | Outcome::Failed(_))) {
                self.call(at, side, Call::Close { channel: number, reset: false }, lives)?;
            } else {
                channel += 1;
            }
        }
        Ok(())
    }
}
