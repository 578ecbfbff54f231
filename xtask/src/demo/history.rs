//! The history of one timeline after the other.

use std::collections::BTreeMap;

use throughline_wire::report;
use throughline_wire::sequence::{Direction, Seen, Sender};

use super::command::Heard;
use super::course::Course;
use super::received::{Received, records_before};
use super::record::{Entry, Event, Mark};
use super::verdict::{Carried, Figures, Timeline};

/// How long a source has to go on after its snapshot, in milliseconds.
const LEAST_AFTER: u64 = 200;

/// Everything up to the last snapshot.
#[derive(Debug, Default)]
pub struct History {
    now: Reading,
    /// Where the channels stood in the last snapshot.
    frozen: Vec<Mark>,
    /// What was wrong in the guests' own records, as far as it was told before.
    guests: BTreeMap<Course, Figures>,
}

/// What has been read, along one line of ancestors.
#[derive(Debug, Clone, Default)]
struct Reading {
    records: BTreeMap<Course, Received>,
    command: Heard,
}

impl Reading {
    fn begin(&mut self, marks: &[Mark]) {
        for mark in marks.iter().filter(|mark| Course::RECORDS.contains(&mark.course)) {
            self.records.entry(mark.course).or_insert_with(|| Received::new(mark.course, mark.seed));
        }
    }

    fn piece(&mut self, course: Course, at: u64, bytes: &[u8]) {
        match self.records.get_mut(&course) {
            Some(received) => received.piece(at, bytes),
            None => self.command.message(bytes),
        }
    }

    fn figures(&self) -> Figures {
        let all = self.records.values().map(|received| figures(&received.seen()));
        all.fold(Figures::default(), Figures::plus)
    }

    fn jumps(&self) -> u64 {
        self.records.values().map(|received| received.jumps).sum()
    }
}

fn figures(seen: &Seen) -> Figures {
    let Seen { lost, doubled, reordered, damaged, .. } = *seen;
    Figures { lost, doubled, reordered, damaged }
}

impl History {
    /// Whether the command's output is complete, and it ended as it should.
    pub fn command_complete(&self) -> bool {
        self.now.command.complete()
    }

    /// Judges the next timeline, which begins where the last one's snapshot was taken.
    pub fn timeline(&mut self, number: usize, last: bool, entries: &[Entry]) -> (Timeline, Vec<String>) {
        let mut findings = Vec::new();
        let began = marks(entries, |event| if let Event::Began { marks, .. } = event { Some(marks) } else { None });
        let frozen = marks(entries, |event| if let Event::Frozen(marks) = event { Some(marks) } else { None });
        findings.extend(began.map_or_else(Vec::new, |began| moved(&self.frozen, began)));
        self.now.begin(frozen.unwrap_or(&self.frozen));
        let (before, jumps) = (self.now.figures(), self.now.jumps());
        let mut after = self.read(entries, frozen, &mut findings);
        let mut timeline = Timeline { number, heard: self.now.command.bytes(), ..Timeline::default() };
        for entry in entries {
            let pieces = |course: &Course| u64::from(Course::RECORDS.contains(course));
            match &entry.event {
                Event::Sending { course, .. } => timeline.sent += pieces(course),
                Event::Received { course, .. } => timeline.received += pieces(course),
                Event::Failed { course, error } => findings.push(format!("{}: {error}", course.name())),
                _ => {}
            }
        }
        findings.extend(sent_in_order(entries, &self.frozen));
        findings.extend(after.command.findings());
        after.command.wrong.clear();
        timeline.figures = after.figures().minus(before).plus(self.guest(entries, last, &mut findings));
        if after.jumps() > jumps {
            findings.push(format!("{} pieces did not begin where the last one ended", after.jumps() - jumps));
        }
        if let Some(frozen) = frozen {
            self.source(&mut timeline, frozen, entries, &mut findings);
        } else {
            timeline.figures = timeline.figures.plus(self.the_end(last, entries, &mut findings));
        }
        (timeline, findings)
    }

    /// Reads on up to the snapshot; returns what was read after it as well.
    fn read(&mut self, entries: &[Entry], frozen: Option<&Vec<Mark>>, findings: &mut Vec<String>) -> Reading {
        let cut = |course| frozen?.iter().find(|mark| mark.course == course).map(|mark| mark.received);
        let mut pieces: Vec<_> = entries.iter().filter_map(|entry| piece(&entry.event)).collect();
        let behind = pieces.extract_if(.., |(course, at, _)| cut(*course).is_some_and(|cut| *at >= cut));
        let behind: Vec<_> = behind.collect();
        for (course, at, bytes) in pieces {
            self.now.piece(course, at, bytes);
        }
        for (course, received) in &self.now.records {
            if let (Some(cut), Some(at)) = (cut(*course), received.at())
                && cut != at
            {
                findings.push(format!("{}: its record ends at {at}, and the snapshot at {cut}", course.name()));
            }
        }
        let mut after = self.now.clone();
        for (course, at, bytes) in behind {
            after.piece(course, at, bytes);
        }
        after
    }

    /// A source: what its snapshot carried, and how it went on.
    fn source(&mut self, timeline: &mut Timeline, frozen: &[Mark], entries: &[Entry], findings: &mut Vec<String>) {
        for mark in frozen.iter().filter(|mark| Course::RECORDS.contains(&mark.course)) {
            timeline.carried.push(Carried { to_guest: mark.sent_unread, to_host: mark.unread });
            for (bytes, way) in [(mark.sent_unread, "guest"), (mark.unread, "host")] {
                if bytes == 0 {
                    findings.push(format!("{}: the ring to the {way} held nothing", mark.course.name()));
                }
            }
        }
        self.frozen = frozen.to_vec();
        let Some(at) = entries.iter().position(|entry| entry.event == Event::GoesOn) else {
            return findings.push("the source did not go on".to_owned());
        };
        let after = &entries[at..];
        let went_on = after.last().map_or(0, |last| last.ms) - after[0].ms;
        let records = after.iter().filter_map(|entry| piece(&entry.event));
        timeline.after = records.filter(|(course, ..)| Course::RECORDS.contains(course)).count() as u64;
        timeline.went_on_ms = Some(went_on);
        let watched = after.iter().any(|entry| matches!(entry.event, Event::Guest(_)));
        if went_on < LEAST_AFTER || timeline.after == 0 || !watched {
            findings.push(format!("the source went on for {went_on} ms only, with {} records", timeline.after));
        }
    }

    /// The timeline with which the chain ended: everything must have come.
    fn the_end(&self, last: bool, entries: &[Entry], findings: &mut Vec<String>) -> Figures {
        let finished = entries.iter().any(|entry| entry.event == Event::Finished);
        if !last {
            findings.push("the chain ended here".to_owned());
        }
        let mut figures = Figures::default();
        for (course, received) in &self.now.records {
            let seen = received.seen();
            if seen.total.is_none() || !finished {
                findings.push(format!("{}: the guest's direction did not come to its end", course.name()));
                let mark = self.frozen.iter().find(|mark| mark.course == *course);
                figures.lost += mark.map_or(0, |mark| received.missing(mark).unwrap_or(0));
            }
        }
        if !self.now.command.complete() {
            findings.push(format!("exec: not complete after {} bytes", self.now.command.bytes()));
        }
        figures
    }

    /// What the guest wrote down last, held against what the client sent and received.
    fn guest(&mut self, entries: &[Entry], last: bool, findings: &mut Vec<String>) -> Figures {
        let told = entries.iter().rev().find_map(|entry| match &entry.event {
            Event::Guest(channels) => Some(channels),
            _ => None,
        });
        let finished = entries.iter().any(|entry| entry.event == Event::Finished);
        let frozen = entries.iter().find(|entry| matches!(entry.event, Event::Frozen(_)));
        let mut total = Figures::default();
        for (course, received) in &self.now.records {
            let params = received.params();
            let own = told.and_then(|channels| channels.iter().find(|channel| channel.params == *params));
            let known = self.guests.entry(*course).or_default();
            if let Some(own) = own {
                let wrong = figures(&own.seen);
                total = total.plus(wrong.minus(*known));
                *known = wrong.plus(known.minus(wrong));
                let also = if last && finished { guest_at_end(own, received) } else { guest_on_the_way(own) };
                findings.extend(also.into_iter().map(|finding| format!("{}: {finding}", course.name())));
            }
            if !finished && own.map_or(frozen.is_none(), |own| !own.error.is_empty()) {
                // Its ring's content never arrived.
                let mark = self.frozen.iter().find(|mark| mark.course == *course);
                total.lost += mark.map_or(0, |mark| unread_by_guest(mark, own));
            }
        }
        total
    }
}

/// Whether a timeline began elsewhere than where the snapshot was taken. By then the guest runs: it may have read and
/// written.
fn moved(frozen: &[Mark], began: &[Mark]) -> Vec<String> {
    if frozen.len() != began.len() {
        return vec![format!("{} channels came up, and the snapshot had {}", began.len(), frozen.len())];
    }
    let host = |mark: &Mark| Mark { sent_unread: 0, unread: 0, ..*mark };
    let pairs = frozen.iter().zip(began).filter(|(frozen, began)| {
        host(frozen) != host(began) || began.sent_unread > frozen.sent_unread || began.unread < frozen.unread
    });
    let sentence = |(frozen, began): (&Mark, &Mark)| {
        format!(
            "{}: came up with {} sent ({} unread) and {} received ({} unread); the snapshot was taken at {} ({}) and {} ({})",
            frozen.course.name(),
            began.sent,
            began.sent_unread,
            began.received,
            began.unread,
            frozen.sent,
            frozen.sent_unread,
            frozen.received,
            frozen.unread
        )
    };
    pairs.map(sentence).collect()
}

/// A guest's record in the middle of traffic: what it has seen is the beginning of what is sent.
fn guest_on_the_way(own: &report::Channel) -> Vec<String> {
    let mut findings = Vec::new();
    if !own.error.is_empty() {
        findings.push(format!("the guest says: {}", own.error));
    }
    let expected = Sender::resume(own.params, Direction::ToGuest, own.seen.records).sent();
    if own.seen.is_clean() && (own.seen.hash, own.seen.bytes) != (expected.hash, expected.bytes) {
        findings.push("what the guest saw is not what it should have seen".to_owned());
    }
    findings
}

/// A guest's record at the end: all that either side sent has arrived at the other.
fn guest_at_end(own: &report::Channel, received: &Received) -> Vec<String> {
    let mut findings = guest_on_the_way(own);
    if !own.sent.ended || !own.seen.is_complete() {
        findings.push(format!("the guest did not see everything: {:?}", own.seen));
    }
    let (sent, seen) = (own.sent, received.seen());
    if !seen.is_complete() || (seen.records, seen.bytes, seen.hash) != (sent.records, sent.bytes, sent.hash) {
        findings.push(format!("the guest sent {sent:?}, and the client saw {seen:?}"));
    }
    findings
}

/// Records in the ring to the guest that its record does not know.
fn unread_by_guest(mark: &Mark, own: Option<&report::Channel>) -> u64 {
    let params = mark.course.params(mark.seed);
    let records = |end| records_before(mark.course, &params, Direction::ToGuest, end - mark.sent_from).unwrap_or(0);
    let arrived = own.map_or_else(|| records(mark.sent - mark.sent_unread), |own| own.seen.next);
    records(mark.sent).saturating_sub(arrived)
}

/// Whether each piece was sent where the last one ended.
fn sent_in_order(entries: &[Entry], frozen: &[Mark]) -> Vec<String> {
    let mut ends: BTreeMap<Course, u64> = frozen.iter().map(|mark| (mark.course, mark.sent)).collect();
    let mut findings = Vec::new();
    for entry in entries {
        let Event::Sending { course, at, len } = entry.event else { continue };
        if let Some(end) = ends.insert(course, at + course.span(len as usize))
            && end != at
        {
            findings.push(format!("{}: sent at {at}, and not at {end}", course.name()));
        }
    }
    findings
}

fn piece(event: &Event) -> Option<(Course, u64, &[u8])> {
    match event {
        Event::Received { course, at, bytes } => Some((*course, *at, bytes)),
        _ => None,
    }
}

fn marks<'a>(entries: &'a [Entry], choose: impl Fn(&'a Event) -> Option<&'a Vec<Mark>>) -> Option<&'a Vec<Mark>> {
    entries.iter().find_map(|entry| choose(&entry.event))
}

#[cfg(test)]
mod tests;
