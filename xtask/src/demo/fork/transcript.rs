//! What the warmed process says, judged byte by byte, and what its answers must be.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};

/// Primes below this are prepared, and fall into so many families.
pub const LIMIT: usize = 3_000_000;
pub const FAMILIES: usize = 997;

/// The prepared state, computed here once more.
#[derive(Debug)]
pub struct Prepared {
    primes: Vec<u64>,
    /// The sum of each family.
    families: Vec<u64>,
}

impl Prepared {
    pub fn new() -> Self {
        Self::below(LIMIT)
    }

    pub fn below(limit: usize) -> Self {
        let mut composite = vec![false; limit];
        let (mut primes, mut families) = (Vec::new(), vec![0; FAMILIES]);
        for number in 2..limit {
            if composite[number] {
                continue;
            }
            (number * number..limit).step_by(number).for_each(|multiple| composite[multiple] = true);
            primes.push(number as u64);
            families[number % FAMILIES] += number as u64;
        }
        Self { primes, families }
    }

    /// The answer of a guest with this key.
    pub fn answer(&self, key: u128) -> u64 {
        let (first, second) = ((key >> 64) as u64, key as u64);
        self.primes[(first % self.primes.len() as u64) as usize] * self.families[(second % FAMILIES as u64) as usize]
    }

    /// What the computation comes to in a line, from what it came to in the one before.
    fn next(&self, line: u64, value: u64) -> u64 {
        let prime = self.primes[(line % self.primes.len() as u64) as usize];
        value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(prime)
    }
}

/// When, by whom and how often the state was prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preparation {
    pub nonce: String,
    pub at: u64,
    pub preparations: u64,
}

/// An answer, with what it was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub found: u64,
    /// The line that comes next.
    pub line: u64,
    pub epoch: u128,
    pub machine: String,
    pub random: u128,
    pub preparation: Preparation,
}

impl Answer {
    /// What is wrong with the answer of the process that was prepared so, of a guest of this timeline.
    pub fn findings(&self, prepared: &Prepared, preparation: &Preparation, timeline: u128) -> Vec<String> {
        let right = prepared.answer(self.random ^ self.epoch);
        let checks = [
            (self.found == right, format!("it answers {}, and {right} is right", self.found)),
            (self.preparation == *preparation, format!("its state was prepared again: {:?}", self.preparation)),
            (self.preparation.preparations == 1, format!("{} preparations", self.preparation.preparations)),
            (self.epoch == timeline, format!("it believes to be {:032x}, and is {timeline:032x}", self.epoch)),
        ];
        checks.into_iter().filter(|(good, _)| !good).map(|(_, finding)| finding).collect()
    }
}

/// Something that the process said besides its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Prepared(Preparation),
    Answer(Answer),
}

/// What was heard of the process so far. Its clone goes on in a child.
#[derive(Debug, Clone)]
pub struct Transcript {
    prepared: Arc<Prepared>,
    bytes: u64,
    /// The beginning of a line.
    begun: Vec<u8>,
    lines: u64,
    value: u64,
    /// Whether the last line has come, with the right count.
    complete: bool,
    /// What was wrong first; all that follows would be, too.
    wrong: Option<String>,
}

impl Transcript {
    pub fn new(prepared: Arc<Prepared>) -> Self {
        Self { prepared, bytes: 0, begun: Vec::new(), lines: 0, value: 0, complete: false, wrong: None }
    }

    /// Bytes heard.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whole lines heard, answers aside.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Whether something is wrong, so that nothing more can be right.
    pub fn is_spoilt(&self) -> bool {
        self.wrong.is_some()
    }

    /// What is wrong with it.
    pub fn findings(&self) -> Vec<String> {
        let unfinished = (!self.complete).then(|| format!("its output ends after line {}", self.lines));
        self.wrong.clone().or(unfinished).into_iter().collect()
    }

    /// Takes output that begins at this byte; what it says besides lines.
    pub fn hear(&mut self, at: u64, data: &[u8]) -> Vec<Said> {
        if at != self.bytes {
            self.is_wrong(format!("byte {at} follows byte {}", self.bytes));
        }
        self.bytes = at + data.len() as u64;
        self.begun.extend_from_slice(data);
        let mut said = Vec::new();
        while let Some(end) = self.begun.iter().position(|byte| *byte == b'\n') {
            let rest = self.begun.split_off(end + 1);
            let line = std::mem::replace(&mut self.begun, rest);
            said.extend(self.line(&line));
        }
        said
    }

    fn line(&mut self, line: &[u8]) -> Option<Said> {
        let value = self.prepared.next(self.lines, self.value);
        if line == format!("line {} {value:016x}\n", self.lines).as_bytes() {
            (self.lines, self.value) = (self.lines + 1, value);
            return None;
        }
        if line == format!("end after {} lines\n", self.lines).as_bytes() && !self.complete {
            self.complete = true;
            return None;
        }
        match parse(line) {
            Ok(said) => {
                if let Said::Answer(answer) = &said
                    && answer.line != self.lines
                {
                    self.is_wrong(format!("an answer before line {} comes before line {}", answer.line, self.lines));
                }
                Some(said)
            }
            Err(error) => {
                let end = self.bytes - self.begun.len() as u64;
                self.is_wrong(format!("the line that ends at byte {end} is not line {}: {error:#}", self.lines));
                None
            }
        }
    }

    fn is_wrong(&mut self, finding: String) {
        self.wrong.get_or_insert(finding);
    }
}

/// What a line says that is none of the numbered ones: words, each followed by its value.
fn parse(line: &[u8]) -> Result<Said> {
    let text = std::str::from_utf8(line).context("it is no text")?.trim_end();
    let fields = |text: &str| -> BTreeMap<String, String> {
        let words: Vec<_> = text.split(' ').collect();
        words.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
    };
    match text.split_once(' ') {
        Some(("prepared", rest)) => Ok(Said::Prepared(preparation(&fields(rest))?)),
        Some(("answer", _)) => Ok(Said::Answer(answer(&fields(text))?)),
        _ => bail!("{}", text.escape_debug()),
    }
}

fn answer(fields: &BTreeMap<String, String>) -> Result<Answer> {
    Ok(Answer {
        found: field(fields, "answer")?.parse()?,
        line: field(fields, "line")?.parse()?,
        epoch: u128::from_str_radix(field(fields, "epoch")?, 16)?,
        machine: field(fields, "machine")?.to_owned(),
        random: u128::from_str_radix(field(fields, "random")?, 16)?,
        preparation: preparation(fields)?,
    })
}

fn preparation(fields: &BTreeMap<String, String>) -> Result<Preparation> {
    Ok(Preparation {
        nonce: field(fields, "nonce")?.to_owned(),
        at: field(fields, "at")?.parse()?,
        preparations: field(fields, "preparations")?.parse()?,
    })
}

fn field<'a>(fields: &'a BTreeMap<String, String>, name: &str) -> Result<&'a str> {
    fields.get(name).map(String::as_str).with_context(|| format!("it has no {name}"))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    const PREPARED: &str = "nonce 00ff at 17 preparations 1";

    fn transcript() -> Transcript {
        Transcript::new(Arc::new(Prepared::below(3000)))
    }

    fn text(prepared: &Prepared, lines: u64) -> String {
        let mut value = 0;
        let mut text = format!("prepared {PREPARED}\n");
        for line in 0..lines {
            value = prepared.next(line, value);
            let _ = writeln!(text, "line {line} {value:016x}");
        }
        text
    }

    fn preparation() -> Preparation {
        Preparation { nonce: "00ff".to_owned(), at: 17, preparations: 1 }
    }

    #[test]
    fn the_state_is_what_the_process_prepares() {
        let prepared = Prepared::below(3000);
        assert_eq!((prepared.primes.len(), prepared.primes[429]), (430, 2999));
        // 5, 1999 and 2996 leave 5; the last is none.
        assert_eq!((prepared.families[0], prepared.families[5]), (997, 5 + 1999));
        assert_eq!(prepared.answer((431 << 64) + 997 + 5), 3 * (5 + 1999));
    }

    #[test]
    fn every_byte_counts_wherever_the_output_is_cut() {
        let mut whole = transcript();
        let text = text(&whole.prepared, 4) + "end after 4 lines\n";
        for cut in 0..text.len() {
            let mut transcript = transcript();
            let (first, second) = text.as_bytes().split_at(cut);
            let mut said = transcript.hear(0, first);
            let mut child = transcript.clone();
            said.extend(child.hear(cut as u64, second));
            assert_eq!((child.findings(), said), (vec![], vec![Said::Prepared(preparation())]));
            // What was prepared, and when, is held against the answers.
            if cut > text.find('\n').expect("a line") && !second.is_empty() {
                transcript.hear(cut as u64, &second[1..]);
                assert_eq!(transcript.findings().len(), 1, "a byte is missing at {cut}");
            }
        }
        whole.hear(0, text.replace("end after 4", "end after 5").as_bytes());
        assert!(whole.findings()[0].contains("is not line 4: end after 5"), "{:?}", whole.findings());
    }

    #[test]
    fn what_comes_twice_or_not_at_all_is_found() {
        let text = text(&transcript().prepared, 2);
        let mut twice = transcript();
        twice.hear(0, text.as_bytes());
        assert_eq!(twice.findings(), ["its output ends after line 2"]);
        twice.hear(0, text.as_bytes());
        assert!(twice.findings()[0].starts_with("byte 0 follows byte"), "{:?}", twice.findings());
    }

    #[test]
    fn an_answer_is_held_against_guest_preparation_and_state() {
        // No family is empty.
        let prepared = Arc::new(Prepared::below(100_000));
        let mut transcript = Transcript::new(prepared.clone());
        let (epoch, random) = (5_u128 << 64 | 3, 1_u128 << 64 | 7);
        let right = prepared.answer(epoch ^ random);
        let line = format!("answer {right} line 0 epoch {epoch:032x} machine m random {random:032x} {PREPARED}\n");
        let said = transcript.hear(0, line.as_bytes());
        let [Said::Answer(answer)] = &said[..] else { panic!("{said:?}") };
        let none: [&str; 0] = [];
        assert_eq!(answer.findings(&prepared, &preparation(), epoch), none);
        let findings = |change: fn(&mut Answer)| {
            let mut changed = answer.clone();
            change(&mut changed);
            changed.findings(&prepared, &preparation(), epoch).len()
        };
        assert_eq!(findings(|answer| answer.found += 1), 1);
        assert_eq!(findings(|answer| answer.random ^= 1 << 64), 1);
        assert_eq!(findings(|answer| answer.preparation.nonce.clear()), 1);
        assert_eq!(findings(|answer| answer.preparation.at += 1), 1);
        assert_eq!(findings(|answer| answer.preparation.preparations = 2), 2);
        assert_eq!(answer.findings(&prepared, &preparation(), epoch + 1).len(), 1);
        assert!(parse(b"answer 7 line 0\n").is_err());
    }
}
