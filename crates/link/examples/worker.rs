//! A VMM and its worker: two processes over a memfd, and either is killed and replaced under load.
//!
//! ```text
//! cargo run -p throughline --example worker
//! ```
//!
//! The VMM asks for blocks of a disk, the worker reads them and answers. A supervisor starts both and hands them
//! their descriptors over a Unix socket, beside the ring: memory, doorbells, the disk. Then it kills now the one
//! and now the other. What each successor needs to know stands in the channel: how much was sent, and how much
//! was taken. So every request is answered once, and nobody keeps a journal.

use std::error::Error;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use throughline::blocking::{Channel, Link, Messages};
use throughline::{Class, Doorbell, Geometry, Region, Side, Sidecar};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PORT: u32 = 1;
/// What a message takes in its ring: a header, and a payload of whole words.
const REQUEST: u64 = 8 + 8;
const ANSWER: u64 = 8 + 16;
/// Requests under way at one time.
const WINDOW: u64 = 32;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;
/// Nothing here takes so long, unless something is broken.
const DEADLINE: Option<Duration> = Some(Duration::from_secs(20));
/// How often each of them is killed.
const KILLS: usize = 100;

/// Descriptors that both processes are handed: region, sidecar, the eventfds that wake VMM and worker, disk, stop.
const HANDED: usize = 6;

fn main() -> ExitCode {
    let result = match std::env::args().nth(1).as_deref() {
        None => supervise(),
        Some("vmm") => take_descriptors().and_then(vmm),
        Some("worker") => take_descriptors().and_then(worker),
        Some(other) => Err(format!("{other:?} is neither vmm nor worker").into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts both, kills them in turn, and lets them finish.
fn supervise() -> Result<()> {
    let class = Class { opener: Side::Host, count: 1, ring_bytes: 64 << 10 };
    let region = Region::create_memfd("worker", &Geometry::new(vec![class])?)?;
    let (_, sidecar) = Sidecar::create_memfd("worker", &region)?;
    let new_eventfd = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let (to_vmm, to_worker, stop) = (new_eventfd()?, new_eventfd()?, new_eventfd()?);
    let disk = tempfile::tempfile()?;
    for number in 0..BLOCKS {
        disk.write_all_at(&block(number), number * BLOCK as u64)?;
    }
    let region_fd = region.as_fd().ok_or("a memfd has a descriptor")?;
    let handed = [region_fd, sidecar.as_fd(), to_vmm.as_fd(), to_worker.as_fd(), disk.as_fd(), stop.as_fd()];
    let mut children = [start("vmm", &handed)?, start("worker", &handed)?];
    for kill in 0..2 * KILLS {
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..10_000)));
        let child = &mut children[kill % 2];
        child.kill()?;
        if child.wait()?.code().is_some() {
            return Err("one of them ended by itself".into());
        }
        *child = start(["vmm", "worker"][kill % 2], &handed)?;
    }
    rustix::io::write(&stop, &1u64.to_ne_bytes())?;
    for child in &mut children {
        if !child.wait()?.success() {
            return Err("one of them failed".into());
        }
    }
    println!("killed each {KILLS} times: every request was answered once, in order");
    Ok(())
}

/// Starts one of them, and hands it its descriptors over its standard input.
fn start(role: &str, handed: &[BorrowedFd<'_>; HANDED]) -> Result<Child> {
    let (here, there) = UnixStream::pair()?;
    let child = Command::new(std::env::current_exe()?).arg(role).stdin(Stdio::from(OwnedFd::from(there))).spawn()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDED))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(handed));
    sendmsg(&here, &[IoSlice::new(b"!")], &mut control, SendFlags::NOSIGNAL)?;
    Ok(child)
}

fn take_descriptors() -> Result<[OwnedFd; HANDED]> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(HANDED))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(std::io::stdin(), &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let handed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors.collect::<Vec<_>>()),
        _ => None,
    });
    let handed = handed.ok_or("no descriptors came")?;
    handed.try_into().map_err(|handed: Vec<_>| format!("{} descriptors came", handed.len()).into())
}

/// The VMM: asks for one block after another, and takes the answers.
fn vmm(handed: [OwnedFd; HANDED]) -> Result<()> {
    let [region, sidecar, to_vmm, to_worker, _, stop] = handed;
    let region = Region::from_fd(region)?;
    let sidecar = Sidecar::from_fd(sidecar.as_fd(), &region)?;
    let bell = Doorbell::eventfds(to_worker, to_vmm)?;
    let link = throughline::Link::host(region, sidecar).doorbell(bell).attach_blocking()?;
    let mut messages = match adopt(&link)? {
        Some(messages) => messages,
        None => link.connect_with(PORT).unanswered().messages()?,
    };
    messages.set_timeout(DEADLINE);
    let info = messages.info()?;
    let (mut asked, mut answered) = (info.sent / REQUEST, info.received / ANSWER);
    let mut answer = Vec::new();
    let mut stopping = false;
    loop {
        stopping |= rustix::io::read(&stop, &mut [0; 8]).is_ok();
        while !stopping && asked - answered < WINDOW {
            messages.send(&asked.to_le_bytes())?;
            asked += 1;
        }
        if stopping && answered == asked {
            messages.shutdown()?;
            println!("{asked} requests");
            return Ok(std::io::stdout().flush()?);
        }
        if !messages.peek(&mut answer)? {
            return Err("the worker has closed the channel".into());
        }
        if answer != self::answer(answered, &block(answered % BLOCKS)) {
            return Err(format!("answer {answered} is wrong: {answer:?}").into());
        }
        // Here a real VMM completes its guest's request; then the answer is gone.
        messages.commit()?;
        answered += 1;
    }
}

/// The worker: reads blocks, and answers.
fn worker(handed: [OwnedFd; HANDED]) -> Result<()> {
    let [region, _, to_vmm, to_worker, disk, _] = handed;
    let bell = Doorbell::eventfds(to_vmm, to_worker)?;
    let guest = throughline::Link::guest(Region::from_fd(region)?).doorbell(bell).listen(PORT);
    let link = guest.attach_blocking()?;
    let mut listener = link.listener(PORT)?;
    listener.set_timeout(DEADLINE);
    let mut messages = match adopt(&link)? {
        Some(messages) => messages,
        None => listener.accept()?.messages()?,
    };
    messages.set_timeout(DEADLINE);
    let disk = File::from(disk);
    let info = messages.info()?;
    let (mut taken, mut given) = (info.received / REQUEST, info.sent / ANSWER);
    let (mut request, mut bytes) = (Vec::new(), vec![0; BLOCK]);
    while messages.peek(&mut request)? {
        // Otherwise a predecessor has answered it, and was killed before it could say so.
        if given == taken {
            let number = u64::from_le_bytes(request[..].try_into()?);
            disk.read_exact_at(&mut bytes, number % BLOCKS * BLOCK as u64)?;
            messages.send(&answer(number, &bytes))?;
            given += 1;
        }
        messages.commit()?;
        taken += 1;
    }
    Ok(messages.shutdown()?)
}

/// The channel that a predecessor left.
fn adopt(link: &Link) -> Result<Option<Messages>> {
    match link.channels().first() {
        None => Ok(None),
        Some(left) => match link.adopt(left.id)? {
            Channel::Messages(messages) => Ok(Some(messages)),
            Channel::Stream(_) => Err("a stream was left".into()),
        },
    }
}

fn block(number: u64) -> Vec<u8> {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes().repeat(BLOCK / 8)
}

fn answer(number: u64, block: &[u8]) -> Vec<u8> {
    let sum = block.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    [number, sum].map(u64::to_le_bytes).concat()
}
