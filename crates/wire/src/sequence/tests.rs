//! Sequence records: accounting, taking over at every position, hostile bytes.

use super::record::write_end;
use super::*;

const FRAMING: Framing = Framing::Messages { header: 8, align: 8 };

fn params() -> Params {
    Params { min_len: 24, max_len: 200, host_records: 40, guest_records: 30, ..Params::new(7) }
}

fn records(params: Params, direction: Direction, count: usize) -> Vec<Vec<u8>> {
    let mut sender = Sender::new(params, direction);
    (0..count)
        .map(|_| {
            let mut record = Vec::new();
            sender.append(&mut record);
            record
        })
        .collect()
}

#[test]
fn params_survive_encoding_and_reject_rubbish() {
    let params = params();
    assert_eq!(Params::from_bytes(&params.to_bytes()), Ok(params));
    assert_eq!(Params::from_bytes(b"short"), Err(ParamsError::Length(5)));
    assert_eq!(Params::from_bytes(&[0; PARAMS_LEN]), Err(ParamsError::Magic));
    let reversed = Params { min_len: 100, max_len: 99, ..params };
    assert_eq!(Params::from_bytes(&reversed.to_bytes()), Err(ParamsError::Range { min: 100, max: 99 }));
    assert!(Params { min_len: 23, ..params }.check().is_err());
    assert!(Params { max_len: (MAX_RECORD + 1) as u32, ..params }.check().is_err());
}

#[test]
fn first_record_has_golden_bytes() {
    let params = Params { min_len: 28, max_len: 28, ..Params::new(1) };
    let record = &records(params, Direction::ToHost, 1)[0];
    assert_eq!(
        record[..],
        [1, 76, 84, 114, 28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 98, 27, 9, 213, 192, 255, 27, 210, 134, 159, 201, 57]
    );
}

#[test]
fn a_clean_run_is_complete_and_hashes_agree() {
    let params = params();
    let mut sender = Sender::new(params, Direction::ToGuest);
    let mut checker = Checker::new(params, Direction::ToGuest);
    while !sender.is_done() {
        let mut record = Vec::new();
        sender.append(&mut record);
        assert!(matches!(checker.record(&record), Parsed::Record { .. }));
    }
    let mut end = Vec::new();
    sender.append_end(&mut end);
    assert_eq!(checker.record(&end), Parsed::End { total: 40 });
    let (sent, seen) = (sender.sent(), checker.seen());
    assert!(seen.is_complete(), "{seen:?}");
    assert_eq!((sent.records, sent.bytes, sent.hash), (seen.records, seen.bytes, seen.hash));
}

#[test]
fn loss_doubling_reordering_and_damage_are_told_apart() {
    let params = params();
    let made = records(params, Direction::ToHost, 8);
    let mut checker = Checker::new(params, Direction::ToHost);
    let mut damaged = made[6].clone();
    damaged[9] ^= 1;
    for record in [&made[0], &made[3], &made[2], &made[0], &damaged, &made[7]] {
        checker.record(record);
    }
    let seen = checker.seen();
    assert_eq!((seen.lost, seen.doubled, seen.reordered, seen.damaged), (4, 1, 1, 1), "{seen:?}");
    assert_eq!((seen.records, seen.next), (4, 8));
    let mut end = Vec::new();
    write_end(&params, Direction::ToHost, 10, &mut end);
    checker.record(&end);
    assert_eq!(checker.seen().lost, 6);
    assert!(!checker.seen().is_complete());
}

#[test]
fn records_of_another_direction_or_seed_are_damaged() {
    let params = params();
    let record = &records(params, Direction::ToHost, 1)[0];
    assert_eq!(Checker::new(params, Direction::ToGuest).record(record), Parsed::Damaged);
    let other = Params { seed: 8, ..params };
    assert_eq!(Checker::new(other, Direction::ToHost).record(record), Parsed::Damaged);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let params = params();
    let record = &records(params, Direction::ToHost, 3)[2];
    for bit in 0..record.len() * 8 {
        let mut changed = record.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let mut checker = Checker::new(params, Direction::ToHost);
        assert_eq!(checker.record(&changed), Parsed::Damaged, "bit {bit}");
    }
}

/// The whole of a direction as a stream, with its end record.
fn stream_of(params: Params, direction: Direction) -> Vec<u8> {
    let mut sender = Sender::new(params, direction);
    let mut bytes = Vec::new();
    if direction == Direction::ToGuest {
        bytes.extend_from_slice(&params.to_bytes());
    }
    while !sender.is_done() {
        sender.append(&mut bytes);
    }
    sender.append_end(&mut bytes);
    bytes
}

#[test]
fn a_stream_can_be_taken_over_at_every_byte() {
    let params = params();
    for direction in [Direction::ToGuest, Direction::ToHost] {
        let bytes = stream_of(params, direction);
        for cut in 0..=bytes.len() {
            let place = locate(&params, direction, Framing::Stream, cut as u64).unwrap();
            let Place::Record { number, within } = place else { continue };
            let mut stream = StreamChecker::resume(params, direction, number, within);
            for piece in bytes[cut..].chunks(33) {
                stream.feed(piece);
            }
            assert!(stream.seen().is_complete(), "cut {cut}: {:?}", stream.seen());
            assert_eq!(stream.pending(), 0);
            let mut rest = Vec::new();
            let mut sender = Sender::resume(params, direction, number);
            while !sender.is_done() {
                sender.append(&mut rest);
            }
            sender.append_end(&mut rest);
            assert_eq!(rest[within..], bytes[cut..]);
        }
        let end = bytes.len() as u64;
        let locate = |at| locate(&params, direction, Framing::Stream, at);
        assert_eq!(locate(end), Ok(Place::End { within: HEADER_LEN }));
        assert_eq!(locate(end + 1), Err(LocateError::BehindEnd(end + 1)));
        assert_eq!(locate(u64::MAX), Err(LocateError::TooFar(u64::MAX)));
    }
}

#[test]
fn messages_are_located_by_their_frames() {
    let params = params();
    let frame = |len: usize| (8 + len).next_multiple_of(8) as u64;
    let mut at = 0;
    let place = |at| locate(&params, Direction::ToGuest, FRAMING, at);
    assert_eq!(place(at), Ok(Place::Params { within: 0 }));
    at += frame(PARAMS_LEN);
    for (number, record) in records(params, Direction::ToGuest, 40).iter().enumerate() {
        assert_eq!(place(at), Ok(Place::Record { number: number as u64, within: 0 }));
        assert_eq!(place(at + 8), Err(LocateError::InsideMessage(at + 8)));
        at += frame(record.len());
    }
    assert_eq!(place(at), Ok(Place::End { within: 0 }));
    assert_eq!(place(at + 32), Ok(Place::End { within: HEADER_LEN }));
}

#[test]
fn a_stream_with_a_hole_finds_its_way_back() {
    let params = params();
    let made = records(params, Direction::ToHost, 30);
    let mut bytes = stream_of(params, Direction::ToHost);
    let start: usize = made[..5].iter().map(Vec::len).sum();
    // Cut out all of record 6 and the middle of its neighbours.
    let hole = start + 10..start + made[5].len() + made[6].len() + 12;
    bytes.drain(hole);
    let mut stream = StreamChecker::new(params, Direction::ToHost);
    for piece in bytes.chunks(7) {
        stream.feed(piece);
    }
    let seen = stream.seen();
    assert_eq!((seen.lost, seen.damaged, seen.records), (3, 1, 27), "{seen:?}");
    assert_eq!((seen.total, stream.pending()), (Some(30), 0));
}

#[test]
fn hostile_records_never_panic_and_memory_stays_bounded() {
    let params = params();
    let mut random = 1_u64;
    let mut stream = StreamChecker::new(params, Direction::ToGuest);
    let mut checker = Checker::new(params, Direction::ToGuest);
    let honest = stream_of(params, Direction::ToGuest);
    for round in 0..20_000 {
        random = super::record::mix(random);
        let at = random as usize % honest.len();
        let mut piece = honest[at..(at + 60).min(honest.len())].to_vec();
        if round % 3 == 0 {
            let flip = (random >> 32) as usize % piece.len();
            piece[flip] = (random >> 24) as u8;
        }
        checker.record(&piece);
        stream.feed(&piece);
        assert!(stream.pending() <= params.max_len as usize);
    }
    // Valid records with absurd numbers, which only somebody who knows the seed can make.
    for number in [u64::MAX, u64::MAX - 1, 1 << 63, 5, u64::MAX] {
        let mut record = Vec::new();
        write_record(&params, Direction::ToGuest, number, &mut record);
        checker.record(&record);
        write_end(&params, Direction::ToGuest, number, &mut record);
        checker.record(&record[record.len() - HEADER_LEN..]);
    }
    assert!(checker.seen().lost > 0);
}

#[test]
fn a_resumed_checker_equals_one_that_saw_everything() {
    let params = params();
    let made = records(params, Direction::ToHost, 30);
    let mut through = Checker::new(params, Direction::ToHost);
    let mut resumed = Checker::resume(params, Direction::ToHost, 11);
    for (number, record) in made.iter().enumerate() {
        through.record(record);
        if number >= 11 {
            resumed.record(record);
        }
    }
    assert_eq!(through.seen(), resumed.seen());
}
