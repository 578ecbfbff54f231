//! What a timeline has heard of the command, judged byte by byte.

use throughline_wire::decode;
use throughline_wire::exec::{Event, Exit};

use super::course::{EXIT_CODE, last_line, line};

/// The command's events, as far as a timeline has read them. Its clone goes on in another one.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    text: Vec<u8>,
    exit: Option<Exit>,
    /// What was wrong.
    pub wrong: Vec<String>,
}

/// How far the output has come.
#[derive(Debug, PartialEq, Eq)]
pub struct Output {
    /// Whole lines.
    pub lines: u64,
    /// Whether the last line, with the right count, is among them.
    pub complete: bool,
    /// Bytes that are what they must be.
    pub good: usize,
}

impl Heard {
    /// Takes one message of the channel.
    pub fn message(&mut self, bytes: &[u8]) {
        match decode::<Event>(bytes) {
            Ok(Event::Stdout { at, data }) => {
                if at != self.text.len() as u64 {
                    self.wrong.push(format!("output at {at} follows {} bytes", self.text.len()));
                }
                self.text.extend_from_slice(data);
            }
            Ok(Event::Started { .. }) if self.text.is_empty() => {}
            Ok(Event::Exited(exit)) if self.exit.is_none() => self.exit = Some(exit),
            Ok(event) => self.wrong.push(format!("an event that nobody expects: {event:?}")),
            Err(error) => self.wrong.push(error.to_string()),
        }
    }

    /// Bytes of output.
    pub fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Compares the output with what it must be.
    pub fn output(&self) -> Output {
        let mut rest = self.text.as_slice();
        let mut lines = 0;
        while let Some(behind) = rest.strip_prefix(line(lines).as_slice()) {
            rest = behind;
            lines += 1;
        }
        let complete = rest == last_line(lines);
        let begun = line(lines).starts_with(rest) || last_line(lines).starts_with(rest);
        Output { lines, complete, good: if begun { self.text.len() } else { self.text.len() - rest.len() } }
    }

    /// What is wrong with what has come so far.
    pub fn findings(&self) -> Vec<String> {
        let mut findings = self.wrong.clone();
        let output = self.output();
        if output.good < self.text.len() {
            findings.push(format!("exec: output is wrong from byte {} on", output.good));
        }
        findings
    }

    /// Whether everything has come, and the command has ended as it should.
    pub fn complete(&self) -> bool {
        self.output().complete && self.exit == Some(Exit::Code(EXIT_CODE)) && self.wrong.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use throughline_wire::encode;

    use super::*;

    fn stdout(at: u64, data: &[u8]) -> Vec<u8> {
        encode(&Event::Stdout { at, data }).expect("a message")
    }

    fn heard(messages: &[Vec<u8>]) -> Heard {
        let mut heard = Heard::default();
        for message in messages {
            heard.message(message);
        }
        heard
    }

    #[test]
    fn complete_is_every_line_the_count_and_the_exit_code() {
        let text = [line(0), line(1), last_line(2)].concat();
        let exit = |code| encode(&Event::Exited(Exit::Code(code))).expect("a message");
        let (first, second) = text.split_at(9);
        let all = [stdout(0, first), stdout(9, second), exit(EXIT_CODE)];
        assert!(heard(&all).complete() && heard(&all).findings().is_empty());
        assert!(!heard(&all[..2]).complete());
        assert!(heard(&all[..1]).findings().is_empty(), "half a line may come");
        assert!(!heard(&[stdout(0, &text), exit(0)]).complete());
        assert!(!heard(&[stdout(0, &text), stdout(0, &text), exit(EXIT_CODE)]).complete());
        assert!(!heard(&[stdout(0, &[line(0), line(2)].concat())]).findings().is_empty());
        assert!(!heard(&[stdout(0, &[line(0), last_line(2)].concat())]).output().complete);
    }
}
