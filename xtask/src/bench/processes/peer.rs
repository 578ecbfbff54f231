//! The second process.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use throughline::{Doorbell, Link, Listener, Messages, Region, TryRecv};
use throughline_shmem::{Mapping, Populate};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use super::line::{Gait, Line, Patience};
use super::pair::{ECHO, FOLLOWER, PORTS, SINK, SLEEPER, SLEEPS, pin, receive};

/// Serves the first process until it closes the control socket, which is the standard input.
pub fn be_peer() -> Result<()> {
    let control = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let (core, [region, ring, wake, page]) = receive(&control)?;
    pin(core)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let bells = Doorbell::eventfds(ring, wake)?;
        let builder = Link::guest(Region::from_fd(region)?).doorbell(bells).spin(Duration::ZERO);
        let link = PORTS.into_iter().fold(builder, throughline::LinkBuilder::listen).attach()?;
        let mut serving = JoinSet::new();
        for port in PORTS {
            let probe = Line::new(Mapping::file(&page, 4096, Populate::Now)?);
            serving.spawn(serve(link.clone(), probe, link.listener(port)?));
        }
        control.set_nonblocking(true)?;
        let mut control = tokio::net::UnixStream::from_std(control)?;
        tokio::select! {
            _ = control.read_u8() => Ok(()),
            failed = serving.join_next() => failed.context("nothing to serve")??,
        }
    })
}

/// Serves one port, one channel after the other: they all need the whole core.
async fn serve(link: Link, probe: Line, mut listener: Listener) -> Result<()> {
    loop {
        let mut messages = listener.accept().await?.messages()?;
        match listener.port() {
            ECHO => echo(&mut messages)?,
            SINK => sink(&mut messages)?,
            SLEEPER => sleep(messages).await?,
            FOLLOWER => follow(&mut messages, &probe).await?,
            SLEEPS => count(&mut messages, &link).await?,
            _ => {}
        }
    }
}

fn echo(messages: &mut Messages) -> Result<()> {
    let mut message = Vec::new();
    while next(messages, &mut message)? {
        let mut patience = Patience::new();
        while !messages.try_send(&message)? {
            patience.look()?;
        }
    }
    Ok(())
}

fn sink(messages: &mut Messages) -> Result<()> {
    let mut message = Vec::new();
    let mut count = 0_u64;
    while next(messages, &mut message)? {
        if message.is_empty() {
            messages.try_send(&count.to_le_bytes())?;
        }
        count += 1;
    }
    Ok(())
}

/// The next message, by polling; `false` at the end.
fn next(messages: &mut Messages, message: &mut Vec<u8>) -> Result<bool> {
    let mut patience = Patience::new();
    loop {
        match messages.try_recv(message)? {
            TryRecv::Message => return Ok(true),
            TryRecv::End => return Ok(false),
            TryRecv::Empty => patience.look()?,
        }
    }
}

async fn sleep(messages: Messages) -> Result<()> {
    let (mut sender, mut receiver) = messages.into_split();
    let mut message = Vec::new();
    while receiver.recv_into(&mut message).await? {
        sender.send(&message).await?;
    }
    Ok(())
}

async fn follow(messages: &mut Messages, probe: &Line) -> Result<()> {
    while let Some(message) = messages.recv().await? {
        probe.follow(if message == [1] { Gait::Pause } else { Gait::Rush })?;
    }
    Ok(())
}

async fn count(messages: &mut Messages, link: &Link) -> Result<()> {
    while messages.recv().await?.is_some() {
        messages.send(&link.counters().sleeps.to_le_bytes()).await?;
    }
    Ok(())
}
