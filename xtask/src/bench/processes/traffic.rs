//! Traffic over the link between the two processes.
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use throughline::{MessageReceiver, TryRecv};

use super::line::Patience;
use super::pair::{ECHO, Pair, SINK, SLEEPER};
use crate::bench::figure::Samples;

const BATCH: usize = 64;
const BATCHES: usize = 256;
const WARM_UP: usize = 32;
/// Bytes of a wide channel's ring.
const RING: usize = 4 << 20;
const LAPS: usize = 64;
/// Until every page is there, on both sides, and the ring is as full as it stays.
const WARM_UP_LAPS: usize = 4;

/// Nanoseconds of an 8-byte round trip while both sides poll, the median of batches; and the bells that
/// this side rang meanwhile.
pub async fn round_trips(pair: &Pair) -> Result<(f64, u64)> {
    let (mut sender, mut receiver) = pair.connect(ECHO).await?.into_split();
    let mut answer = Vec::new();
    let mut batches = Vec::with_capacity(BATCHES);
    let mut bells = 0;
    for batch in 0..WARM_UP + BATCHES {
        if batch == WARM_UP {
            bells = pair.link.counters().bells_sent;
        }
        let started = Instant::now();
        for trip in 0..BATCH as u64 {
            push(|| sender.try_send(&trip.to_le_bytes()))?;
            poll(&mut receiver, &mut answer)?;
            ensure!(answer == trip.to_le_bytes(), "another answer than was sent");
        }
        if batch >= WARM_UP {
            batches.push(started.elapsed().as_secs_f64() * 1e9 / BATCH as f64);
        }
    }
    Ok((Samples::new(batches)?.median(), pair.link.counters().bells_sent - bells))
}

/// Messages a second, one way, both sides polling: the median of laps, each as large as the ring, while
/// the peer keeps up.
pub async fn one_way(pair: &Pair, len: usize) -> Result<f64> {
    let (mut sender, mut receiver) = pair.connect(SINK).await?.into_split();
    let message = vec![7; len];
    let lap = RING / len;
    let mut rates = Vec::with_capacity(LAPS);
    for number in 0..WARM_UP_LAPS + LAPS {
        let started = Instant::now();
        for _ in 0..lap {
            push(|| sender.try_feed(&message))?;
        }
        if number >= WARM_UP_LAPS {
            rates.push(lap as f64 / started.elapsed().as_secs_f64());
        }
    }
    push(|| sender.try_feed(&[]))?;
    sender.flush().await?;
    let mut answer = Vec::new();
    poll(&mut receiver, &mut answer)?;
    let expected = ((WARM_UP_LAPS + LAPS) * lap) as u64;
    ensure!(answer == expected.to_le_bytes(), "not all of {expected} messages came");
    Ok(Samples::new(rates)?.median())
}

fn push(mut attempt: impl FnMut() -> Result<bool, throughline::Error>) -> Result<()> {
    let mut patience = Patience::new();
    while !attempt()? {
        patience.look()?;
    }
    Ok(())
}

fn poll(receiver: &mut MessageReceiver, answer: &mut Vec<u8>) -> Result<()> {
    let mut patience = Patience::new();
    loop {
        match receiver.try_recv(answer)? {
            TryRecv::Message => return Ok(()),
            TryRecv::Empty => patience.look()?,
            TryRecv::End => anyhow::bail!("the peer ended the channel"),
        }
    }
}

/// Median nanoseconds of a round trip in which both sides sleep.
pub async fn sleeping(pair: &Pair, trips: usize) -> Result<f64> {
    let (mut sender, mut receiver) = pair.connect(SLEEPER).await?.into_split();
    let mut times = Vec::with_capacity(trips);
    for trip in 0..trips as u64 {
        let started = Instant::now();
        sender.send(&trip.to_le_bytes()).await?;
        receiver.recv().await?.context("the peer ended the channel")?;
        times.push(started.elapsed().as_secs_f64() * 1e9);
    }
    Ok(Samples::new(times)?.median())
}
