//! The services over a real link.

#[expect(dead_code, reason = "the other tests use the rest")]
mod common;

use std::time::{Duration, Instant};

use common::rig::{Rig, exists, rig, until};
use common::{argv, shell};
use throughline::{Error, Messages};
use throughline_agent::control::Switches;
use throughline_wire::exec::Exit;
use throughline_wire::report::{self, Reply};
use throughline_wire::sequence::{Checker, Direction, Framing, Params, Place, Sender, StreamChecker, locate};
use throughline_wire::{decode, echo, encode, port, ticker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const FRAMING: Framing = Framing::Messages { header: 8, align: 8 };

#[test]
fn commands_run_over_the_link() {
    rig("commands", Switches::default(), async |rig| {
        rig.identify(1).await;
        let (output, exit) = rig.run(shell("head -c 1000000 /dev/zero; exit 9")).await;
        assert!(output.len() == 1_000_000 && output.iter().all(|&byte| byte == 0));
        assert_eq!(exit, Some(Exit::Code(9)));
    });
}

#[test]
fn a_silent_command_is_killed_when_its_channel_closes() {
    rig("closes", Switches::default(), async |rig| {
        rig.identify(1).await;
        let mut command = rig.start(argv(&["sleep", "1000"])).await;
        command.recv().await.unwrap().unwrap();
        let (_, commands) = report_and_commands(&rig).await;
        assert_eq!(commands, 1);
        drop(command);
        while report_and_commands(&rig).await.1 > 0 {}
        let mut reset = rig.start(argv(&["sleep", "1000"])).await;
        reset.recv().await.unwrap().unwrap();
        reset.abort();
        while report_and_commands(&rig).await.1 > 0 {}
    });
}

/// All of the guest's sequence figures, and how many commands it runs.
async fn report_and_commands(rig: &Rig) -> (Vec<report::Channel>, u32) {
    let mut channel = rig.host.connect_messages(port::REPORT).await.unwrap();
    channel.send(&encode(&report::Request::All).unwrap()).await.unwrap();
    let mut channels = Vec::new();
    loop {
        match decode(&channel.recv().await.unwrap().unwrap()).unwrap() {
            Reply::Channel(channel) => channels.push(*channel),
            Reply::End { channels: count } => {
                assert_eq!(count, channels.len() as u64);
                break;
            }
        }
    }
    let mut channel = rig.host.connect_messages(port::INFO).await.unwrap();
    channel.send(&encode(&throughline_wire::info::Request).unwrap()).await.unwrap();
    let info = channel.recv().await.unwrap().unwrap();
    (channels, decode::<throughline_wire::info::Info>(&info).unwrap().commands)
}

async fn echoed(channel: &mut Messages, count: usize) {
    for number in 0..count {
        let message = vec![number as u8; number * 37 % 5000];
        channel.send(&message).await.unwrap();
        assert_eq!(channel.recv().await.unwrap().unwrap(), message);
    }
}

/// How long a guest polls without traffic.
const PATIENCE: Duration = Duration::from_millis(20);

#[test]
fn echoes_of_all_kinds() {
    rig("echo", Switches::default(), async |rig| {
        rig.identify(1).await;
        let mut messages = rig.host.connect_messages(port::ECHO).await.unwrap();
        echoed(&mut messages, 100).await;
        messages.shutdown().await.unwrap();
        assert_eq!(messages.recv().await.unwrap(), None);

        let mut polled = rig.host.connect_messages(port::ECHO_POLL).await.unwrap();
        polled.send(&encode(&echo::Poll { millis: PATIENCE.as_millis() as u32 }).unwrap()).await.unwrap();
        echoed(&mut polled, 100).await;
        // The guest stops polling and goes to sleep, which must not be seen.
        let (idle, sleeps) = (Instant::now(), rig.guest.counters().sleeps);
        until(|| idle.elapsed() > 2 * PATIENCE && rig.guest.counters().sleeps > sleeps).await;
        echoed(&mut polled, 100).await;
        polled.shutdown().await.unwrap();
        assert_eq!(polled.recv().await.unwrap(), None);

        let mut stream = rig.host.connect(port::ECHO).await.unwrap();
        let sent: Vec<u8> = (0..300_000_u32).map(|at| (at ^ (at >> 8)) as u8).collect();
        let mut back = Vec::new();
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        let writing = async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let ((), read) = tokio::join!(writing, reader.read_to_end(&mut back));
        read.unwrap();
        assert!(back == sent, "{} bytes came back", back.len());
    });
}

#[test]
fn ticks_are_numbered_and_end_with_the_channel() {
    rig("ticker", Switches::default(), async |rig| {
        rig.identify(1).await;
        let mut channel = rig.host.connect_messages(port::TICKER).await.unwrap();
        channel.send(&encode(&ticker::Request { period_us: 1000 }).unwrap()).await.unwrap();
        let mut last = 0;
        for number in 0..20 {
            let tick: ticker::Tick = decode(&channel.recv().await.unwrap().unwrap()).unwrap();
            assert_eq!(tick.number, number);
            assert!(tick.periods > number && tick.monotonic_ns > last);
            last = tick.monotonic_ns;
        }
    });
}

#[test]
fn a_kind_that_a_port_does_not_serve_is_closed() {
    rig("kinds", Switches::default(), async |rig| {
        rig.identify(1).await;
        let mut stream = rig.host.connect(port::EXEC).await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert!(matches!(rig.host.connect(port::FIRST_FREE).await, Err(Error::Refused)));
    });
}

#[test]
fn sequences_as_messages_are_complete_and_reported() {
    rig("messages", Switches::default(), async |rig| {
        rig.identify(1).await;
        let params = Params { host_records: 500, guest_records: 700, max_len: 3000, ..Params::new(11) };
        let channel = rig.host.connect_messages(port::SEQUENCE).await.unwrap();
        let (mut outgoing, mut incoming) = channel.into_split();
        outgoing.send(&params.to_bytes()).await.unwrap();
        let start = outgoing.info().unwrap();
        let mut sender = Sender::new(params, Direction::ToGuest);
        let mut checker = Checker::new(params, Direction::ToHost);
        let sending = async {
            let mut record = Vec::new();
            while !sender.is_done() {
                // What a successor would compute is what comes next.
                let offset = outgoing.info().unwrap().sent - start.sent_from;
                let place = locate(&params, Direction::ToGuest, FRAMING, offset).unwrap();
                assert_eq!(place, Place::Record { number: sender.sent().records, within: 0 });
                record.clear();
                sender.append(&mut record);
                outgoing.send(&record).await.unwrap();
            }
            record.clear();
            sender.append_end(&mut record);
            outgoing.send(&record).await.unwrap();
        };
        let receiving = async {
            let mut record = Vec::new();
            while checker.seen().total.is_none() {
                assert!(incoming.recv_into(&mut record).await.unwrap());
                checker.record(&record);
                let info = incoming.info().unwrap();
                let place = locate(&params, Direction::ToHost, FRAMING, info.received - info.received_from).unwrap();
                let expected = checker.seen().next;
                assert!(matches!(place, Place::End { .. }) || place == Place::Record { number: expected, within: 0 });
            }
        };
        tokio::join!(sending, receiving);
        assert!(checker.seen().is_complete(), "{:?}", checker.seen());
        let report = finished(&rig, 11).await;
        assert_eq!((report.sent.records, report.sent.hash), (700, checker.seen().hash));
        assert!(report.seen.is_complete() && !report.stream, "{report:?}");
        assert_eq!((report.seen.records, report.seen.hash), (500, sender.sent().hash));
    });
}

/// The guest's figures of a channel, once it has come to its end.
async fn finished(rig: &Rig, seed: u64) -> report::Channel {
    loop {
        let (channels, _) = report_and_commands(rig).await;
        let found = channels.into_iter().find(|channel| channel.params.seed == seed);
        if let Some(channel) = found.filter(|channel| channel.finished || !channel.error.is_empty()) {
            return channel;
        }
    }
}

#[test]
fn sequences_as_a_stream_end_when_the_host_ends_them() {
    rig("stream", Switches::default(), async |rig| {
        rig.identify(1).await;
        let params = Params { max_len: 5000, read_pace_us: 1, ..Params::new(12) };
        let mut stream = rig.host.connect(port::SEQUENCE).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(&mut stream);
        let mut sender = Sender::new(params, Direction::ToGuest);
        let mut checker = StreamChecker::new(params, Direction::ToHost);
        let sending = async {
            writer.write_all(&params.to_bytes()).await.unwrap();
            let mut record = Vec::new();
            for _ in 0..100 {
                record.clear();
                sender.append(&mut record);
                writer.write_all(&record).await.unwrap();
            }
            record.clear();
            sender.append_end(&mut record);
            writer.write_all(&record).await.unwrap();
        };
        let receiving = async {
            let mut buffer = vec![0; 7777];
            while checker.seen().total.is_none() {
                let length = reader.read(&mut buffer).await.unwrap();
                assert!(length > 0, "cut off");
                checker.feed(&buffer[..length]);
            }
        };
        tokio::join!(sending, receiving);
        assert!(checker.seen().is_complete() && checker.pending() == 0, "{:?}", checker.seen());
        let report = finished(&rig, 12).await;
        assert!(report.finished && report.stream && report.seen.is_complete(), "{report:?}");
        assert_eq!((report.sent.records, report.sent.hash), (checker.seen().records, checker.seen().hash));
    });
}

#[test]
fn what_is_missing_or_wrong_stands_in_the_report() {
    rig("wrong", Switches::default(), async |rig| {
        rig.identify(1).await;
        let params = Params { guest_records: 0, ..Params::new(13) };
        let mut channel = rig.host.connect_messages(port::SEQUENCE).await.unwrap();
        channel.send(&params.to_bytes()).await.unwrap();
        let mut sender = Sender::new(params, Direction::ToGuest);
        for number in 0..10 {
            let mut record = Vec::new();
            sender.append(&mut record);
            match number {
                2 => continue,
                5 => record[20] ^= 1,
                7 => channel.send(&record).await.unwrap(),
                _ => {}
            }
            channel.send(&record).await.unwrap();
        }
        channel.shutdown().await.unwrap();
        let report = finished(&rig, 13).await;
        let seen = report.seen;
        assert_eq!((seen.lost, seen.doubled, seen.damaged, seen.records), (2, 1, 1, 8), "{report:?}");
        assert!(report.error.contains("without an end record"), "{}", report.error);
        until(|| !rig.agent.is_finished()).await;
    });
}

#[test]
fn a_command_outlives_its_reader_and_tells_its_end_to_the_next() {
    rig("outlives", Switches::default(), async |rig| {
        rig.identify(1).await;
        let ran = rig.file("ran");
        // Little output: the command ends while nobody is there.
        let script = format!("echo short; echo ran >{}; exit 7", ran.display());
        let short = rig.start(shell(&script)).await.release();
        // More than the ring and the pipe hold: it waits, and goes on when somebody reads.
        let script = "head -c 1000000 /dev/zero; exit 8";
        let long = rig.start(shell(script)).await.release();
        exists(&ran).await;
        while report_and_commands(&rig).await.1 != 1 {}
        until(|| rig.host.channels().iter().all(|channel| channel.unread > 0)).await;
        let adopt = |id| rig.host.adopt(id).unwrap().messages().unwrap();
        assert_eq!(rig.finish(adopt(short)).await, (b"short\n".to_vec(), Some(Exit::Code(7))));
        let (output, exit) = rig.finish(adopt(long)).await;
        assert_eq!((output.len(), exit), (1_000_000, Some(Exit::Code(8))));
    });
}
