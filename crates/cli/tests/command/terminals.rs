//! The command at a real terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::support::{Name, command, json, printed};

const WATCHDOG: Duration = Duration::from_mins(1);

/// A terminal, and the command in its foreground.
struct Terminal {
    master: File,
    slave: OwnedFd,
    before: String,
    client: Child,
    shown: Receiver<u8>,
}

/// Of a terminal's settings, what a client changes.
fn settings(termios: &Termios) -> String {
    format!("{:?} {:?} {:?}", termios.input_modes, termios.output_modes, termios.local_modes)
}

impl Terminal {
    fn run(arguments: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname(&master, Vec::new()).unwrap();
        let slave = OwnedFd::from(File::options().read(true).write(true).open(path.to_str().unwrap()).unwrap());
        let before = settings(&tcgetattr(&slave).unwrap());
        let io = || Stdio::from(slave.try_clone().unwrap());
        resize(&master, 24, 80);
        // A session of its own, with this terminal.
        let mut client = Command::new("setsid");
        client.arg("--ctty").arg(command()).args(arguments).env("TERM", "xterm");
        let client = client.stdin(io()).stdout(io()).stderr(io()).spawn().unwrap();
        let master = File::from(master);
        let (sender, shown) = channel();
        let mut reader = master.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut byte = [0];
            while reader.read_exact(&mut byte).is_ok() && sender.send(byte[0]).is_ok() {}
        });
        Self { master, slave, before, client, shown }
    }

    fn press(&mut self, keys: &[u8]) {
        self.master.write_all(keys).unwrap();
    }

    /// Reads until a text is shown.
    fn shows(&mut self, text: &str) {
        let (mut all, end) = (Vec::new(), Instant::now() + WATCHDOG);
        while !all.ends_with(text.as_bytes()) {
            match self.shown.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(byte) => all.push(byte),
                Err(error) => panic!("{error}: {text:?} is not in {:?}", String::from_utf8_lossy(&all)),
            }
        }
    }

    /// Waits for the client's end, and looks whether the terminal is as it was. Its exit code.
    fn ended(mut self) -> Option<i32> {
        let code = self.client.wait().unwrap().code();
        assert_eq!(settings(&tcgetattr(&self.slave).unwrap()), self.before);
        code
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.slave).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let client = rustix::process::Pid::from_child(&self.client);
        rustix::process::kill_process(client, signal).unwrap();
    }
}

fn resize(terminal: &impl std::os::fd::AsFd, rows: u16, cols: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

#[test]
fn vm_a_terminal_passes_keys_size_and_control_characters_and_is_as_it_was_afterwards() {
    let name = Name::new("keys");
    printed(["run", "--name", &name.0, "--memory", "128M"]);
    let mut terminal = Terminal::run(&["exec", "-it", &name.0, "--", "sh"]);
    terminal.press(b"stty size; echo \"$TERM\"\n");
    terminal.shows("24 80\r\nxterm\r\n");
    assert!(terminal.is_raw());

    resize(&terminal.master, 30, 100);
    // The resize travels beside the keys, and may come after them.
    terminal.press(b"until [ \"$(stty size)\" = '30 100' ]; do :; done; echo re''sized\n");
    terminal.shows("resized\r\n");

    // It speaks when it has the terminal.
    terminal.press(b"sh -c 'echo in\"\"ner; exec sleep 1000'\n");
    terminal.shows("inner\r\n");
    terminal.press(b"\x03");
    terminal.press(b"echo code $?\n");
    terminal.shows("code 130\r\n");

    // What a terminal of the host's would take for itself.
    terminal.press(b"stty raw -echo; echo re''ady; head -c 6 | od -An -tx1; stty sane\n");
    terminal.shows("ready");
    terminal.press(b"\x03\x1c\x1a\x04\r\x11");
    terminal.shows("03 1c 1a 04 0d 11");
    terminal.press(b"exit 7\n");
    assert_eq!(terminal.ended(), Some(7));
}

#[test]
fn vm_a_client_that_is_terminated_gives_its_terminal_back_and_the_command_to_the_next() {
    use rustix::process::Signal;
    let name = Name::new("terminated");
    printed(["run", "--name", &name.0, "--memory", "128M"]);
    let id = printed(["exec", "-itd", &name.0, "--", "sh"]).trim().to_owned();
    let mut word = 0;
    for (signal, code) in [(Signal::TERM, 143), (Signal::HUP, 129), (Signal::TERM, 143)] {
        let mut terminal = Terminal::run(&["attach", &name.0, &id]);
        word += 1;
        terminal.press(format!("word=${{word}}{word}; echo \"<$word>\"\n").as_bytes());
        terminal.shows(["", "<1>", "<12>", "<123>"][word]);
        assert!(terminal.is_raw());
        terminal.signal(signal);
        assert_eq!(terminal.ended(), Some(code));
        let commands = json(["ps", "--json", &name.0]);
        assert_eq!(commands[0]["id"], id.as_str());
    }
    let mut terminal = Terminal::run(&["attach", &name.0, &id]);
    terminal.press(b"exit 9\n");
    assert_eq!(terminal.ended(), Some(9));
}
