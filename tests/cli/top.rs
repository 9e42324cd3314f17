//! The dashboard in a terminal of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, OutputFlags, Termios, tcgetattr};

use crate::support::TestEnv;

/// How long anything may take on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(60);

fn side(cells: u16) -> NonZero<u16> {
    NonZero::new(cells).expect("a screen")
}

/// A terminal with a command in it.
struct Pty {
    child: Child,
    keys: File,
    terminal: OwnedFd,
    output: Receiver<Vec<u8>>,
    screen: vt100::Parser,
    /// Everything that was written.
    raw: Vec<u8>,
}

impl Pty {
    fn start(env: &TestEnv, args: &[&str], size: (u16, u16)) -> Self {
        Self::with(env.command(args), size)
    }

    #[expect(unsafe_code, reason = "a terminal becomes a process's own between fork and exec only")]
    fn with(mut command: Command, (rows, cols): (u16, u16)) -> Self {
        let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a terminal");
        let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
        command.env("TERM", "xterm-256color").stdin(end()).stdout(end()).stderr(end());
        // SAFETY: both calls are async-signal-safe, and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let child = command.spawn().expect("ado starts");
        let mut reader = File::from(pty.master.try_clone().expect("a descriptor"));
        let (tx, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                if tx.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        let screen = vt100::Parser::new(side(rows), side(cols), 0);
        Self { child, keys: File::from(pty.master), terminal: pty.slave, output, screen, raw: Vec::new() }
    }

    fn modes(&self) -> Termios {
        tcgetattr(self.terminal.as_fd()).expect("a terminal")
    }

    fn is_raw(&self) -> bool {
        !self.modes().local_flags.contains(LocalFlags::ICANON)
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("a terminal");
    }

    /// Waits until the screen is as it should be.
    #[track_caller]
    fn until(&mut self, what: &str, is: impl Fn(&vt100::Screen) -> bool) {
        while !is(self.screen.screen()) {
            match self.output.recv_timeout(PATIENCE) {
                Ok(bytes) => {
                    self.screen.process(&bytes);
                    self.raw.extend(bytes);
                }
                Err(error) => panic!("no {what} ({error}):\n{}", self.screen.screen().contents()),
            }
        }
    }

    #[track_caller]
    fn until_shown(&mut self, text: &str) {
        self.until(text, |screen| screen.contents().contains(text));
    }

    /// Waits for its end, and for the last of what it wrote.
    fn end(&mut self) -> ExitStatus {
        let status = self.child.wait().expect("it ends");
        while let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(200)) {
            self.screen.process(&bytes);
            self.raw.extend(bytes);
        }
        status
    }

    fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("it runs");
    }

    /// Fails unless the terminal is as a shell wants it.
    #[track_caller]
    fn assert_restored(&self, before: &Termios) {
        let now = self.modes();
        assert_eq!(
            (now.local_flags, now.input_flags, now.output_flags),
            (before.local_flags, before.input_flags, before.output_flags)
        );
        assert!(now.output_flags.contains(OutputFlags::OPOST));
        let screen = self.screen.screen();
        assert!(!screen.alternate_screen() && !screen.hide_cursor(), "{}", screen.contents());
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_shows_what_runs_attaches_and_comes_back_and_leaves_no_trace() {
    let env = TestEnv::new();
    let running = "echo one; while [ ! -e gate ]; do sleep 0.05; done; echo two; sleep 600";
    let id = env.ado(["run", "--detach", "--name", "long", running]).stdout().trim().to_owned();
    let mut top = Pty::start(&env, &["top"], (24, 100));
    let before = {
        // A terminal nobody has touched.
        let other = openpty(None, None).expect("a terminal");
        tcgetattr(&other.slave).expect("a terminal")
    };
    top.until("running task", |screen| {
        let text = screen.contents();
        text.contains(&id) && text.contains("1 running") && text.contains("[long] echo one") && text.contains("rtt ")
    });
    assert!(top.is_raw() && top.screen.screen().alternate_screen());
    top.until("a worker", |screen| screen.contents().contains("1 of 1 ready, 1 of "));
    top.press("l");
    top.until("log", |screen| screen.contents().lines().any(|line| line.trim() == "one"));

    top.press("\r");
    top.until("the task itself", |screen| !screen.alternate_screen() && screen.contents().contains("one"));
    std::fs::write(env.work().join("gate"), "").expect("a file");
    top.until_shown("two");
    top.press("\x03");
    top.until("the dashboard again", |screen| screen.alternate_screen() && screen.contents().contains("1 running"));
    assert!(top.is_raw());

    top.press("c");
    top.until_shown(&format!("cancel {id} [long]? y/n"));
    top.press("y");
    top.until("cancelled task", |screen| screen.contents().contains("1 cancelled"));
    // A task that is over is shown, and waits to be read.
    top.press("\r");
    top.until("word of its end", |screen| {
        !screen.alternate_screen() && screen.contents().contains("any key goes back")
    });
    top.press(" ");
    top.until("the dashboard again", |screen| screen.alternate_screen() && screen.contents().contains("1 cancelled"));
    top.press("q");
    assert_eq!(top.end().code(), Some(0));
    top.assert_restored(&before);
}

#[test]
fn signals_and_a_controller_that_goes_leave_the_terminal_as_it_was() {
    let env = TestEnv::new();
    env.submit("true");
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let mut top = Pty::start(&env, &["top"], (24, 80));
        top.until_shown("1 completed");
        assert!(top.is_raw());
        top.signal(signal);
        assert_eq!(top.end().code(), Some(0), "{signal}");
        assert!(!top.is_raw() && !top.screen.screen().alternate_screen(), "{signal}");
    }
    let mut top = Pty::start(&env, &["top"], (10, 40));
    top.until_shown("completed");
    env.ado(["down"]).assert_code(0);
    assert_eq!(top.end().code(), Some(125));
    assert!(!top.is_raw() && !top.screen.screen().alternate_screen());
    assert!(top.screen.screen().contents().contains("ado down"), "{}", top.screen.screen().contents());
}

#[test]
fn a_mesh_that_is_away_is_shown_and_no_colours_are_none() {
    let (server, laptop) = (TestEnv::new(), TestEnv::new());
    let (controller, said) = crate::remote::controller(&server);
    laptop.ado(["join", said["join"].as_str().expect("a join string")]).assert_code(0);
    laptop.ado(["--remote", "run", "--detach", "--name", "waits", "true"]).assert_code(0);
    let mut top = Pty::start(&laptop, &["--remote", "top"], (24, 100));
    top.until_shown("[waits]");
    controller.stop();
    top.until("word of it", |screen| {
        let text = screen.contents();
        text.contains("not connected for") && text.contains("[waits]")
    });
    top.press("q");
    assert_eq!(top.end().code(), Some(0));

    let mut top = Pty::start(&laptop, &["--remote", "top"], (24, 100));
    top.until_shown("not connected for");
    assert!(String::from_utf8_lossy(&top.raw).contains("\x1b[38;5;"), "colours");
    top.press("q");
    top.end();
    let mut grey = laptop.command(["--remote", "top"]);
    grey.env("NO_COLOR", "1");
    let mut grey = Pty::with(grey, (24, 100));
    grey.until_shown("not connected for");
    assert!(!String::from_utf8_lossy(&grey.raw).contains("\x1b[38;"), "no colours");
    grey.press("q");
    assert_eq!(grey.end().code(), Some(0));
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let env = TestEnv::new();
    let refused = env.ado(["top"]);
    refused.assert_code(125);
    assert!(refused.stderr().contains("needs a terminal") && refused.stderr().contains("hint: ado top --once"));
    let json = env.ado(["top", "--once", "-o", "json"]);
    json.assert_code(125);
    assert!(json.stderr().contains("ado list --output json"), "{}", json.stderr());

    let id = env.submit("exit 3");
    env.ado(["attach", &id]).assert_code(3);
    let once = env.ado(["top", "--once"]);
    once.assert_code(0);
    assert_eq!(once.stderr(), "");
    let text = once.stdout();
    assert!(text.starts_with("ado top  local  127.0.0.1:"), "{text}");
    assert!(text.contains("1 failed") && text.contains(&id) && text.contains("1 of 1 ready"), "{text}");
    assert!(!text.contains('\u{1b}') && text.lines().all(|line| line.trim_end() == line), "{text}");
}
