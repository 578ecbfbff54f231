//! Two timelines as clients would write them down, true and falsified.

use throughline_wire::encode;
use throughline_wire::exec::{self, Exit};
use throughline_wire::sequence::{Checker, Sent};

use super::super::course::{EXIT_CODE, last_line, line};
use super::*;

const SEED: u64 = 42;
/// Pieces that the snapshot finds consumed.
const CUT: usize = 4;
/// Records that each side sends.
const RECORDS: usize = 9;

/// What the guest sends: records and the end, each with its position.
fn pieces(course: Course) -> Vec<(u64, Vec<u8>)> {
    let mut sender = Sender::new(course.params(SEED), Direction::ToHost);
    let mut at = 0;
    let pieces = (0..=RECORDS).map(|number| {
        let mut bytes = Vec::new();
        if number < RECORDS {
            sender.append(&mut bytes);
        } else {
            sender.append_end(&mut bytes);
        }
        let from = at;
        at += course.span(bytes.len());
        (from, bytes)
    });
    pieces.collect()
}

fn received(course: Course, from: usize, to: usize) -> Vec<Event> {
    let pieces = pieces(course).into_iter().skip(from).take(to - from);
    pieces.map(|(at, bytes)| Event::Received { course, at, bytes }).collect()
}

fn mark(course: Course) -> Mark {
    let received = pieces(course)[CUT].0;
    let sent = 48 + 5000;
    Mark { course, seed: SEED, sent_from: 0, sent, sent_unread: 1000, received_from: 0, received, unread: 1000 }
}

fn frozen() -> Vec<Mark> {
    Course::RECORDS.map(mark).to_vec()
}

/// The guest's record after it has seen some of the client's records, or all.
fn guest(course: Course, seen: usize) -> report::Channel {
    let params = course.params(SEED);
    let (mut sender, mut checker) = (Sender::new(params, Direction::ToGuest), Checker::new(params, Direction::ToGuest));
    for number in 0..=seen {
        let mut bytes = Vec::new();
        if number < RECORDS && number < seen {
            sender.append(&mut bytes);
        } else if seen == RECORDS {
            sender.append_end(&mut bytes);
        } else {
            break;
        }
        checker.record(&bytes);
    }
    let own = Sender::resume(params, Direction::ToHost, RECORDS as u64).sent();
    let sent = Sent { ended: true, ..own };
    let stream = course == Course::Stream;
    report::Channel { params, stream, sent, seen: checker.seen(), finished: false, error: String::new() }
}

fn guests(seen: usize) -> Event {
    Event::Guest(Course::RECORDS.map(|course| guest(course, seen)).to_vec())
}

fn command() -> Vec<Event> {
    let text = [line(0), line(1), last_line(2)].concat();
    let events = [exec::Event::Stdout { at: 0, data: &text }, exec::Event::Exited(Exit::Code(EXIT_CODE))];
    let messages = events.map(|event| encode(&event).expect("a message"));
    messages.map(|bytes| Event::Received { course: Course::Command, at: 0, bytes }).to_vec()
}

/// The true history: a source that goes on, and the timeline that is restored from its snapshot.
fn story() -> [Vec<Event>; 2] {
    let mut source = vec![Event::Began { timeline: 1, marks: Vec::new() }];
    let mut restored = vec![Event::Began { timeline: 2, marks: frozen() }];
    for course in Course::RECORDS {
        // The fifth piece is written down before the snapshot, and was not consumed by then.
        source.extend(received(course, 0, CUT + 1));
        restored.extend(received(course, CUT, RECORDS + 1));
    }
    source.extend([Event::Frozen(frozen()), Event::GoesOn]);
    for course in Course::RECORDS {
        source.extend(received(course, CUT + 1, CUT + 3));
    }
    source.push(guests(3));
    restored.extend(command());
    restored.extend([guests(RECORDS), Event::Finished]);
    [source, restored]
}

/// Judges: figures, findings, and whether the command is complete.
fn judge([source, restored]: [Vec<Event>; 2]) -> (Figures, Vec<String>, bool) {
    let timed = |events: Vec<Event>| -> Vec<Entry> {
        events.into_iter().enumerate().map(|(at, event)| Entry { ms: at as u64 * 100, event }).collect()
    };
    let mut history = History::default();
    let (first, mut findings) = history.timeline(0, false, &timed(source));
    let (second, more) = history.timeline(1, true, &timed(restored));
    findings.extend(more);
    (first.figures.plus(second.figures), findings, history.command_complete())
}

/// The place of a piece of the restored timeline.
fn place(events: &[Event], course: Course, number: usize) -> usize {
    let at = pieces(course)[number].0;
    let is = |event: &Event| matches!(piece(event), Some((found, from, _)) if found == course && from == at);
    events.iter().position(is).expect("such a piece")
}

#[test]
fn a_true_history_passes_and_each_line_counts_an_uncommitted_piece_once() {
    assert_eq!(judge(story()), (Figures::default(), Vec::new(), true));
}

#[test]
fn a_record_that_did_not_come_is_lost() {
    for course in Course::RECORDS {
        let [source, mut restored] = story();
        restored.remove(place(&restored, course, CUT + 1));
        let (figures, findings, _) = judge([source, restored]);
        assert_eq!(figures, Figures { lost: 1, ..Figures::default() }, "{course:?}");
        assert!(findings.iter().any(|finding| finding.contains("did not begin where")), "{findings:?}");
    }
}

#[test]
fn a_record_that_came_again_is_doubled_also_when_an_ancestor_had_it() {
    for course in Course::RECORDS {
        let [source, mut restored] = story();
        let at = place(&restored, course, CUT);
        restored.splice(at..at, received(course, CUT - 1, CUT));
        assert_eq!(judge([source, restored]).0, Figures { doubled: 1, ..Figures::default() }, "{course:?}");
    }
}

#[test]
fn a_record_that_others_overtook_is_reordered() {
    for course in Course::RECORDS {
        let [source, mut restored] = story();
        let at = place(&restored, course, CUT + 1);
        restored.swap(at, at + 1);
        assert_eq!(judge([source, restored]).0, Figures { reordered: 1, ..Figures::default() }, "{course:?}");
    }
}

#[test]
fn a_loss_after_the_snapshot_is_the_sources_alone() {
    let [mut source, restored] = story();
    // The piece that was written down but not consumed: without it the source's own line has a gap.
    source.remove(place(&source, Course::Messages, CUT));
    assert_eq!(judge([source, restored]).0, Figures { lost: 1, ..Figures::default() });
}

#[test]
fn what_a_chain_that_ended_early_had_carried_is_lost() {
    let [source, _] = story();
    let restored = vec![Event::Began { timeline: 2, marks: frozen() }];
    let (figures, findings, complete) = judge([source, restored]);
    assert!(figures.lost >= 2 && !complete, "{figures:?} {findings:?}");
}

#[test]
fn an_empty_ring_and_a_source_that_stopped_are_found() {
    for empty in [|mark: &mut Mark| mark.unread = 0, |mark: &mut Mark| mark.sent_unread = 0] {
        let [mut source, restored] = story();
        for event in &mut source {
            if let Event::Frozen(marks) = event {
                empty(&mut marks[1]);
            }
        }
        let findings = judge([source, restored]).1;
        assert!(findings.iter().any(|finding| finding.contains("held nothing")), "{findings:?}");
    }
    let [mut source, restored] = story();
    let goes_on = source.iter().position(|event| *event == Event::GoesOn).expect("it goes on");
    source.truncate(goes_on + 1);
    let findings = judge([source, restored]).1;
    assert!(findings.iter().any(|finding| finding.contains("went on for")), "{findings:?}");
}

#[test]
fn a_timeline_that_came_up_elsewhere_is_found() {
    let [source, mut restored] = story();
    let mut marks = frozen();
    marks[0].sent -= 8;
    restored[0] = Event::Began { timeline: 2, marks };
    let findings = judge([source, restored]).1;
    assert!(findings.iter().any(|finding| finding.starts_with("messages: came up with")), "{findings:?}");
}

#[test]
fn a_guest_that_did_not_see_everything_is_found() {
    let [source, mut restored] = story();
    let at = restored.len() - 2;
    restored[at] = guests(RECORDS - 1);
    let findings = judge([source, restored]).1;
    assert!(findings.iter().any(|finding| finding.contains("did not see everything")), "{findings:?}");
}

#[test]
fn a_piece_sent_elsewhere_than_behind_the_last_is_found() {
    let [source, mut restored] = story();
    restored.insert(1, Event::Sending { course: Course::Stream, at: mark(Course::Stream).sent - 1, len: 5 });
    let findings = judge([source, restored]).1;
    assert!(findings.iter().any(|finding| finding.contains("sent at")), "{findings:?}");
}
