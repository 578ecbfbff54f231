//! Cursors, headers and states at eight bits: every value beside every other, against the table in PROTOCOL.md.
//!
//! The code that is shipped is called, with small numbers: it knows no width but that of a position. The same at
//! other places of the number line shows that nothing depends on where they lie.

use alloc::vec::Vec;

use crate::cursor::{check_freed, check_produced};
use crate::frame::{Frame, encode};
use crate::{Fault, Kind, PeerWord, Phase, Position, Reason, State};
use throughline_effort::{of, proved};

/// Where a window of 256 bytes may begin: at zero, across every power of two at which a narrower number would
/// break, and at the end of the positions.
const PLACES: [u64; 5] = [0, (1 << 31) - 128, (1 << 32) - 128, (1 << 35) - 128, (1 << 63) - 512];

/// Of the faults, the first that applies; none where the word may stand.
type Judgement = Option<Fault>;

/// `seen ≤ produced ≤ freed + size`.
fn produced(alleged: i32, seen: i32, freed: i32, size: i32) -> Judgement {
    match alleged {
        _ if alleged < seen => Some(Fault::WentBack),
        _ if alleged > freed + size => Some(Fault::Beyond),
        _ => None,
    }
}

/// `seen ≤ freed ≤ produced` rounded up, on a word's boundary.
fn freed(alleged: i32, seen: i32, produced: i32) -> Judgement {
    let rounded = (produced + 7) / 8 * 8;
    match alleged {
        _ if alleged < seen => Some(Fault::WentBack),
        _ if alleged > rounded => Some(Fault::Beyond),
        _ if alleged % 8 != 0 => Some(Fault::Unaligned),
        _ => None,
    }
}

#[test]
fn every_cursor_of_eight_bits_is_judged_by_the_table() {
    let mut judged = 0;
    // At zero and across 2^31, or everywhere.
    let places = of(2, PLACES.len() as u64) as usize;
    for place in PLACES.into_iter().take(places) {
        let at = |small: i32| place + u64::from(small.unsigned_abs());
        for size in [8, 16, 32, 64, 128] {
            for (one, other) in (0..256).flat_map(|one| (0..256).map(move |other| (one, other))) {
                for alleged in 0..256 {
                    let found = check_produced(at(alleged), Position(at(one)), Position(at(other)), at(size) - place);
                    let expected = produced(alleged, one, other, size);
                    assert_eq!(found.err().map(|corrupt| corrupt.fault), expected);
                    assert!(found.is_err() || found == Ok(Position(at(alleged))));
                }
            }
            judged += 1 << 24;
        }
        for (one, other) in (0..256).flat_map(|one| (0..256).map(move |other| (one, other))) {
            for alleged in 0..256 {
                let found = check_freed(at(alleged), Position(at(one)), Position(at(other)));
                assert_eq!(found.err().map(|corrupt| corrupt.fault), freed(alleged, one, other));
                assert!(found.is_err() || found == Ok(Position(at(alleged))));
            }
        }
        judged += 1 << 24;
    }
    proved("cursors of eight bits beside all others, for five sizes of ring", judged, "words judged");
}

/// A header's length and mark, its place, and the bytes that are there.
#[test]
fn every_header_of_eight_bits_is_judged_by_the_table() {
    let mut judged = 0;
    // Bytes that are there: every one, or those at which something changes.
    let step = of(24, 1) as usize;
    for place in PLACES {
        for at in (0..256).step_by(8) {
            let position = Position(place + at);
            let own = encode(0, position) >> 32;
            for (mark, len) in (0..256).flat_map(|mark| (0..256_u64).map(move |len| (mark, len))) {
                // All marks near the right one, which at zero are all marks of eight bits.
                let mark = u64::from(own as u32 & !0xff | mark);
                for there in (0..=288_u64).step_by(step) {
                    let found = Frame::decode(mark << 32 | len, position, there);
                    let expected = match () {
                        () if mark != own => Some(Fault::Mark),
                        () if 8 + len.div_ceil(8) * 8 > there => Some(Fault::Length),
                        () => None,
                    };
                    assert_eq!(
                        found.err().map(|corrupt| (corrupt.word, corrupt.fault)),
                        expected.map(|fault| (PeerWord::Frame, fault))
                    );
                    if let Ok(frame) = found {
                        assert_eq!((frame.len(), frame.position()), (len as usize, position));
                    }
                    judged += 1;
                }
            }
        }
    }
    proved(
        "headers of eight bits at every place of 256 bytes, with every number of bytes there",
        judged,
        "words judged",
    );
}

/// What a byte of a state means, from PROTOCOL.md: phase, kind, end, reason.
fn meaning(low: u8) -> Option<(Phase, Kind, bool, Reason)> {
    let kind = if low & 4 == 0 { Kind::Stream } else { Kind::Message };
    let reasons = [Reason::Normal, Reason::Reset, Reason::Refused, Reason::Corrupt, Reason::Expired];
    let reason = *reasons.get(usize::from(low >> 4))?;
    match low & 3 {
        // Free words have only their generation.
        0 => (low == 0).then_some((Phase::Free, Kind::Stream, false, Reason::Normal)),
        1 => (low >> 4 == 0).then_some((Phase::Live, kind, low & 8 != 0, Reason::Normal)),
        2 => Some((Phase::Closed, kind, low & 8 != 0, reason)),
        _ => None,
    }
}

/// Eight bits of each part of the word: what is no state is malformed, and what is one is itself again.
#[test]
fn every_state_of_eight_bits_is_decoded_by_the_table() {
    let mut judged = 0_u64;
    for low in 0..=u8::MAX {
        for (generation, port) in (0..256).flat_map(|generation| (0..256).map(move |port| (generation, port))) {
            for (generation, port) in [(generation, port), (generation << 16, port << 24)] {
                let word = u64::from(low) | generation << 8 | port << 32;
                let expected = meaning(low).filter(|(phase, ..)| *phase != Phase::Free || port == 0);
                match (State::decode(word), expected) {
                    (Ok(state), Some(expected)) => {
                        assert_eq!((state.phase, state.kind, state.tx_shut, state.reason), expected);
                        assert_eq!((u64::from(state.generation.number()), u64::from(state.port)), (generation, port));
                        assert_eq!(state.encode(), word);
                    }
                    (Err(corrupt), None) => assert_eq!((corrupt.fault, corrupt.value), (Fault::Malformed, word)),
                    (found, expected) => panic!("{word:#x}: {found:?}, and it is {expected:?}"),
                }
                judged += 1;
            }
        }
    }
    proved("state words with eight bits of each part", judged, "words judged");
}

/// What the peer may say, given mine, and who opens: the table in PROTOCOL.md, section 4.
fn may_stand(i_open: bool, mine: State, peer: State) -> bool {
    let distance = peer.generation.number().wrapping_sub(mine.generation.number()) & 0xff_ffff;
    let (same, next, last) = (distance == 0, distance == 1, distance == 0xff_ffff);
    match (mine.phase, peer.phase) {
        (Phase::Free, Phase::Live) => next && !i_open,
        (Phase::Free, Phase::Closed) => same || next && !i_open,
        (Phase::Live, Phase::Free) => last && i_open,
        (Phase::Closed, Phase::Free) => same || last && i_open,
        (Phase::Free, Phase::Free) | (_, Phase::Live | Phase::Closed) => same,
    }
}

/// Within a use the peer goes live → closed → free, keeps kind and port, and takes back no end.
fn may_follow(before: State, after: State) -> bool {
    let order = |state: State| match state.phase {
        Phase::Live => 0,
        Phase::Closed => 1,
        Phase::Free => 2,
    };
    let kept = (before.kind, before.port) == (after.kind, after.port) && (after.tx_shut || !before.tx_shut);
    match order(after) {
        _ if before == after => true,
        2 => order(before) < 2,
        _ => order(before) == 0 && kept,
    }
}

/// Every state of a side beside every state of the other, and after every state that was seen before.
#[test]
fn every_pair_of_states_and_every_step_is_judged_by_the_table() {
    // Generations around zero, where they come round, and one that is far from all.
    let generations = [0, 1, 2, 0x80_0000, 0xff_fffe, 0xff_ffff_u64];
    let words = generations.into_iter().flat_map(|generation| (0..=0xff).map(move |low| low | generation << 8));
    let states: Vec<State> = words
        .flat_map(|word| [word, word | 5 << 32, word | 6 << 32])
        .filter_map(|word| State::decode(word).ok())
        .collect();
    let mut judged = 0_u64;
    for mine in states.iter().copied() {
        for peer in states.iter().copied() {
            let both = mine.generation == peer.generation && mine.phase != Phase::Free && peer.phase != Phase::Free;
            let fits = !both || (mine.kind, mine.port) == (peer.kind, peer.port);
            for i_open in [true, false] {
                let stands = may_stand(i_open, mine, peer);
                let fault = match () {
                    () if !stands => Some(Fault::Generation),
                    () if !fits => Some(Fault::Transition),
                    () => None,
                };
                let found = mine.check_peer(i_open, None, peer).err().map(|corrupt| corrupt.fault);
                assert_eq!(found, fault, "{i_open} {mine:?} {peer:?}");
                judged += 1;
                if fault.is_some() {
                    continue;
                }
                for seen in states.iter().copied().filter(|seen| seen.generation == peer.generation) {
                    let found = mine.check_peer(i_open, Some(seen), peer).err().map(|corrupt| corrupt.fault);
                    let expected = (!may_follow(seen, peer)).then_some(Fault::Transition);
                    assert_eq!(found, expected, "{i_open} {mine:?}: {seen:?}, then {peer:?}");
                    judged += 1;
                }
            }
        }
    }
    proved("states of both sides, and what was seen before", judged, "triples judged");
}
