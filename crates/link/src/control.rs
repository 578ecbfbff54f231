//! Quiet and identity: what host and guest agree on over the link's own words.

use std::future::poll_fn;
use std::time::Duration;

use throughline_ring::{Identity, LinkWord};

use crate::link::{Link, LinkCore};

/// When a bell is first repeated while an acknowledgement is due: those in flight at a snapshot are lost.
const REPEAT: Duration = Duration::from_millis(5);
/// How rarely it is repeated at last. Each repeat costs the guest an interrupt, which it may have no time for.
const REPEAT_AT_LAST: Duration = Duration::from_millis(160);

/// The peer did not do in time what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest did not answer within {deadline:?}: {what}")]
pub struct Unanswered {
    /// What it was asked for.
    pub what: &'static str,
    /// How long it had.
    pub deadline: Duration,
}

/// Why a guest does not have the identity that it was given. It stays closed: nothing of the user's runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotTaken {
    /// It said nothing.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    /// It said that it could not; its console says why.
    #[error("the guest could not take on its identity, and stays closed")]
    Refused,
}

/// What a host asks of its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Stop serving, freeze what runs, and acknowledge this number.
    Quiesce(u64),
    /// Go on. Any new identity comes first.
    Resume(u64),
    /// Take on this identity and acknowledge it, before anything runs that could use the old one.
    Identity(Identity),
}

impl Link {
    /// Waits for a condition on the peer's link words, repeating the bell.
    async fn acknowledged<T>(
        &self,
        what: &'static str,
        deadline: Duration,
        mut done: impl FnMut(&LinkCore) -> Option<T>,
    ) -> Result<T, Unanswered> {
        let until = self.now() + deadline;
        let mut repeat = REPEAT;
        loop {
            let look = poll_fn(|cx| self.core().poll_link(cx, &mut done));
            let next = until.min(self.now() + repeat);
            if let Some(done) = self.until(next, look).await {
                return Ok(done);
            }
            if next == until {
                return Err(Unanswered { what, deadline });
            }
            let _ = self.core().ring();
            repeat = (2 * repeat).min(REPEAT_AT_LAST);
        }
    }

    /// Host: asks the guest to be quiet, and waits until it is: its agent has stopped serving, and the
    /// user's processes are frozen. On a failure the request is taken back.
    pub async fn quiesce(&self, deadline: Duration) -> Result<(), Unanswered> {
        // Odd while it is asked for.
        let request = self.core().my_word(LinkWord::Quiesce).wrapping_add(1) | 1;
        self.core().publish_link(LinkWord::Quiesce, request);
        let done = |core: &LinkCore| (core.peer_word(LinkWord::Quiesce) == request).then_some(());
        let result = self.acknowledged("to be quiet for a snapshot", deadline, done).await;
        if result.is_err() {
            self.lift_quiesce();
        }
        result
    }

    /// Host: lets the guest go on. Does nothing where it was not asked to be quiet.
    pub fn lift_quiesce(&self) {
        let request = self.core().my_word(LinkWord::Quiesce);
        if request % 2 == 1 {
            self.core().publish_link(LinkWord::Quiesce, request + 1);
        }
    }

    /// Host: gives the guest an identity. Numbers must grow; the clock should be read just before.
    pub fn give_identity(&self, identity: &Identity) {
        self.core().write_identity(identity);
    }

    /// Host: number of the identity that was given last, or that a killed predecessor had begun to give
    /// (nobody will acknowledge that one); zero for none.
    pub fn identity_seq(&self) -> u64 {
        self.core().last_identity()
    }

    /// Host: waits until the guest has taken on the identity that was given last, repeating the bell;
    /// then erases its entropy.
    pub async fn identity_taken(&self, deadline: Duration) -> Result<(), NotTaken> {
        let seq = self.identity_seq();
        let done = |core: &LinkCore| match core.peer_word(LinkWord::Identity) {
            taken if taken == seq => Some(true),
            refused if refused == seq | Identity::REFUSED => Some(false),
            _ => None,
        };
        let taken = self.acknowledged("to take on its identity", deadline, done).await?;
        self.core().erase_entropy();
        if taken { Ok(()) } else { Err(NotTaken::Refused) }
    }

    /// Host: waits until the guest's agent has attached for the first time.
    pub async fn agent_attached(&self, deadline: Duration) -> Result<(), Unanswered> {
        self.acknowledged("to start its agent", deadline, |core| (core.peer_word(LinkWord::Agent) != 0).then_some(()))
            .await
    }

    /// Host: the agent's protocol version; zero before the guest has attached.
    pub fn agent_version(&self) -> u32 {
        u32::try_from(self.core().peer_word(LinkWord::Agent)).unwrap_or(u32::MAX)
    }

    /// Guest: the next request that has not been acknowledged, an identity before anything else.
    /// Cancel-safe: what is not acknowledged comes again.
    pub async fn request(&self) -> Request {
        poll_fn(|cx| {
            let request = self.core().poll_link(cx, next_request);
            if request.is_pending() {
                self.arm_backstop();
            }
            request
        })
        .await
    }

    /// Guest: has followed a request to be quiet, or to go on.
    pub fn acknowledge_quiesce(&self, request: u64) {
        self.core().publish_link(LinkWord::Quiesce, request);
    }

    /// Guest: has taken on an identity.
    pub fn acknowledge_identity(&self, seq: u64) {
        self.core().publish_link(LinkWord::Identity, seq);
    }

    /// Guest: could not take on an identity. It does not come again.
    pub fn refuse_identity(&self, seq: u64) {
        self.core().publish_link(LinkWord::Identity, seq | Identity::REFUSED);
    }
}

fn next_request(core: &LinkCore) -> Option<Request> {
    let answered = core.my_word(LinkWord::Identity) & !Identity::REFUSED;
    let identity = core.read_identity().filter(|identity| identity.seq != answered);
    if let Some(identity) = identity {
        return Some(Request::Identity(identity));
    }
    let (asked, followed) = (core.peer_word(LinkWord::Quiesce), core.my_word(LinkWord::Quiesce));
    if asked == followed {
        return None;
    }
    Some(if asked % 2 == 1 { Request::Quiesce(asked) } else { Request::Resume(asked) })
}
