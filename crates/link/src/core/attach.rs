//! Taking over what a predecessor kept.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use throughline_ring::{
    Geometry, Layout, Ledger, LinkWord, NEVER, Phase, RecordWord, Ringer, Side, Sleeper, State, View,
};
use throughline_shmem::{AllocateError, WORD, Words};

use super::channel::Channel;
use super::control::LinkWatch;
use super::open::{Backlog, Policy};
use super::watch::{Bitmap, Watch};
use super::{Bell, Core, Entry, Slot};
use crate::counters::Counting;
use crate::event::EventQueue;
use crate::sync::{AtomicBool, Mutex};

/// What an attach needs besides the memory.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// Which side this is.
    pub side: Side,
    /// The time. Deadlines for adoption count from it.
    pub now: Instant,
    /// The timeline that the bytes belong to.
    pub timeline: u128,
    /// A random number: where this side's sleep episodes begin.
    pub random: u64,
    /// Ports listened on before any open is looked at.
    pub listen: Vec<u32>,
    /// Guest: the agent's protocol version.
    pub agent: Option<u32>,
}

/// Why a core could not attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachCoreError {
    /// A word that only this side writes makes no sense.
    #[error("channel {0} of this side's own record is damaged; restore the sandbox from a snapshot")]
    Damaged(usize),
    /// The rings of channels in use cannot be held in memory.
    #[error("the channels in use do not fit into memory: {0}")]
    Memory(#[from] AllocateError),
}

impl<W: Words, B: Bell> Core<W, B> {
    /// Attaches: finishes scrubs, shows this side's words again, and looks at nothing of the peer's
    /// yet. The caller then rings, and serves.
    pub fn attach(
        ledger: Ledger<W>,
        geometry: &Geometry,
        bell: B,
        options: &AttachOptions,
    ) -> Result<Self, AttachCoreError> {
        let layout = Layout::new(geometry);
        let side = options.side;
        let (waiting, active) = (Bitmap::new(layout.slots().len()), Bitmap::new(layout.slots().len()));
        show_link_words(&ledger, &layout, options);
        let mut slots = Vec::with_capacity(layout.slots().len());
        for slot in 0..layout.slots().len() {
            let entry = attach_slot(&ledger, &layout, options, slot)?;
            // Every one is looked at once: a peer may still have to settle what a predecessor closed.
            if entry.channel.corrupt.is_none() {
                active.set(slot);
            }
            slots.push(Slot { entry: Mutex::new(entry), watch: Watch::new() });
        }
        Ok(Self {
            side,
            timeline: options.timeline,
            ringer: Ringer::attach(layout.link_word(side.peer(), LinkWord::Sleep)),
            sleeper: Mutex::new(Sleeper::attach(&ledger, layout.link_word(side, LinkWord::Sleep), options.random)),
            slots: slots.into(),
            starved: Bitmap::new(layout.slots().len()),
            waiting,
            active,
            frozen: AtomicBool::new(false),
            listeners: Mutex::new(
                options.listen.iter().map(|port| (*port, Backlog::default())).collect::<HashMap<_, _>>(),
            ),
            vacancies: Mutex::new(Vec::new()),
            link: LinkWatch::new(&layout, side),
            events: Mutex::new(EventQueue::default()),
            counting: Counting::new(),
            layout,
            ledger,
            bell,
        })
    }
}

/// Shows the identity, the quiesce request and the acknowledgements again.
fn show_link_words(ledger: &Ledger<impl Words>, layout: &Layout, options: &AttachOptions) {
    let page = layout.link_word(options.side, LinkWord::Sleep);
    for at in page + LinkWord::Identity as usize..=page + LinkWord::Agent as usize {
        ledger.show(at, ledger.kept(at));
    }
    if let Some(agent) = options.agent {
        ledger.publish(layout.link_word(options.side, LinkWord::Agent), agent.into());
    }
}

fn attach_slot(
    ledger: &Ledger<impl Words>,
    layout: &Layout,
    options: &AttachOptions,
    slot: usize,
) -> Result<Entry, AttachCoreError> {
    let side = options.side;
    let view = View::new(ledger, layout, side, slot);
    let place = layout.slots()[slot];
    let kept = State::decode(view.kept(RecordWord::State)).map_err(|_| AttachCoreError::Damaged(slot))?;
    // Before anything touches the rings: a restored region holds only the bytes that were unread.
    // A predecessor may have died in the middle of a scrub for a use that it never took part in.
    let unscrubbed = view.kept(RecordWord::Taken) > view.kept(RecordWord::Freed);
    let allocated = kept.phase != Phase::Free || unscrubbed;
    if allocated {
        ledger.region().allocate(place.ring_at(Side::Host), 2 * place.ring_bytes as usize / WORD)?;
    }
    let channel = Channel::attach(&view, place.opener == side).ok_or(AttachCoreError::Damaged(slot))?;
    view.show(RecordWord::WantData, NEVER);
    view.show(RecordWord::WantSpace, NEVER);
    let unadopted = Policy::decode(view.kept(RecordWord::Policy)).unadopted;
    let expires = (kept.phase == Phase::Live).then_some(unadopted).flatten();
    Ok(Entry {
        channel,
        held: false,
        allocated,
        closing: None,
        peeked: None,
        expires: expires.map(|after: Duration| options.now + after),
        reader: None,
        writer: None,
        observer: None,
    })
}
