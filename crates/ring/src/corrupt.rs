//! What a side finds wrong with the peer's words.

/// A word that the peer owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PeerWord {
    /// The channel's state.
    State = 1,
    /// End of the peer's bytes.
    Produced = 2,
    /// End of my bytes whose space is free.
    Freed = 3,
    /// The header of a message.
    Frame = 4,
}

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// A position went back.
    WentBack = 1,
    /// A position lies beyond what the other cursor allows.
    Beyond = 2,
    /// A position that must lie on a word's boundary does not.
    Unaligned = 3,
    /// The bits mean nothing.
    Malformed = 4,
    /// The generation is neither mine nor the next.
    Generation = 5,
    /// The state cannot follow the one before.
    Transition = 6,
    /// A message is longer than what is there, or than a ring.
    Length = 7,
    /// A message's header carries another position's mark.
    Mark = 8,
    /// A ring held bytes when its channel was opened.
    NotEmpty = 9,
}

/// The peer broke the protocol. Terminal for the channel: nothing is skipped, nothing goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer's {} {} (it says {value:#x})", self.word.name(), self.fault.says())]
pub struct Corrupt {
    /// Which word.
    pub word: PeerWord,
    /// What is wrong with it.
    pub fault: Fault,
    /// What it said.
    pub value: u64,
}

impl PeerWord {
    fn name(self) -> &'static str {
        match self {
            Self::State => "state word",
            Self::Produced => "`produced` cursor",
            Self::Freed => "`freed` cursor",
            Self::Frame => "message header",
        }
    }
}

impl Fault {
    fn says(self) -> &'static str {
        match self {
            Self::WentBack => "went back",
            Self::Beyond => "lies beyond what the ring allows",
            Self::Unaligned => "does not lie on a word's boundary",
            Self::Malformed => "has meaningless bits",
            Self::Generation => "names a generation that cannot be",
            Self::Transition => "cannot follow its last value",
            Self::Length => "gives a length that cannot be",
            Self::Mark => "belongs to another position",
            Self::NotEmpty => "leaves bytes in a ring that must be empty",
        }
    }
}

impl Corrupt {
    /// As a word to keep in the sidecar; never zero.
    #[must_use]
    pub fn mark(self) -> u64 {
        (self.word as u64) << 8 | self.fault as u64
    }

    /// From a kept word and the value kept beside it; `None` where the channel was not given up.
    pub fn from_mark(mark: u64, value: u64) -> Option<Self> {
        const WORDS: [PeerWord; 4] = [PeerWord::State, PeerWord::Produced, PeerWord::Freed, PeerWord::Frame];
        const FAULTS: [Fault; 9] = [
            Fault::WentBack,
            Fault::Beyond,
            Fault::Unaligned,
            Fault::Malformed,
            Fault::Generation,
            Fault::Transition,
            Fault::Length,
            Fault::Mark,
            Fault::NotEmpty,
        ];
        let word = WORDS.into_iter().find(|word| *word as u64 == mark >> 8)?;
        let fault = FAULTS.into_iter().find(|fault| *fault as u64 == mark & 0xff)?;
        Some(Self { word, fault, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corrupt_mark_comes_back() {
        let corrupt = Corrupt { word: PeerWord::Frame, fault: Fault::NotEmpty, value: 7 };
        assert_eq!(Corrupt::from_mark(corrupt.mark(), 7), Some(corrupt));
        assert_eq!(Corrupt::from_mark(0, 0), None);
        assert_eq!(Corrupt::from_mark(0x0505, 0), None);
    }
}
