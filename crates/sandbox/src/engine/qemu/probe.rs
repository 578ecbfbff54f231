//! What the installed QEMU is, and whether KVM runs guest code here.
//!
//! A device node says little: `/dev/kvm` may be there and every guest fail. So a few bytes of guest
//! code are run, which leave a message in QEMU's exit code. The answer is kept for this boot of the host.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::process::Process;
use crate::engine::{Accelerator, Capabilities, EngineError, Machine};
use crate::image::hex;

/// Devices that no guest of ours uses, off: each costs start time. And no description of the
/// saved stream, which the device-only one does not carry.
pub(super) const BOARD: &str = "smm=off,sata=off,smbus=off,usb=off,vmport=off,hpet=off,i8042=off,graphics=off,\
     suppress-vmdesc=on";
/// The exit code with which the guest code reports: QEMU makes (0x10 << 1) | 1 of it.
const REPORT: i32 = 0x21;
/// How long guest code may take for four instructions, on a host however busy.
const DEADLINE: Duration = Duration::from_secs(10);
/// How QEMU is installed.
const INSTALL: &str = "apt-get install qemu-system-x86";

#[derive(Serialize, Deserialize)]
struct Cached {
    key: String,
    capabilities: Capabilities,
}

/// QEMU's name for an accelerator.
pub(super) fn accelerator_argument(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    }
}

/// Finds a program as the shell would.
pub(super) fn find(binary: &Path) -> Result<PathBuf, EngineError> {
    let is_program = |path: &Path| fs::metadata(path).is_ok_and(|data| data.is_file() && data.mode() & 0o111 != 0);
    let found = if binary.components().count() > 1 {
        Some(binary.to_path_buf()).filter(|path| is_program(path))
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(binary)).find(|path| is_program(path))
    };
    found.ok_or_else(|| EngineError::Missing { binary: binary.display().to_string(), install: INSTALL })
}

/// What `binary` can do here; from `cache` where an answer of this boot lies there.
pub(super) async fn capabilities(binary: &Path, cache: &Path) -> Result<Capabilities, EngineError> {
    let key = key(binary).map_err(|source| EngineError::io("look at", binary, source))?;
    let name = format!("engine-{}.json", hex(&Sha256::digest(key.as_bytes())[..8]));
    let path = cache.join(name);
    if let Some(known) = recall(&path, &key) {
        return Ok(known);
    }
    let capabilities = ask(binary).await?;
    tracing::info!(accelerator = ?capabilities.machine.accelerator, "{}", capabilities.accelerator_reason);
    let cached = Cached { key, capabilities: capabilities.clone() };
    // Without a cache everything works, only slower.
    if let Err(error) = remember(&path, &cached) {
        tracing::debug!(path = %path.display(), %error, "the probe's answer was not kept");
    }
    Ok(capabilities)
}

/// Changes with the program, the host's boot, and who may use KVM.
fn key(binary: &Path) -> io::Result<String> {
    let data = fs::metadata(binary)?;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let kvm = kvm_opens().is_ok();
    let (size, modified, inode) = (data.size(), data.mtime_nsec() + data.mtime() * 1_000_000_000, data.ino());
    Ok(format!("3 {} {size} {modified} {inode} {} kvm={kvm}", binary.display(), boot.trim()))
}

fn recall(path: &Path, key: &str) -> Option<Capabilities> {
    let cached: Cached = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (cached.key == key).then_some(cached.capabilities)
}

fn remember(path: &Path, cached: &Cached) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(cached)?)?;
    file.persist(path)?;
    Ok(())
}

async fn ask(binary: &Path) -> Result<Capabilities, EngineError> {
    let version = answer(binary, "--version", &["--version"]).await?;
    let version = parse_version(&version).ok_or_else(|| unusable(binary, "--version", &version))?;
    let machines = answer(binary, "-M help", &["-M", "help"]).await?;
    let machine_type = parse_machine(&machines).ok_or_else(|| unusable(binary, "-M help", &machines))?;
    let (accelerator, accelerator_reason) = match kvm(binary, &machine_type).await {
        Ok(()) => (Accelerator::Kvm, "guests run under KVM".to_owned()),
        Err(why) => (Accelerator::Tcg, format!("guests run under emulation, as KVM does not work here: {why}")),
    };
    let machine = Machine { engine: "qemu".into(), version, machine_type, cpu_model: String::new(), accelerator };
    Ok(Capabilities { machine: with_accelerator(machine, accelerator), accelerator_reason })
}

/// The same machine under another accelerator, which decides the processor model: under KVM the
/// host's own, by name, as a saved guest has seen its features.
pub(super) fn with_accelerator(machine: Machine, accelerator: Accelerator) -> Machine {
    let cpu_model = match accelerator {
        Accelerator::Kvm => format!("host:{}", processor_name()),
        // Emulated, these cost time: a fifth level of page tables, guards around each access to a program's memory,
        // and the string instructions that a real processor does fast, here byte after byte.
        Accelerator::Tcg => "max,la57=off,smap=off,erms=off".to_owned(),
    };
    Machine { cpu_model, accelerator, ..machine }
}

fn processor_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").replace(',', " ")
}

fn parse_version(text: &str) -> Option<String> {
    let rest = text.strip_prefix("QEMU emulator version ")?;
    rest.split_whitespace().next().map(str::to_owned)
}

/// The versioned name behind the alias `q35`: an alias means another machine after an upgrade.
fn parse_machine(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some("q35"))?;
    let (_, rest) = line.split_once("(alias of ")?;
    rest.split(')').next().map(str::to_owned)
}

fn unusable(binary: &Path, question: &'static str, answer: &str) -> EngineError {
    let answer = answer.lines().next().unwrap_or_default().chars().take(100).collect();
    EngineError::Unusable { binary: binary.display().to_string(), question, answer }
}

/// Runs the program with `arguments` and returns what it printed.
async fn answer(binary: &Path, question: &'static str, arguments: &[&str]) -> Result<String, EngineError> {
    let mut command = Command::new(binary);
    command.args(arguments);
    let (_, output) = run(&mut command).await.map_err(|error| unusable(binary, question, &error.to_string()))?;
    Ok(output)
}

/// Runs a command to its end and returns its status and output; ends it at the deadline.
async fn run(command: &mut Command) -> io::Result<(super::process::Status, String)> {
    // A file, not a pipe: nobody has to read while it runs, however much it prints.
    let mut output = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output.try_clone()?);
    let process = Process::spawn(command)?;
    let ended = tokio::time::timeout(DEADLINE, process.ended()).await;
    if ended.is_err() {
        process.kill()?;
        process.ended().await?;
    }
    let status = process.reap();
    let mut text = Vec::new();
    io::Seek::rewind(&mut output)?;
    output.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    if ended.is_err() {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no end within {DEADLINE:?}")));
    }
    Ok((status, text))
}

fn kvm_opens() -> io::Result<fs::File> {
    fs::File::options().read(true).write(true).open("/dev/kvm")
}

/// Whether guest code runs under KVM; if not, why.
async fn kvm(binary: &Path, machine_type: &str) -> Result<(), String> {
    kvm_opens().map_err(|error| format!("/dev/kvm: {error}"))?;
    guest_code(binary, machine_type, Accelerator::Kvm).await
}

/// Runs four instructions of guest code, which report through an exit port.
pub(super) async fn guest_code(binary: &Path, machine_type: &str, accelerator: Accelerator) -> Result<(), String> {
    let mut rom = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    rom.write_all(&firmware()).map_err(|error| error.to_string())?;
    let mut command = Command::new(binary);
    let cpu = if accelerator == Accelerator::Kvm { "host" } else { "max" };
    command
        .args(["-M", &format!("{machine_type},{BOARD}"), "-accel", accelerator_argument(accelerator), "-cpu", cpu])
        .args(["-display", "none", "-no-user-config", "-nodefaults", "-no-reboot", "-m", "16M"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios"])
        .arg(rom.path());
    let (status, output) = run(&mut command).await.map_err(|error| error.to_string())?;
    if status == super::process::Status::Code(REPORT) {
        return Ok(());
    }
    let why = output.lines().find(|line| line.contains("error") || line.contains("failed"));
    Err(why.map_or_else(|| format!("guest code did not run ({status:?})"), str::to_owned))
}

/// 64 KiB of firmware: from the reset vector to `mov al, 0x10; out 0xf4, al; hlt`.
fn firmware() -> Vec<u8> {
    const HALT: u8 = 0xf4;
    let mut rom = vec![HALT; 64 * 1024];
    rom[..5].copy_from_slice(&[0xb0, 0x10, 0xe6, 0xf4, HALT]);
    // At the reset vector: jmp f000:0000.
    rom[0xfff0..0xfff5].copy_from_slice(&[0xea, 0x00, 0x00, 0x00, 0xf0]);
    rom
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_first_word_after_the_name() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright (c) …\n";
        assert_eq!(parse_version(text).as_deref(), Some("7.2.22"));
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn the_machine_is_what_the_alias_stands_for() {
        let text = "Supported machines are:\npc   Standard PC (i440FX) (alias of pc-i440fx-7.2)\n\
                    q35  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)\npc-q35-7.2  Standard PC\n";
        assert_eq!(parse_machine(text).as_deref(), Some("pc-q35-7.2"));
        assert_eq!(parse_machine("pc-q35-7.2  Standard PC\n"), None);
    }
}
