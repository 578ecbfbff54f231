//! A command that prints numbers for ever, and whether each of its bytes came once and in order.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use throughline::ChannelInfo;
use throughline_sandbox::{Child, ChildEvent, Sandbox};

/// Not a loop of the shell's, which would be what is measured.
const PROGRAM: &str = "seq";
const ARGUMENTS: [&str; 2] = ["0", "999999999999"];
const LABEL: &str = "counter";
/// Between two looks at what nobody tells.
const LOOK: Duration = Duration::from_millis(1);

/// Starts it.
pub async fn start(sandbox: &Sandbox) -> Result<Child> {
    Ok(sandbox.command(PROGRAM).args(ARGUMENTS).label(LABEL).spawn().await?)
}

/// Takes it over, where it lived on.
pub fn adopt(sandbox: &Sandbox) -> Result<Child> {
    Ok(sandbox.adopt_command(channel(sandbox)?.id)?)
}

/// Waits until half of its ring is on its way; the deadline is the group's.
pub async fn half_full(sandbox: &Sandbox) -> Result<()> {
    while channel(sandbox).map(|channel| 2 * channel.unread < channel.ring_bytes)? {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn channel(sandbox: &Sandbox) -> Result<ChannelInfo> {
    let counter = sandbox.link().channels().into_iter().find(|channel| channel.label == LABEL);
    counter.context("the counter's channel did not live on")
}

/// How far it was read. A fork's children each go on from a copy.
#[derive(Clone, Default)]
pub struct Progress {
    /// Position of the next byte: so many were verified.
    at: u64,
    /// The number that is next, or is being read.
    number: u64,
    /// What there is of its line.
    line: Vec<u8>,
}

impl Progress {
    /// Bytes that were verified.
    pub fn verified(&self) -> u64 {
        self.at
    }

    /// Reads and verifies at least so many bytes more.
    pub async fn read(&mut self, counter: &mut Child, bytes: u64) -> Result<()> {
        let enough = self.at + bytes;
        while self.at < enough {
            match counter.events.next().await?.context("the counter's channel ended")? {
                ChildEvent::Stdout { at, data } => self.verify(at, &data)?,
                ChildEvent::Started { .. } | ChildEvent::Status(_) => {}
                other => bail!("the counter should print for ever: {other:?}"),
            }
        }
        Ok(())
    }

    fn verify(&mut self, at: u64, data: &[u8]) -> Result<()> {
        ensure!(at == self.at, "byte {} of the counter's output should come next, and {at} came", self.at);
        for &byte in data {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let (line, number) = (String::from_utf8_lossy(&self.line), self.number);
            ensure!(line == number.to_string(), "the counter should say {number}, and said {line:?}");
            self.line.clear();
            self.number += 1;
        }
        self.at += data.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_right_only_if_each_byte_comes_once_and_in_order() {
        let mut progress = Progress::default();
        progress.verify(0, b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n1").expect("as it should be");
        assert_eq!(progress.verified(), 21);
        progress.clone().verify(21, b"0\n11\n").expect("a number in two pieces");
        for (at, data) in [(22, "0\n"), (20, "10\n"), (21, "\n"), (21, "00\n"), (21, "0\n10\n"), (21, "0\n12\n")] {
            assert!(progress.clone().verify(at, data.as_bytes()).is_err(), "{at} {data:?}");
        }
    }
}
