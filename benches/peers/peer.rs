//! What a peer can do, and children whose output is read as it comes.

use std::io::{self, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::generator::STAMP;
use crate::lines::monotonic_ns;

/// Something that runs programs elsewhere and brings their output here.
pub(crate) trait Peer {
    /// In one word.
    fn name(&self) -> &'static str;

    /// Starts a program at the far end; its output comes on the child's stdout as a user would see it.
    fn start(&self, argv: &[String]) -> io::Result<Running>;

    /// Starts the same program this often; their output may come on one child's stdout. `None`: not a thing it is for.
    fn start_many(&self, argv: &[String], times: usize) -> io::Result<Option<Vec<Running>>> {
        (0..times).map(|_| self.start(argv)).collect::<io::Result<_>>().map(Some)
    }

    /// Runs a whole command that starts a program: when the command was started, and when the program began.
    fn spawn(&self) -> io::Result<(u64, u64)> {
        let begun = monotonic_ns();
        Ok((begun, self.start(&own(&["stamp"]))?.stamp()?))
    }

    /// The same over a session that is already there. `None`: it has none.
    fn spawn_warm(&self) -> io::Result<Option<(u64, u64)>> {
        Ok(None)
    }

    /// The command that lists what there is.
    fn list(&self) -> Option<Command> {
        None
    }

    /// Whether it runs programs and brings their output: a mere queue does not.
    fn runs_programs(&self) -> bool {
        true
    }

    /// Whether every byte arrives as it was written: what takes text only is not asked for more.
    fn is_binary(&self) -> bool {
        true
    }

    /// How many starts are measured in one repetition, of those wished for.
    fn starts(&self, wished: usize) -> usize {
        wished
    }

    /// Tasks a second, of an agent, `count` of them. `None`: it has no queue of tasks.
    fn tasks_per_second(&self, _agent: Agent, _count: u32) -> io::Result<Option<f64>> {
        Ok(None)
    }

    /// Tasks a second that do nothing, `count` of them, through PostgreSQL or Redis. `None`: not a thing it is for.
    fn queued_per_second(&self, _count: u32) -> io::Result<Option<f64>> {
        Ok(None)
    }

    /// The same one at a time, while nothing else is to be done: when each was asked for, and when it began.
    fn queued_starts(&self, _count: usize) -> io::Result<Option<Vec<(u64, u64)>>> {
        Ok(None)
    }

    /// What idle workers cost the process that coordinates them. `None`: there is none.
    fn idle_workers(&self, _count: u32) -> io::Result<Option<Idle>> {
        Ok(None)
    }
}

/// What an idle worker costs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Idle {
    /// Memory of each, KiB.
    pub(crate) kib: f64,
    /// Part of a processor that all of them need together, percent.
    pub(crate) cpu: f64,
}

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Agent {
    /// Nothing: no process.
    Noop,
    /// Runs `true`.
    True,
}

/// This program with other arguments.
pub(crate) fn own(args: &[&str]) -> Vec<String> {
    let program = std::env::current_exe().expect("it runs");
    let program = program.to_str().expect("cargo's folders are UTF-8").to_owned();
    std::iter::once(program).chain(args.iter().map(|arg| (*arg).to_owned())).collect()
}

/// A child whose stdout is read.
pub(crate) struct Running {
    child: Child,
    stdout: ChildStdout,
    /// Cleans up at the far end.
    after: Option<Command>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().expect("it is piped");
        Ok(Self { child, stdout, after: None })
    }

    /// Runs a command when this one is done.
    pub(crate) fn then(self, after: Command) -> Self {
        Self { after: Some(after), ..self }
    }

    /// Reads everything: `take` gets each piece, with the instant it was there.
    pub(crate) fn read(mut self, mut take: impl FnMut(&[u8], u64)) -> io::Result<()> {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            match self.stdout.read(&mut buffer)? {
                0 => break,
                length => take(&buffer[..length], monotonic_ns()),
            }
        }
        let status = self.child.wait()?;
        if let Some(mut after) = self.after.take() {
            after.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        }
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("it ended with {status}"))) }
    }

    /// Reads whole lines, each with the instant its end was there.
    pub(crate) fn read_lines(self, mut take: impl FnMut(&[u8], u64)) -> io::Result<()> {
        let mut partial = Vec::new();
        self.read(|piece, at| {
            let mut pieces = piece.split(|byte| *byte == b'\n').peekable();
            while let Some(piece) = pieces.next() {
                partial.extend_from_slice(piece);
                if pieces.peek().is_some() {
                    take(&partial, at);
                    partial.clear();
                }
            }
        })
    }

    /// When the program at the far end began, as it says.
    pub(crate) fn stamp(self) -> io::Result<u64> {
        let mut stamp = None;
        self.read_lines(|line, _| stamp = stamp.or_else(|| stamp_in(line)))?;
        stamp.ok_or_else(|| io::Error::other("the program did not say when it began"))
    }
}

/// The stamp in a line of output.
pub(crate) fn stamp_in(line: &[u8]) -> Option<u64> {
    std::str::from_utf8(line).ok()?.split_once(STAMP)?.1.trim().parse().ok()
}

/// How many processes wanted to run lately: the load average of a minute.
pub(crate) fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}
