//! Going back to the last checkpoint, when a machine has died: a new timeline of the same sandbox.
//!
//! Region and sidecar of the new timeline are made in a folder of their own, and its machine is loaded over them. Then
//! one rename makes them `current`; what died before it is done again from the beginning, under the same lease. On
//! paper the sandbox is *going back* until its guest has taken on its new identity: so nobody ever finds a guest that
//! runs under the old one.

use std::sync::atomic::Ordering;

use throughline::Sidecar;

use super::checkpoint::PREFIX;
use super::record::Record;
use super::restore::{Loaded, Lost};
use super::{Sandbox, Wanted};
use crate::SandboxError;
use crate::bundle::{Bundle, BundleError, Draft};
use crate::engine::{Exit, end_left, remove_groups};
use crate::places::{PlaceError, Places};

impl Sandbox {
    /// Whether the sandbox can go back to a checkpoint after its machine ended so: it has one, nobody ended it, and
    /// the guest did not end by itself.
    pub fn may_roll_back(&self, exit: &Exit) -> bool {
        exit.reason.is_death() && self.aged(self.record()).may_go_back()
    }

    /// Goes back to the last [checkpoint](Self::checkpoint), after the machine has ended: the same sandbox in a new
    /// timeline. Its link is another one, whose channels wait to be adopted; each tells
    /// [how far it went back](throughline::ChannelInfo::rolled_back), and an
    /// [event](throughline::Event::RolledBack) tells of it.
    ///
    /// This one, and all handles of its timeline, then lead nowhere any more: drop them. A machine that still runs is
    /// ended first.
    ///
    /// # Errors
    /// There is no checkpoint, or the sandbox does [not come back](SandboxError::NotBack): it is then as dead as it was. This
    /// counts as a try, of which there are five for each checkpoint, only once its guest was let run, or if it is damaged.
    pub async fn roll_back(&self) -> Result<Self, SandboxError> {
        self.vm.end();
        let exit = self.exited().await;
        let _turn = self.snapshots.lock().await;
        let places = Places::open(self.name())?;
        // Not what this one knows: a try that failed is on paper.
        let record = Record::read(places.runtime())?;
        let mut record = self.aged(record.ok_or_else(|| SandboxError::Unfinished(self.name().to_owned()))?);
        record.checkpoints.lost = Some(exit);
        let dead = self.link.sidecar().ok_or_else(|| SandboxError::NoCheckpoint(self.name().to_owned()))?;
        self.detach();
        let back = go_back(places, record, dead).await?;
        self.went_back.store(true, Ordering::Release);
        Ok(back)
    }
}

/// Brings a sandbox back whose machine has died. `dead` holds the lease of its last timeline.
pub(super) async fn go_back(places: Places, mut record: Record, dead: &Sidecar) -> Result<Sandbox, SandboxError> {
    let none = || SandboxError::NoCheckpoint(places.name().to_owned());
    let checkpoint = record.checkpoints.last.clone().filter(|_| record.wanted != Wanted::Ended).ok_or_else(none)?;
    let (runtime, paused) = (places.runtime().to_path_buf(), record.wanted == Wanted::Paused);
    let not_back = |error| SandboxError::NotBack(Box::new(error));
    let loaded = match load(places, &mut record, &checkpoint.folder, dead).await {
        Ok(loaded) => loaded,
        Err(error) => {
            // What is damaged stays so; anything else may be there the next time.
            if matches!(error, SandboxError::Bundle(BundleError::Absent(_) | BundleError::Damaged { .. })) {
                record.count_try();
            }
            record.not_back(&error, &runtime);
            return Err(not_back(error));
        }
    };
    let loaded = loaded.go_over().await.map_err(not_back)?;
    let back = loaded.wake().await.map_err(not_back)?;
    // It is back: whatever comes of the rest, it goes on, for whoever takes it over.
    back.detach();
    if paused {
        back.pause().await?;
    }
    back.places.end();
    back.ends.store(true, Ordering::Relaxed);
    Ok(back)
}

/// Loads the checkpoint in this folder, after whatever was left of earlier tries is gone.
async fn load(places: Places, record: &mut Record, folder: &str, dead: &Sidecar) -> Result<Loaded, SandboxError> {
    record.checkpoints.going_back = true;
    record.write(places.runtime())?;
    // Whoever tried before may have started a machine, and died.
    let runtime = places.runtime().to_path_buf();
    end_left(&runtime).map_err(|source| PlaceError::Io { path: runtime, source })?;
    remove_groups(&record.machine.groups);
    if let Some(draft) = record.snapshot.take() {
        Draft::remove_left(&draft);
    }
    places.remove_beside(|name| name.starts_with(PREFIX) && name != folder)?;
    let bundle = Bundle::open(&places.beside(folder))?;
    tracing::warn!(name = record.name, lost = ?record.checkpoints.lost, "the machine has died: back to the last checkpoint");
    let lost = Lost { record: record.clone(), dead };
    Sandbox::restore(bundle).trusted().load_after(|| Ok(places), Some(lost)).await
}
