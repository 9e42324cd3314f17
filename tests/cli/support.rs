//! A home of its own for each test: its own controller and worker, stopped at the end.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// One user's ado, on an otherwise empty machine.
pub(crate) struct TestEnv {
    home: TempDir,
    work: TempDir,
}

impl TestEnv {
    /// Nothing runs yet.
    pub(crate) fn new() -> Self {
        Self { home: TempDir::new().expect("a directory"), work: TempDir::new().expect("a directory") }
    }

    /// Where commands are run.
    pub(crate) fn work(&self) -> &Path {
        self.work.path()
    }

    /// Where ado keeps everything.
    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    /// A command that knows nothing of the machine but this environment.
    pub(crate) fn command(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ado"));
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("HOME", self.work.path())
            .env("ADO_HOME", self.home.path())
            .current_dir(self.work.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn ado(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ran {
        Ran(self.command(args).output().expect("ado starts"))
    }

    /// Starts a command that is watched while it runs.
    pub(crate) fn start(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Running {
        Running::start(self.command(args))
    }

    /// Runs a command on a terminal of this size to its end: what is on the screen then, and the exit code.
    pub(crate) fn in_terminal(
        &self,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        rows: u16,
        cols: u16,
    ) -> (String, Option<i32>) {
        let (text, code) = on_terminal(self.command(args).env("TERM", "xterm-256color"), rows, cols);
        let mut screen = vt100::Parser::new(rows.try_into().expect("rows"), cols.try_into().expect("columns"), 0);
        screen.process(&text);
        (screen.screen().contents(), code)
    }

    /// Submits a task and returns its id.
    pub(crate) fn submit(&self, text: &str) -> String {
        self.submit_with(&[], text)
    }

    /// The same, with flags.
    pub(crate) fn submit_with(&self, flags: &[&str], text: &str) -> String {
        let ran = self.ado(["run", "--detach"].iter().chain(flags).chain(&[text]));
        ran.assert_code(0);
        ran.stdout().trim().to_owned()
    }
}

/// Runs a command whose three streams are one terminal: all it wrote, and its exit code.
pub(crate) fn on_terminal(command: &mut Command, rows: u16, cols: u16) -> (Vec<u8>, Option<i32>) {
    let size = nix::pty::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(Some(&size), None).expect("a terminal");
    let side = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
    let mut child = command.stdin(side()).stdout(side()).stderr(side()).spawn().expect("ado starts");
    // Nobody but the child holds its side: the end of the child is the end of what can be read.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    drop(pty.slave);
    let mut written = Vec::new();
    // Linux says EIO where a pipe would be at its end.
    let _ = std::fs::File::from(pty.master).read_to_end(&mut written);
    (written, child.wait().expect("it ends").code())
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        let down = self.ado(["down"]);
        if std::thread::panicking() {
            for log in ["controller.log", "worker.log"] {
                let text = std::fs::read_to_string(self.home.path().join(log)).unwrap_or_default();
                eprintln!("---- {log}\n{text}");
            }
        } else {
            down.assert_code(0);
        }
    }
}

/// A controller or a worker in the foreground; killed at the end of the test unless it was stopped.
pub(crate) struct Service {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Service {
    /// Starts it; what it logs is shown when the test fails.
    pub(crate) fn start(env: &TestEnv, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        Self::of(&mut env.command(args))
    }

    /// Starts a command of [`TestEnv::command`].
    pub(crate) fn of(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::inherit()).spawn().expect("ado starts");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, stdout }
    }

    /// Waits for the next line it prints, as JSON.
    #[track_caller]
    pub(crate) fn json(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("its output");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Waits until it ends by itself, and well.
    #[track_caller]
    pub(crate) fn ends(mut self) {
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }

    /// Asks it to stop, and waits for that.
    #[track_caller]
    pub(crate) fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that ended.
pub(crate) struct Ran(Output);

impl Ran {
    /// Runs a command of [`TestEnv::command`] to its end.
    pub(crate) fn of(command: &mut Command) -> Self {
        Self(command.output().expect("ado starts"))
    }

    /// Fails with all that was printed when the exit code is another.
    #[track_caller]
    pub(crate) fn assert_code(&self, code: i32) {
        assert_eq!(self.0.status.code(), Some(code), "stdout: {}\nstderr: {}", self.stdout(), self.stderr());
    }

    /// Its exit code; `None` when a signal ended it.
    pub(crate) fn code(&self) -> Option<i32> {
        self.0.status.code()
    }

    /// What it printed; not UTF-8 fails.
    pub(crate) fn stdout(&self) -> &str {
        std::str::from_utf8(&self.0.stdout).expect("UTF-8")
    }

    /// What it complained of.
    pub(crate) fn stderr(&self) -> &str {
        std::str::from_utf8(&self.0.stderr).expect("UTF-8")
    }

    /// What it complained of, byte for byte.
    pub(crate) fn stderr_bytes(&self) -> &[u8] {
        &self.0.stderr
    }

    /// What it printed, byte for byte.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0.stdout
    }

    /// What it printed as one JSON value.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.0.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout()))
    }

    /// What it printed as a JSON value a line.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        self.stdout().lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }
}

/// A command that runs.
pub(crate) struct Running {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// Starts a command of [`TestEnv::command`].
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("ado starts");
        let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, stdout }
    }

    /// Waits for the next line of its output.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        self.next_line().expect("it ended before the line came")
    }

    /// The next line of its output; `None` at the end.
    pub(crate) fn next_line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.stdout.read_line(&mut line).expect("its output");
        (read > 0).then_some(line)
    }

    /// Its process.
    pub(crate) fn id(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.id(), signal).expect("it runs");
    }

    /// Closes this side of its stdout: whatever it writes next finds no reader.
    pub(crate) fn stop_reading(self) -> (ExitStatus, String) {
        let Self { mut child, stdout } = self;
        drop(stdout);
        let status = child.wait().expect("it ends");
        (status, rest(child.stderr.take()))
    }

    /// Waits for its end: exit code, the rest of its output, what it complained of.
    pub(crate) fn end(mut self) -> (Option<i32>, String, String) {
        let mut stdout = String::new();
        self.stdout.read_to_string(&mut stdout).expect("its output");
        let status = self.child.wait().expect("it ends");
        (status.code(), stdout, rest(self.child.stderr.take()))
    }
}

fn rest(stream: Option<impl Read>) -> String {
    let mut text = String::new();
    if let Some(mut stream) = stream {
        stream.read_to_string(&mut text).expect("its errors");
    }
    text
}
