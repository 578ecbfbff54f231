//! The identity block: which timeline this is, and what makes it different from its siblings.

use throughline_shmem::Words;
use throughline_shmem::sync::{Ordering, fence};

use crate::{Hostname, Layout, Ledger, LinkWord, Side};

/// Words of the block: epoch (2), parent (2), index, clock, flags, number, entropy (8), host name (8).
const WORDS: usize = 24;
/// The number once more: it stays while `seq` is taken back, so that one that a killed host had begun to
/// give is not given to another identity.
const NUMBER_AT: usize = 7;
const ENTROPY_AT: usize = 8;
const HOSTNAME_AT: usize = 16;

/// Who a VM is from now on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Grows with each identity of a region; zero before the first.
    pub seq: u64,
    /// The timeline's id.
    pub epoch: u128,
    /// The timeline that this one comes from; zero for a first boot.
    pub parent: u128,
    /// Which child of a fork this is, from 1; zero for none.
    pub index: u64,
    /// The host's `CLOCK_REALTIME`, in nanoseconds, just before the VM runs.
    pub clock_ns: u64,
    /// What to do: [`Identity::RENEW_NAMES`], [`Identity::SECRETS_FOLLOW`].
    pub flags: u64,
    /// Random bytes for the guest kernel's pool; zeroed once they are used.
    pub entropy: [u8; 64],
    /// The guest's host name, where names are renewed; one that follows from the epoch without.
    pub hostname: Option<Hostname>,
}

impl Identity {
    /// Flag: renew machine-id and hostname.
    pub const RENEW_NAMES: u64 = 1;
    /// Flag: a rehearsal of the identity that comes next. The guest's agent goes through everything that taking it on
    /// and a first command will execute, but the hooks; then it stays as silent as it was.
    pub const REHEARSE: u64 = 2;
    /// Flag: the user's secrets follow, and nothing of the user's runs before them.
    pub const SECRETS_FOLLOW: u64 = 4;

    /// In the guest's acknowledgement, beside the number: it could not be taken on, and the guest stays closed.
    pub const REFUSED: u64 = 1 << 63;
}

impl core::fmt::Debug for Identity {
    /// Leaves the entropy out: it is a secret of this VM.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Identity")
            .field("seq", &self.seq)
            .field("epoch", &self.epoch)
            .field("parent", &self.parent)
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

/// Host: writes the block, `seq` last. The previous `seq` is taken back first, so that a reader that
/// is in the middle of the old block sees that it changed.
pub fn write_identity(ledger: &Ledger<impl Words>, layout: &Layout, identity: &Identity) {
    let seq_at = layout.link_word(Side::Host, LinkWord::Identity);
    let block = layout.link_word(Side::Host, LinkWord::IdentityBlock);
    ledger.publish(seq_at, 0);
    fence(Ordering::Release);
    for (word, value) in encode(identity).into_iter().enumerate() {
        ledger.publish(block + word, value);
    }
    ledger.publish(seq_at, identity.seq);
}

/// Guest: reads the block; `None` while there is none, or while it is being written.
pub fn read_identity(ledger: &Ledger<impl Words>, layout: &Layout) -> Option<Identity> {
    let seq_at = layout.link_word(Side::Host, LinkWord::Identity);
    let block = layout.link_word(Side::Host, LinkWord::IdentityBlock);
    let seq = ledger.alleged(seq_at);
    let mut words = [0; WORDS];
    for (at, word) in (block..).zip(words.iter_mut()) {
        *word = ledger.alleged(at);
    }
    fence(Ordering::Acquire);
    (seq != 0 && ledger.alleged(seq_at) == seq).then(|| decode(seq, &words))
}

/// Host: the largest number that was given, or begun to be given.
pub fn last_identity(ledger: &Ledger<impl Words>, layout: &Layout) -> u64 {
    let seq = ledger.kept(layout.link_word(Side::Host, LinkWord::Identity));
    seq.max(ledger.kept(layout.link_word(Side::Host, LinkWord::IdentityBlock) + NUMBER_AT))
}

/// Host: zeroes the entropy, once the guest has mixed it in.
pub fn erase_entropy(ledger: &Ledger<impl Words>, layout: &Layout) {
    let block = layout.link_word(Side::Host, LinkWord::IdentityBlock);
    for at in block + ENTROPY_AT..block + HOSTNAME_AT {
        ledger.publish(at, 0);
    }
}

fn encode(identity: &Identity) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    words[0] = identity.epoch as u64;
    words[1] = (identity.epoch >> 64) as u64;
    words[2] = identity.parent as u64;
    words[3] = (identity.parent >> 64) as u64;
    words[4] = identity.index;
    words[5] = identity.clock_ns;
    words[6] = identity.flags;
    words[NUMBER_AT] = identity.seq;
    for (at, bytes) in [(ENTROPY_AT, identity.entropy), (HOSTNAME_AT, Hostname::padded(identity.hostname))] {
        for (word, bytes) in words[at..].iter_mut().zip(bytes.chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
    }
    words
}

fn decode(seq: u64, words: &[u64; WORDS]) -> Identity {
    let field = |at: usize| {
        let mut field = [0; 64];
        for (bytes, word) in field.chunks_exact_mut(8).zip(&words[at..]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        field
    };
    let pair = |at: usize| u128::from(words[at]) | u128::from(words[at + 1]) << 64;
    Identity {
        seq,
        epoch: pair(0),
        parent: pair(2),
        index: words[4],
        clock_ns: words[5],
        flags: words[6],
        entropy: field(ENTROPY_AT),
        hostname: Hostname::of_padded(field(HOSTNAME_AT)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Class, Geometry};
    use throughline_shmem::HeapWords;

    #[test]
    fn identity_comes_back_and_its_entropy_goes() {
        let geometry = Geometry::new(alloc::vec![Class { opener: Side::Host, count: 1, ring_bytes: 4096 }]).unwrap();
        let layout = Layout::new(&geometry);
        let memory = HeapWords::new(layout.region_words());
        let ledger = Ledger::new(&memory, None);
        assert_eq!(read_identity(&ledger, &layout), None);
        let mut entropy = [0; 64];
        entropy.iter_mut().enumerate().for_each(|(at, byte)| *byte = at as u8 + 1);
        let hostname = Hostname::new("web-2").ok();
        let identity =
            Identity { seq: 3, epoch: 1 << 100, parent: 5, index: 2, clock_ns: 9, flags: 1, entropy, hostname };
        write_identity(&ledger, &layout, &identity);
        assert_eq!(read_identity(&ledger, &layout), Some(identity));
        erase_entropy(&ledger, &layout);
        assert_eq!(read_identity(&ledger, &layout), Some(Identity { entropy: [0; 64], ..identity }));
    }
}
