//! What comes goes back.

use std::time::{Duration, Instant};

use throughline::{Messages, Stream, TryRecv};
use throughline_wire::echo::Poll;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::yield_now;

use super::{ServiceError, Turn, recv};

/// Bytes of a stream that are echoed at once.
const BUFFER: usize = 64 * 1024;

/// Fruitless looks between two looks at the clock and at everybody else's needs.
const LOOKS: u32 = 1024;

pub(super) async fn stream(mut stream: Stream) -> Result<(), ServiceError> {
    let mut buffer = vec![0; BUFFER];
    let mut turn = Turn::default();
    loop {
        let length = stream.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else {
            return Ok(stream.shutdown().await?);
        };
        stream.write_all(bytes).await?;
        turn.next().await;
    }
}

pub(super) async fn messages(messages: Messages) -> Result<(), ServiceError> {
    let (mut sender, mut receiver) = messages.into_split();
    let mut message = Vec::new();
    let mut turn = Turn::default();
    while receiver.recv_into(&mut message).await? {
        sender.send(&message).await?;
        turn.next().await;
    }
    Ok(sender.shutdown().await?)
}

/// Answers without sleeping; after a while without messages it sleeps until the next.
pub(super) async fn polled(mut messages: Messages) -> Result<(), ServiceError> {
    let Some(poll) = recv::<Poll>(&mut messages).await? else { return Ok(()) };
    let patience = Duration::from_millis(poll.millis.min(Poll::MAX_MILLIS).into());
    let (mut sender, mut receiver) = messages.into_split();
    let mut message = Vec::new();
    let mut last = Instant::now();
    let mut looks = 0_u32;
    let mut turn = Turn::default();
    loop {
        match receiver.try_recv(&mut message)? {
            TryRecv::Message => {
                if !sender.try_send(&message)? {
                    sender.send(&message).await?;
                }
                looks = 0;
                last = Instant::now();
                turn.next().await;
            }
            TryRecv::Empty if looks < LOOKS => {
                looks += 1;
                std::hint::spin_loop();
            }
            TryRecv::Empty if last.elapsed() < patience => {
                looks = 0;
                yield_now().await;
            }
            TryRecv::Empty => {
                if !receiver.peek(&mut message).await? {
                    return Ok(sender.shutdown().await?);
                }
                last = Instant::now();
            }
            TryRecv::End => return Ok(sender.shutdown().await?),
        }
    }
}
