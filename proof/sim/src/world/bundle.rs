//! Snapshots, and what begins with them.

use std::rc::Rc;

use throughline::Side;

use super::{Life, SIDES, Shape, World, brief, short};
use crate::call::{Call, End, Outcome, Plan};
use crate::memory::{Fate, Image, Memories, Watch};
use crate::oracle::{Judged, Oracle, Orphans, Violation, ensure};
use crate::process::Process;

/// A snapshot, at any moment.
pub(crate) struct Bundle {
    pub(crate) image: Image,
    oracle: Oracle,
    orphans: Orphans,
    timeline: u128,
    /// Whose call it was taken in, if in one.
    amid: Option<(Side, Plan)>,
    /// The guest's life up to that moment, the call under way included; `None` if it was dead.
    guest: Option<Life>,
}

impl Bundle {
    /// Whether it was taken in the middle of a call.
    pub(crate) fn is_amid(&self) -> bool {
        self.amid.is_some()
    }
}

impl World {
    /// Keeps a copy of the machine that was taken in the middle of what `side` did.
    pub(super) fn bundle(
        &mut self,
        mut image: Image,
        side: Side,
        (oracle, orphans): (Oracle, Orphans),
        plan: Option<Plan>,
        guest: Option<Life>,
    ) {
        // What the guest had taken in belongs to the copy, whoever's call it was taken in.
        if let (Side::Host, Some(guest)) = (side, self.process(Side::Guest)) {
            image.record = guest.watch().record();
        }
        let amid = plan.map(|plan| (side, plan));
        self.bundles.push(Bundle { image, oracle, orphans, timeline: self.timeline, amid, guest });
    }

    /// A copy of everything between two calls. `through_core`: as snapshots are made, by the frozen host's
    /// core; otherwise every word as it is.
    pub(crate) fn copy(&mut self, through_core: bool) -> Judged<Bundle> {
        let record = self.process(Side::Guest).map(|guest| guest.watch().record()).unwrap_or_default();
        let mut image = self.memories.image(record);
        if through_core && self.is_alive(Side::Host) {
            let was_frozen = self.oracle.is_frozen(Side::Host);
            self.call(Side::Host, Call::Freeze, Fate::Lives)?;
            if let Some(host) = self.process(Side::Host) {
                image = copy_through(host, image)?;
            }
            if !was_frozen {
                self.call(Side::Host, Call::Thaw, Fate::Lives)?;
            }
        }
        self.note(|| format!("a snapshot (by the core: {through_core})"));
        let guest = self.lives[Side::Guest as usize].clone();
        let (oracle, orphans) = (self.oracle.clone(), self.orphans.clone());
        Ok(Bundle { image, oracle, orphans, timeline: self.timeline, amid: None, guest })
    }

    /// A new timeline from a snapshot: a new host; the guest goes on from the very store at which it was
    /// copied, or is a new process as well.
    pub(crate) fn restore(shape: &Rc<Shape>, bundle: &Bundle, timeline: u128, anew: bool, trace: bool) -> Judged<Self> {
        let memories = Memories::from_image(&bundle.image);
        let mut world = Self::with(shape, memories, bundle.oracle.clone(), bundle.orphans.clone(), timeline);
        world.trace = trace.then(Vec::new);
        world.note(|| format!("timeline {timeline} from {}, in the middle of {:?}", bundle.timeline, bundle.amid));
        world.restored_from = Some(bundle.timeline);
        // Starts of the child do not repeat the parent's episodes.
        world.starts = timeline as u64 * 1000;
        let guest = bundle.guest.as_ref().filter(|_| !anew);
        for side in SIDES {
            if side == Side::Guest && guest.is_some() {
                continue;
            }
            let amid = bundle.amid.as_ref().filter(|(of, _)| *of == side).map(|(_, plan)| plan);
            world.bury(side, amid)?;
        }
        world.attach(Side::Host, Fate::Lives)?;
        world.call(Side::Host, Call::GiveIdentity, Fate::Lives)?;
        match guest {
            Some(life) => world.live_again(life, bundle)?,
            None => world.attach(Side::Guest, Fate::Lives)?,
        }
        // A guest that was about to take on its last timeline's identity has done so; the next is this one's.
        world.oracle.branch(timeline);
        Ok(world)
    }

    /// The guest lives through its life again, up to the moment of the copy, and on.
    fn live_again(&mut self, life: &Life, bundle: &Bundle) -> Judged {
        let watch = Watch::new(self.memories.clone(), bundle.image.record.clone());
        let started = self.start(&life.start, &watch, Fate::Lives);
        let mut process = started.ok_or_else(|| Violation("a process without a fate died".to_owned()))?;
        let mut last = None;
        for call in &life.calls {
            let plan = process.plan(call).ok_or_else(|| Violation(format!("{call:?} was something, and is not")))?;
            let outcome = process.perform(&plan);
            last = Some((plan, outcome));
        }
        ensure!(watch.is_live(), "a process that lives again does less");
        // It may have been copied in the middle of its start.
        self.oracle.started(Side::Guest);
        let complaint = process.take_complaint();
        self.processes[Side::Guest as usize] = Some(process);
        self.lives[Side::Guest as usize] = Some(life.clone());
        if let (Some((Side::Guest, _)), Some((plan, outcome))) = (&bundle.amid, last) {
            // It looked for bells before the copy, and finds what happened since.
            let outcome = if matches!(outcome, Outcome::Found(_)) { Outcome::Done } else { outcome };
            self.note(|| format!("Guest goes on with {}: {}", brief(&plan), short(&outcome)));
            self.done(Side::Guest, &plan, &outcome)?;
        }
        complaint.map_or(Ok(()), |complaint| Err(Violation(format!("the guest, going on: {complaint}"))))
    }
}

/// The copy that a frozen host's core makes.
fn copy_through(host: &Process, image: Image) -> Judged<Image> {
    let mut copy = Image { region: vec![0; image.region.len()], sidecar: vec![0; image.sidecar.len()], ..image };
    let put = |into: &mut Vec<u64>, at: u64, bytes: &[u8]| {
        for (word, chunk) in into[at as usize / 8..].iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        }
        Ok::<(), Violation>(())
    };
    host.core().copy_region(|at, bytes| put(&mut copy.region, at, bytes))?;
    host.core().copy_sidecar(|at, bytes| put(&mut copy.sidecar, at, bytes))?;
    Ok(copy)
}
