//! The model itself: what `stateright` walks through.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use stateright::{Checker, Model, Property};
use throughline_ring::Side;

use crate::action::{Action, Cut, Op};
use crate::scenario::Scenario;
use crate::soft::Soft;
use crate::world::{SIDES, World};

/// A state: how it is reached, and what tells it from others. Cores cannot be copied, so whoever needs one takes the
/// steps again.
#[derive(Clone)]
pub struct State {
    steps: Box<[Action]>,
    print: u64,
    soft: Soft,
    broken: Option<&'static str>,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        (self.print, self.broken) == (other.print, other.broken)
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.print, self.broken).hash(state);
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "  {step:?}"))
    }
}

/// Accesses of a long payload are all alike: of an operation that makes more than so many, its first and its last ones
/// stand for all.
const MANY: u16 = 120;

/// Before which of so many accesses, or stores, something happens.
fn places(count: u16) -> impl Iterator<Item = u16> {
    (0..count).filter(move |at| count <= MANY || *at < 16 || *at + 16 >= count)
}

impl Scenario {
    fn reached(&self, steps: &[Action]) -> std::rc::Rc<World> {
        let world = World::new(self);
        for step in steps {
            world.act(*step);
        }
        world
    }

    /// What a side may do, and what may come into it.
    fn cuts(&self, state: &State, side: Side, op: Op, actions: &mut Vec<Action>) {
        let with = |cut| Action { side, op, cut };
        actions.push(with(Cut::Whole));
        let left = state.soft.left;
        if !op.has_a_middle() || (left.meets, left.deaths_inside) == (0, 0) {
            return;
        }
        let world = self.reached(&state.steps);
        world.act(with(Cut::Whole));
        let (accesses, stores) = world.made(side);
        if left.meets > 0 {
            let between = if self.between.is_empty() { &Op::ALL } else { self.between };
            let between = between.iter().filter(|between| between.goes_between());
            for between in between.filter(|between| state.soft.allows(self, side.peer(), **between)) {
                actions.extend(places(accesses).map(|at| with(Cut::Meets(at, *between))));
            }
        }
        if left.deaths_inside > 0 {
            actions.extend(places(stores).map(|at| with(Cut::Dies(at))));
        }
    }
}

impl Model for Scenario {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let world = World::new(self);
        let soft = *world.soft.borrow();
        vec![State { steps: Box::default(), print: world.print(), soft, broken: world.broken.get() }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.broken.is_some() {
            return;
        }
        for side in SIDES {
            for op in Op::ALL.into_iter().filter(|op| state.soft.allows(self, side, *op)) {
                self.cuts(state, side, op, actions);
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let world = self.reached(&state.steps);
        if !world.act(action) {
            return None;
        }
        let steps = state.steps.iter().copied().chain([action]).collect();
        let soft = *world.soft.borrow();
        Some(State { steps, print: world.print(), soft, broken: world.broken.get() })
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no step breaks a promise", |_, state: &State| state.broken.is_none()),
            Property::always("from everywhere both sides come to rest", |model, state: &State| {
                state.broken.is_some() || model.reached(&state.steps).comes_to_rest().is_ok()
            }),
        ]
    }
}

/// Walks through all states of a scenario, and returns how many there are.
///
/// # Panics
/// With the shortest path to a state that breaks a promise.
pub fn walk(scenario: Scenario) -> u64 {
    let threads = available_parallelism().map_or(1, NonZeroUsize::get);
    let checker = scenario.checker().threads(threads).finish_when(stateright::HasDiscoveries::Any).spawn_bfs().join();
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        let state = path.last_state();
        let broken = state.broken.or_else(|| scenario.reached(&state.steps).comes_to_rest().err());
        panic!("{}: not so: {property}: {}, after\n{state:?}", scenario.name, broken.unwrap_or_default());
    }
    let states = checker.unique_state_count() as u64;
    println!(
        "{}: {states} states, {} steps, {} at most in a run",
        scenario.name,
        checker.state_count(),
        checker.max_depth()
    );
    states
}
