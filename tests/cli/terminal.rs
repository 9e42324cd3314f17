//! Watching on a terminal, through the real binary on a pseudo-terminal of 80 columns.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use vt100::Parser;

use crate::promises::eventually;
use crate::support::TestEnv;

/// A command on a terminal of its own, and who sits at it.
struct Terminal {
    child: Child,
    keyboard: File,
    /// Held so that its modes can be looked at when the command is gone.
    line: OwnedFd,
    found: Termios,
    shown: Arc<Mutex<Shown>>,
}

struct Shown {
    bytes: Vec<u8>,
    screen: Parser,
}

impl Terminal {
    #[expect(unsafe_code, reason = "a process gets a terminal of its own between fork and exec")]
    /// `streams`: which of stdin, stdout and stderr are the terminal.
    fn start_with(env: &TestEnv, streams: [bool; 3], variables: &[(&str, &str)], args: &[&str]) -> Self {
        let up = env.command(["up"]).env("ADO_WORKER_SLOTS", "8").status();
        assert!(up.is_ok_and(|status| status.success()));
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a pseudo-terminal");
        let mut command: Command = env.command(args);
        let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
        command.env("TERM", "xterm-256color").envs(variables.iter().copied());
        if streams[0] {
            command.stdin(end());
        }
        if streams[1] {
            command.stdout(end());
        }
        if streams[2] {
            command.stderr(end());
        }
        let line = pty.slave.as_raw_fd();
        // SAFETY: both calls are safe between fork and exec.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setsid()?;
                if libc::ioctl(line, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let found = tcgetattr(&pty.slave).expect("its modes");
        let child = command.spawn().expect("ado starts");
        let screen = Parser::new(NonZero::new(24).expect("rows"), NonZero::new(80).expect("columns"), 1000);
        let shown = Arc::new(Mutex::new(Shown { bytes: Vec::new(), screen }));
        let keyboard = File::from(pty.master);
        let (mut output, to) = (keyboard.try_clone().expect("a descriptor"), shown.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Ends with an error when the last who holds the other end is gone.
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                let mut shown = to.lock().expect("nobody panics with it");
                shown.bytes.extend_from_slice(&bytes[..read]);
                shown.screen.process(&bytes[..read]);
            }
        });
        Self { child, keyboard, line: pty.slave, found, shown }
    }

    fn start(env: &TestEnv, args: &[&str]) -> Self {
        Self::start_with(env, [true; 3], &[], args)
    }

    /// What is on the screen, without what lines are filled up with.
    fn screen(&self) -> String {
        self.shown.lock().expect("nobody panics with it").screen.screen().contents()
    }

    fn bytes(&self) -> Vec<u8> {
        self.shown.lock().expect("nobody panics with it").bytes.clone()
    }

    #[track_caller]
    fn wait_for(&self, what: &str) {
        let mut last = String::new();
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(what, || {
                last = self.screen();
                last.contains(what)
            });
        }));
        assert!(caught.is_ok(), "`{what}` never came:\n{last}");
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("somebody reads keys");
    }

    fn modes(&self) -> LocalFlags {
        tcgetattr(&self.line).expect("its modes").local_flags
    }

    /// Waits for its end, and that it left the terminal as it was: its modes, and no line that changes in place.
    #[track_caller]
    fn end(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("it ends", || {
            status = self.child.try_wait().expect("it is ours");
            status.is_some()
        });
        // What it wrote last comes in order, after all else.
        let marker = "-the-end-";
        File::from(self.line.try_clone().expect("a descriptor")).write_all(marker.as_bytes()).expect("a terminal");
        self.wait_for(marker);
        assert_eq!(tcgetattr(&self.line).expect("its modes"), self.found, "the modes are what they were");
        assert!(!self.screen().contains("rtt "), "{}", self.screen());
        status.and_then(|status| status.code())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const GATED: &str = "echo one; while [ ! -e gate ]; do sleep 0.02; done; echo two";

fn open(env: &TestEnv) {
    std::fs::write(env.work().join("gate"), "").expect("a file");
}

#[test]
fn a_status_line_while_it_runs_and_none_at_the_end() {
    let env = TestEnv::new();
    let mut terminal = Terminal::start(&env, &["run", GATED]);
    terminal.wait_for("rtt ");
    terminal.wait_for("one\n");
    let screen = terminal.screen();
    let status = screen.lines().last().unwrap();
    assert!(status.starts_with("task-") && status.contains("  running  on ") && status.contains("s  rtt "), "{screen}");
    assert_eq!(screen.matches("rtt ").count(), 1, "{screen}");
    assert!(!terminal.modes().contains(LocalFlags::ECHO), "what is typed would land in it");
    open(&env);
    assert_eq!(terminal.end(), Some(0));
    let screen = terminal.screen();
    let lines: Vec<_> = screen.lines().filter(|line| !line.starts_with("task-")).collect();
    assert_eq!(lines, ["one", "two", "-the-end-"], "{screen}");
}

#[test]
fn half_a_line_is_not_overwritten() {
    let env = TestEnv::new();
    let text = "printf 'half a '; while [ ! -e gate ]; do sleep 0.02; done; echo line";
    let mut terminal = Terminal::start(&env, &["run", text]);
    terminal.wait_for("half a");
    assert!(terminal.screen().ends_with("half a "), "{}", terminal.screen());
    open(&env);
    assert_eq!(terminal.end(), Some(0));
    assert!(terminal.screen().contains("half a line\n"), "{}", terminal.screen());
}

#[test]
fn ctrl_c_asks_and_enter_goes_on() {
    let env = TestEnv::new();
    let mut terminal = Terminal::start(&env, &["run", GATED]);
    terminal.wait_for("one\n");
    terminal.wait_for("  running");
    for key in ["\r", "\x1b"] {
        terminal.press("\x03");
        terminal.wait_for("d detach  p pause  c cancel  Enter go on");
        eventually("keys come one by one", || !terminal.modes().contains(LocalFlags::ICANON));
        // Keys that mean nothing, and one that means the other state.
        terminal.press("x");
        terminal.press("\x1b[A");
        terminal.press("r");
        terminal.press(key);
        eventually("the menu is gone", || !terminal.screen().contains("d detach"));
        terminal.wait_for("  running");
    }
    open(&env);
    assert_eq!(terminal.end(), Some(0));
    assert!(terminal.screen().contains("one\ntwo\n"), "{}", terminal.screen());
}

#[test]
fn ctrl_c_then_d_detaches_and_says_how_to_continue() {
    let env = TestEnv::new();
    let mut terminal = Terminal::start(&env, &["run", GATED]);
    terminal.wait_for("one\n");
    terminal.press("\x03");
    terminal.wait_for("d detach");
    terminal.press("d");
    assert_eq!(terminal.end(), Some(0));
    let screen = terminal.screen();
    assert!(screen.contains("detached: the task goes on; continue with") && !screen.contains("d detach"), "{screen}");
    let command = screen.lines().find_map(|line| line.trim().strip_prefix("ado ")).expect(&screen).to_owned();
    open(&env);
    let continued = env.ado(command.split(' '));
    continued.assert_code(0);
    assert_eq!(continued.stdout(), "two\n");
}

#[test]
fn a_second_ctrl_c_detaches() {
    let env = TestEnv::new();
    let mut terminal = Terminal::start(&env, &["run", "echo one; sleep 600"]);
    terminal.wait_for("one\n");
    terminal.press("\x03");
    terminal.wait_for("d detach");
    terminal.press("\x03");
    assert_eq!(terminal.end(), Some(0));
    assert!(terminal.screen().contains("detached: the task goes on"), "{}", terminal.screen());
}

#[test]
fn ctrl_c_pauses_and_resumes_and_cancels() {
    let env = TestEnv::new();
    let mut terminal = Terminal::start(&env, &["run", "echo one; sleep 600"]);
    terminal.wait_for("one\n");
    terminal.wait_for("  running");
    terminal.press("\x03");
    terminal.wait_for("p pause");
    terminal.press("p");
    terminal.wait_for("  paused");
    terminal.press("\x03");
    terminal.wait_for("d detach  r resume  c cancel");
    terminal.press("r");
    terminal.wait_for("  running");
    terminal.press("\x03");
    terminal.wait_for("d detach  p pause");
    terminal.press("c");
    assert_eq!(terminal.end(), Some(130));
}

#[test]
fn a_group_has_a_line_a_task_and_one_menu() {
    let env = TestEnv::new();
    let text = "echo one $ADO_GROUP_INDEX; while [ ! -e gate ]; do sleep 0.02; done; exit $ADO_GROUP_INDEX";
    let mut terminal = Terminal::start(&env, &["run", "--workers", "3", text]);
    for line in ["[0] one 0", "[1] one 1", "[2] one 2", "[0] running", "[1] running", "[2] running", "  3 tasks  rtt "]
    {
        terminal.wait_for(line);
    }
    assert_eq!(terminal.screen().matches("running").count(), 3, "{}", terminal.screen());
    terminal.press("\x03");
    terminal.wait_for("d detach  p pause  c cancel");
    assert!(terminal.screen().lines().last().unwrap().starts_with("group-"), "{}", terminal.screen());
    terminal.press("\r");
    open(&env);
    assert_eq!(terminal.end(), Some(1));
    let screen = terminal.screen();
    assert!(screen.contains(": 1 completed, 2 failed (1: exited with code 1; 2: exited with code"), "{screen}");
    assert!(!screen.contains("running"), "{screen}");
}

#[test]
fn ctrl_z_gives_the_terminal_back_until_it_goes_on() {
    let env = TestEnv::new();
    let mut terminal = Terminal::start(&env, &["run", GATED]);
    terminal.wait_for("one\n");
    terminal.wait_for("rtt ");
    terminal.press("\x1a");
    let pid = Pid::from_raw(i32::try_from(terminal.child.id()).unwrap());
    assert_eq!(waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap(), WaitStatus::Stopped(pid, Signal::SIGSTOP));
    assert_eq!(tcgetattr(&terminal.line).unwrap(), terminal.found);
    eventually("its line is gone", || !terminal.screen().contains("rtt "));
    kill(pid, Signal::SIGCONT).unwrap();
    terminal.wait_for("rtt ");
    open(&env);
    assert_eq!(terminal.end(), Some(0));
    assert!(terminal.screen().contains("one\ntwo\n"), "{}", terminal.screen());
}

#[test]
fn whatever_ends_it_the_terminal_is_as_it_was() {
    let env = TestEnv::new();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        let mut terminal = Terminal::start(&env, &["run", "echo one; sleep 600"]);
        terminal.wait_for("one\n");
        terminal.wait_for("rtt ");
        kill(Pid::from_raw(i32::try_from(terminal.child.id()).unwrap()), signal).unwrap();
        assert_eq!(terminal.end(), Some(0), "{signal}");
        assert!(terminal.screen().contains("detached: the task goes on"), "{}", terminal.screen());
    }
    let mut terminal = Terminal::start(&env, &["run", "echo one; sleep 600"]);
    terminal.wait_for("one\n");
    terminal.wait_for("rtt ");
    env.ado(["down"]).assert_code(0);
    assert_eq!(terminal.end(), Some(125));
    assert!(terminal.screen().contains("were stopped"), "{}", terminal.screen());
}

#[test]
fn hostile_sequences_do_nothing_unless_they_are_asked_for() {
    let env = TestEnv::new();
    let text = r"echo safe; printf '\033]0;evil\007\033]52;c;ZXZpbA==\007\033[2J\033[H\033[?1049h\033[6n\2333Aend\n'";
    let mut terminal = Terminal::start(&env, &["run", text]);
    assert_eq!(terminal.end(), Some(0));
    let (screen, bytes) = (terminal.screen(), terminal.bytes());
    assert!(screen.contains("safe\nend\n"), "{screen}");
    for evil in [&b"\x1b]"[..], b"evil", b"ZXZ", b"\x1b[2J", b"\x1b[H", b"\x1b[?", b"\x1b[6n", b"\x9b"] {
        assert!(!bytes.windows(evil.len()).any(|part| part == evil), "{}", evil.escape_ascii());
    }
    let mut group = Terminal::start(&env, &["run", "--workers", "2", text]);
    assert_eq!(group.end(), Some(0));
    assert!(!group.bytes().windows(4).any(|part| part == b"evil") && group.screen().contains("[1] end"));

    let mut raw = Terminal::start(&env, &["run", "--raw", text]);
    assert_eq!(raw.end(), Some(0));
    assert!(raw.bytes().windows(6).any(|part| part == b"\x1b]0;ev"));
}

#[test]
fn colours_of_ours_unless_nobody_wants_them() {
    let env = TestEnv::new();
    let args = ["run", "--workers", "2", "echo $ADO_GROUP_INDEX"];
    let mut coloured = Terminal::start(&env, &args);
    assert_eq!(coloured.end(), Some(0));
    assert!(String::from_utf8_lossy(&coloured.bytes()).contains("\x1b[33m[1]\x1b[0m 1"));
    let mut plain = Terminal::start_with(&env, [true; 3], &[("NO_COLOR", "1")], &args);
    assert_eq!(plain.end(), Some(0));
    let text = String::from_utf8_lossy(&plain.bytes()).into_owned();
    let colours = text
        .split("\x1b[")
        .skip(1)
        .filter(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m'));
    assert_eq!(colours.count(), 0, "{}", text.escape_debug());
    assert!(text.contains("[1] 1\r\n"), "{}", text.escape_debug());
}

#[test]
fn no_line_changes_in_place_where_it_could_do_harm() {
    let env = TestEnv::new();
    let text = "echo out; echo err >&2; exit 3";
    for (streams, variables, args) in [
        ([true; 3], &[("TERM", "dumb")][..], &["run", text][..]),
        ([true; 3], &[], &["run", "--quiet", text]),
        ([true; 3], &[], &["run", "--raw", text]),
        ([true; 3], &[], &["run", "-o", "json", text]),
        // Whoever reads the pipe may write to the terminal, too.
        ([true, false, true], &[], &["run", text]),
        ([true, true, false], &[], &["run", text]),
    ] {
        let mut terminal = Terminal::start_with(&env, streams, variables, args);
        assert_eq!(terminal.end(), Some(3));
        let bytes = terminal.bytes();
        assert!(!bytes.contains(&0x1b), "{args:?}: {}", bytes.escape_ascii());
    }
}

#[test]
#[expect(unsafe_code, reason = "only the C library sets the size of a terminal")]
fn a_narrow_terminal_cuts_the_line() {
    let env = TestEnv::new();
    let mut terminal = Terminal::start(&env, &["run", GATED]);
    terminal.wait_for("rtt ");
    let size = Winsize { ws_row: 24, ws_col: 30, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the size is read whole from where it points.
    let done = unsafe { libc::ioctl(terminal.line.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(done, 0);
    eventually("it is cut", || {
        let screen = terminal.screen();
        screen.lines().last().is_some_and(|line| line.starts_with("task-") && line.chars().count() == 29)
    });
    open(&env);
    eventually("it ends", || terminal.child.try_wait().expect("it is ours").is_some());
    assert!(terminal.screen().contains("one\ntwo"), "{}", terminal.screen());
}

#[test]
fn a_secret_that_is_typed_is_not_shown() {
    let env = TestEnv::new();
    let mut terminal = Terminal::start(&env, &["secret", "set", "token"]);
    terminal.wait_for("value of token:");
    terminal.press("hunter2-hunter2\n");
    terminal.wait_for("token is set, version 1");
    assert!(!String::from_utf8_lossy(&terminal.bytes()).contains("hunter2"), "{}", terminal.screen());
    eventually("the terminal is as it was", || {
        tcgetattr(&terminal.line).is_ok_and(|modes| modes.local_flags.contains(LocalFlags::ECHO))
    });
}
