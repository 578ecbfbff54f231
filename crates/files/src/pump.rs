//! Between a channel and the thread that touches the file system.

use throughline::{Error, MessageReceiver, MessageSender};
use throughline_wire::files::{Failure, FailureKind, Frame, HEADER, MAX_DATA, Summary};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

use crate::chunks::{Input, Output, Piece};
use crate::failure::failure;

/// What a transfer came to, and what was copied.
pub type Outcome = (Result<(), Failure>, Summary);

/// Stack of a thread in bytes: nothing in it is deep.
const STACK: usize = 256 * 1024;

/// Buffers that go round: one at each end, one between.
const BUFFERS: usize = 3;

/// Data in one message on a channel whose longest is `max_len`: several fit into its ring.
fn data(max_len: usize) -> usize {
    (max_len / 4).clamp(1024, MAX_DATA) - HEADER
}

/// Runs `work` in a thread, and sends what it puts out. `progress` is told of every piece's bytes.
///
/// Cancelled, the thread ends at its next piece.
pub async fn send(
    sender: &mut MessageSender,
    work: impl FnOnce(&mut Output, &mut Summary) -> Result<(), Failure> + Send + 'static,
    mut progress: impl FnMut(u64),
) -> Result<Outcome, Error> {
    let (full, mut ready) = channel::<Vec<u8>>(BUFFERS);
    let (give_back, empty) = buffers();
    let mut output = Output::new(full, empty, data(sender.max_len()));
    let worker = counted(move |copied| work(&mut output, copied));
    while let Some(frame) = ready.recv().await {
        sender.send(&frame).await?;
        progress((frame.len() - HEADER) as u64);
        // The thread may have ended.
        let _ = give_back.try_send(frame);
    }
    Ok(worker.await)
}

/// Runs `work` in a thread on what comes, until `work` ends. `progress` is told of every piece's bytes; `control` says
/// of each other message whether it is the announced end, and may fail.
///
/// Cancelled, the thread finds its input cut off.
pub async fn receive(
    receiver: &mut MessageReceiver,
    work: impl FnOnce(&mut Input, &mut Summary) -> Result<(), Failure> + Send + 'static,
    mut progress: impl FnMut(u64),
    mut control: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Outcome, Error> {
    let (full, pieces) = channel::<Piece>(BUFFERS);
    let (give_back, mut empty) = buffers();
    let mut input = Input::new(pieces, give_back);
    let worker = counted(move |copied| work(&mut input, copied));
    // What was wrong with what came, as the thread cannot know.
    let mut wrong = None;
    while let Some(mut frame) = empty.recv().await {
        let came = tokio::select! {
            biased;
            // The thread has failed, and says why.
            () = full.closed() => break,
            came = receiver.recv_into(&mut frame) => came?,
        };
        if !came {
            // Cut off: the thread finds out.
            break;
        }
        let piece = match Frame::parse(&frame) {
            Some(Frame::Data(data)) => {
                progress(data.len() as u64);
                Piece::Data(frame)
            }
            Some(Frame::Control(_)) => match control(&frame) {
                Ok(()) => Piece::End,
                Err(failure) => {
                    wrong = Some(failure);
                    break;
                }
            },
            None => {
                wrong = Some(failure(FailureKind::Protocol, b"transfer", "a message that is no frame"));
                break;
            }
        };
        let ended = matches!(piece, Piece::End);
        if full.send(piece).await.is_err() || ended {
            break;
        }
    }
    drop(full);
    let (done, copied) = worker.await;
    Ok((wrong.map_or(done, Err), copied))
}

/// A queue with all buffers in it.
fn buffers() -> (Sender<Vec<u8>>, Receiver<Vec<u8>>) {
    let (give_back, empty) = channel(BUFFERS + 1);
    for _ in 0..BUFFERS {
        // It has room for more.
        let _ = give_back.try_send(Vec::new());
    }
    (give_back, empty)
}

/// As [`apart`], with what `work` counts.
fn counted(work: impl FnOnce(&mut Summary) -> Result<(), Failure> + Send + 'static) -> impl Future<Output = Outcome> {
    let started = apart(move || {
        let mut copied = Summary::default();
        Ok((work(&mut copied), copied))
    });
    async { started.await.unwrap_or_else(|failure| (Err(failure), Summary::default())) }
}

/// Runs `work` in a thread of its own at once, whether the result is awaited or not: where it waits for a file system,
/// nobody else does.
pub fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> impl Future<Output = Result<T, Failure>> {
    let (tell, told) = oneshot::channel();
    // Not the runtime's own threads: it panics where there can be no more, which process 1 must not.
    let thread = std::thread::Builder::new().name("files".into()).stack_size(STACK);
    let started = thread.spawn(move || {
        let _ = tell.send(work());
    });
    let no_thread = |why: String| failure(FailureKind::Other, b"transfer", format!("cannot have a thread: {why}"));
    async move {
        match started {
            Ok(_) => told.await.unwrap_or_else(|_| Err(no_thread("it ended early".into()))),
            Err(error) => Err(no_thread(error.to_string())),
        }
    }
}
