//! What a timeline has received from its guest, judged byte by byte.

use anyhow::Result;
use throughline_wire::sequence::{Checker, Direction, Params, Place, Seen, StreamChecker, locate};

use super::course::Course;
use super::record::Mark;

/// The guest's direction of a channel of records, as far as a timeline has read it. Its clone goes on in another one.
#[derive(Debug, Clone)]
pub struct Received {
    course: Course,
    params: Params,
    /// Position of the next byte.
    at: Option<u64>,
    checker: Either,
    /// Pieces that did not begin where the last one ended.
    pub jumps: u64,
}

#[derive(Debug, Clone)]
enum Either {
    Messages(Checker),
    Stream(StreamChecker),
}

impl Received {
    pub fn new(course: Course, seed: u64) -> Self {
        let params = course.params(seed);
        let checker = match course {
            Course::Stream => Either::Stream(StreamChecker::new(params, Direction::ToHost)),
            _ => Either::Messages(Checker::new(params, Direction::ToHost)),
        };
        Self { course, params, at: None, checker, jumps: 0 }
    }

    /// Judges the piece that was received at a position.
    pub fn piece(&mut self, at: u64, bytes: &[u8]) {
        // Content tells what is missing or came twice; positions tell that nothing hid between pieces.
        self.jumps += u64::from(self.at.is_some_and(|expected| expected != at));
        self.at = Some(at + self.course.span(bytes.len()));
        match &mut self.checker {
            Either::Messages(checker) => {
                checker.record(bytes);
            }
            Either::Stream(checker) => {
                checker.feed(bytes);
            }
        }
    }

    /// Where it stands, if anything has come.
    pub fn at(&self) -> Option<u64> {
        self.at
    }

    pub fn params(&self) -> &Params {
        &self.params
    }

    pub fn seen(&self) -> Seen {
        match &self.checker {
            Either::Messages(checker) => checker.seen(),
            Either::Stream(checker) => checker.seen(),
        }
    }

    /// Records that a snapshot carried or held before, and that have not come.
    pub fn missing(&self, mark: &Mark) -> Result<u64> {
        let end = mark.received + mark.unread - mark.received_from;
        let number = records_before(self.course, &self.params, Direction::ToHost, end)?;
        Ok(number.saturating_sub(self.seen().next))
    }
}

/// Whole records in the first `offset` bytes of a direction.
pub fn records_before(course: Course, params: &Params, direction: Direction, offset: u64) -> Result<u64> {
    Ok(match locate(params, direction, course.framing(), offset)? {
        Place::Record { number, .. } => number,
        Place::Params { .. } | Place::End { .. } => 0,
    })
}
