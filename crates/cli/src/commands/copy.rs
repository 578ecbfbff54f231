//! Copying files.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use throughline::Messages;
use throughline_sandbox::SandboxError;
use throughline_sandbox::files::{self, Options, Progress, Source, Summary, Target};
use throughline_sandbox::guest::{Guest, Opening, alive};
use throughline_wire::port;

use super::connect;
use crate::error::CliError;
use crate::output;

/// Permissions of a file made of the standard input.
const MODE: u32 = 0o644;

/// One end of a copy.
enum End<'a> {
    Sandbox { name: &'a str, path: &'a str },
    Host(&'a str),
    Standard,
}

impl<'a> End<'a> {
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Standard,
            // `./a:b` is a file of the host.
            Some((name, path)) if !name.contains('/') && !name.is_empty() => Self::Sandbox { name, path },
            _ => Self::Host(text),
        }
    }
}

/// `cp`
pub async fn copy(source: &str, dest: &str, tar: bool, options: Options, json: bool) -> Result<u8, CliError> {
    let bar = bar(json);
    let told = |Progress { bytes, total }: Progress| {
        if let Some(total) = total {
            bar.set_length(total);
        }
        bar.set_position(bytes);
    };
    let copied = match (End::parse(source), End::parse(dest)) {
        (End::Sandbox { name, path }, to @ (End::Host(_) | End::Standard)) => {
            let target = match to {
                End::Host(path) => Target::Path(PathBuf::from(path)),
                _ if tar => Target::Archive(Box::new(std::io::stdout())),
                _ => Target::Bytes(Box::new(std::io::stdout())),
            };
            let guest = connect(name).await?.guest(false);
            let work = async { files::download(channel(&*guest).await?, path, target, options, told).await };
            alive(&*guest, work).await?
        }
        (from @ (End::Host(_) | End::Standard), End::Sandbox { name, path }) => {
            let source = match from {
                End::Host(path) => Source::Path(PathBuf::from(path)),
                _ if tar => Source::Archive(Box::new(std::io::stdin())),
                _ => Source::Bytes { reader: Box::new(std::io::stdin()), mode: MODE },
            };
            let guest = connect(name).await?.guest(false);
            let work = async { files::upload(channel(&*guest).await?, source, path, options, told).await };
            alive(&*guest, work).await?
        }
        _ => {
            let message = "one of the two must be NAME:PATH, and the other one a path of this host, or `-`";
            return Err(CliError::Usage(message.to_owned()));
        }
    };
    bar.finish_and_clear();
    tell(copied?, dest == "-", json);
    Ok(0)
}

async fn channel(guest: &dyn Guest) -> Result<Messages, SandboxError> {
    guest.messages(Opening { port: port::FILES, ring_bytes: files::RING, label: "cp" }).await
}

fn bar(json: bool) -> ProgressBar {
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::no_length() };
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {bytes} {bytes_per_sec}") {
        bar.set_style(style);
    }
    bar
}

fn tell(copied: Summary, quiet: bool, json: bool) {
    if json && !quiet {
        output::json(&json!({ "copied": copied }));
    }
}
