//! Which states two honest sides can be in at once, found by walking through all of them.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use throughline_ring::{Class, Geometry, Kind, Layout, Ledger, Phase, Reason, Side, State, View};
use throughline_shmem::HeapWords;

use super::super::channel::Channel;
use super::rig::{PORT, RING};

/// Uses of the slot that are walked through: enough for every pair of generations to come up.
const USES: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// The opener opens; the acceptor accepts.
    Begin,
    Refuse,
    Send,
    Shut,
    Close,
    Reset,
    /// Looks at the peer and settles what can be settled.
    Settle,
    /// The process dies, and a successor attaches.
    Anew,
}

const MOVES: [Move; 8] =
    [Move::Begin, Move::Refuse, Move::Send, Move::Shut, Move::Close, Move::Reset, Move::Settle, Move::Anew];

/// Both ends of one slot; the host opens.
struct Pair {
    layout: Layout,
    ledgers: [Ledger<Arc<HeapWords>>; 2],
    ends: [Channel; 2],
}

impl Pair {
    fn new() -> Self {
        let class = Class { opener: Side::Host, count: 1, ring_bytes: RING };
        let layout = Layout::new(&Geometry::new(vec![class]).unwrap());
        let memory = Arc::new(HeapWords::new(layout.control_words() + 2 * RING as usize / 8));
        let sidecar = Arc::new(HeapWords::new(layout.sidecar_bytes() as usize / 8));
        let ledgers = [Ledger::new(memory.clone(), Some(sidecar)), Ledger::new(memory, None)];
        let ends = [Side::Host, Side::Guest].map(|side| {
            let view = View::new(&ledgers[side as usize], &layout, side, 0);
            Channel::attach(&view, side == Side::Host).unwrap()
        });
        Self { layout, ledgers, ends }
    }

    fn replay(moves: &[(Side, Move)]) -> Self {
        let mut pair = Self::new();
        for (side, step) in moves {
            assert!(pair.play(*side, *step), "a path that was walked before");
        }
        pair
    }

    /// Makes a move; `false` where it cannot be made.
    fn play(&mut self, side: Side, step: Move) -> bool {
        let view = View::new(&self.ledgers[side as usize], &self.layout, side, 0);
        let end = &mut self.ends[side as usize];
        if step == Move::Anew {
            *end = Channel::attach(&view, end.i_open).unwrap();
            return true;
        }
        let peer = end.look(&view).unwrap_or_else(|corrupt| panic!("{:?}: {corrupt}", end.mine));
        let may = can(end, &view, peer, step);
        match step {
            _ if !may => {}
            Move::Begin if end.i_open => end.open(&view, Kind::Message, PORT).unwrap(),
            Move::Begin => end.accept(&view, peer).unwrap(),
            Move::Refuse => end.refuse(&view, peer),
            Move::Send => {
                end.tx.stage_message(&view, b"x").unwrap();
                assert!(end.tx.publish(&view));
            }
            Move::Shut => end.shutdown(&view),
            Move::Close => end.close(&view, Reason::Normal),
            Move::Reset => end.close(&view, Reason::Reset),
            Move::Settle => return end.settle(&view, peer).unwrap(),
            Move::Anew => unreachable!("made above"),
        }
        may
    }
}

fn can(end: &Channel, view: &View<'_, Arc<HeapWords>>, peer: State, step: Move) -> bool {
    let live = end.mine.phase == Phase::Live;
    match step {
        Move::Begin if end.i_open => end.can_open(peer) && end.mine.generation.number() < USES,
        Move::Begin | Move::Refuse => end.is_incoming(peer),
        // One message of each side in each use.
        Move::Send => live && !end.mine.tx_shut && end.tx.produced() == Channel::began(view).0,
        Move::Shut => live && !end.mine.tx_shut,
        Move::Close | Move::Reset => live,
        Move::Settle | Move::Anew => true,
    }
}

/// Two states as one side sees them, without what no rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Seen {
    i_open: bool,
    mine: u8,
    peer: u8,
    /// The peer's generation less mine.
    ahead: i64,
    same_kind_and_port: bool,
}

fn seen(i_open: bool, mine: State, peer: State) -> Seen {
    let ahead = i64::from(peer.generation.number()) - i64::from(mine.generation.number());
    // Kind and port are compared within a use only.
    let both = ahead == 0 && mine.phase != Phase::Free && peer.phase != Phase::Free;
    Seen {
        i_open,
        mine: mine.phase as u8,
        peer: peer.phase as u8,
        ahead,
        same_kind_and_port: !both || (mine.kind, mine.port) == (peer.kind, peer.port),
    }
}

/// Walks through everything that two honest sides can come to; with the number of states.
fn reachable() -> (HashSet<Seen>, usize) {
    let (mut found, mut known) = (HashSet::new(), HashSet::new());
    let mut queue = VecDeque::from([Vec::new()]);
    while let Some(path) = queue.pop_front() {
        let moves = [Side::Host, Side::Guest].into_iter().flat_map(|side| MOVES.map(|step| (side, step)));
        for step in moves {
            let mut pair = Pair::replay(&path);
            if !pair.play(step.0, step.1) || !known.insert(format!("{:?}", pair.ends)) {
                continue;
            }
            for (me, other) in [(0, 1), (1, 0)] {
                let (mine, peer) = (pair.ends[me].mine, pair.ends[other].mine);
                assert_eq!(mine.check_peer(me == 0, None, peer), Ok(()), "{path:?} {step:?}: {mine:?} {peer:?}");
                found.insert(seen(me == 0, mine, peer));
            }
            queue.push_back([path.as_slice(), &[step]].concat());
        }
    }
    (found, known.len())
}

/// Every state of these generations.
fn states(generations: std::ops::RangeInclusive<u64>) -> impl Iterator<Item = State> {
    let lows = generations.flat_map(|generation| (0..=0xff).map(move |low| low | generation << 8));
    let words = lows.flat_map(|low| [0, u64::from(PORT), u64::from(PORT) + 1].map(|port| low | port << 32));
    words.filter_map(|word| State::decode(word).ok())
}

#[test]
fn exactly_the_pairs_of_states_that_honest_sides_reach_are_accepted() {
    let (reachable, walked) = reachable();
    let mut accepted = HashSet::new();
    for i_open in [true, false] {
        for mine in states(5..=5) {
            let judged = states(2..=8).filter(|peer| mine.check_peer(i_open, None, *peer).is_ok());
            accepted.extend(judged.map(|peer| seen(i_open, mine, peer)));
        }
    }
    let never: Vec<_> = accepted.difference(&reachable).collect();
    let refused: Vec<_> = reachable.difference(&accepted).collect();
    assert!(never.is_empty() && refused.is_empty(), "accepted, and never reached: {never:#?}\nrefused: {refused:#?}");
    assert!(walked > 1000, "{walked} states walked through");
}
