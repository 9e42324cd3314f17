//! `ado tool-run`: a program whose outputs go to whoever started it, as always, and at the same time to the worker.
//!
//! Owns: standing in for a shell that an AI agent runs its tools in, so that what they write is seen while they run. Must
//! never know: the network, tasks, tokio. Between program and reader nothing changes: the exit code, the order in each
//! output, who holds which end open for how long, and that all of it is there when the program has ended.
//!
//! It is three processes: the program; one that copies, for as long as anybody holds the program's outputs; and this one,
//! which ends when the program has and what it wrote has been copied.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{ForkResult, fork, pipe2};

/// Variable of an agent's environment: a named pipe that takes what its tools write. Programs that run within a tool do not
/// have it: what they write comes through the tool.
pub(super) const OUTPUT: &str = "ADO_TOOL_OUTPUT";

/// Bytes of one write to the pipe: up to here they are not mixed with others' (`PIPE_BUF`, pipe(7)).
const PIECE: usize = 4096;

/// Runs a program with these arguments. One thread, no runtime: it forks.
pub fn run(program: &OsString, arguments: &[OsString]) -> ExitCode {
    let mut command = Command::new(program);
    command.args(arguments).env_remove(OUTPUT);
    let Some(worker) = std::env::var_os(OUTPUT).and_then(open) else {
        return failed(program, &command.exec());
    };
    match watched(&mut command, worker) {
        Ok(code) => code,
        Err(error) => failed(program, &error),
    }
}

/// The pipe; nothing when nobody reads it.
fn open(path: OsString) -> Option<File> {
    let file = File::options().write(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).ok()?;
    // From here on a worker that is slow slows the tool.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).ok()?;
    Some(file)
}

/// As a shell says it.
fn failed(program: &OsString, error: &io::Error) -> ExitCode {
    let _ = writeln!(io::stderr(), "ado: cannot run {}: {error}", program.display());
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

fn watched(command: &mut Command, worker: File) -> io::Result<ExitCode> {
    let (out, out_end) = pipe2(OFlag::O_CLOEXEC)?;
    let (err, err_end) = pipe2(OFlag::O_CLOEXEC)?;
    // Written to when the program has ended; its other end closes when all it wrote is copied.
    let (over, over_end) = pipe2(OFlag::O_CLOEXEC)?;
    let (done, done_end) = pipe2(OFlag::O_CLOEXEC)?;
    match fork_alone()? {
        ForkResult::Child => {
            drop((out_end, err_end, over_end, done));
            copy(
                &mut [Copy::new(out, own(&io::stdout())?), Copy::new(err, own(&io::stderr())?)],
                worker,
                over,
                done_end,
            );
            leave()
        }
        ForkResult::Parent { .. } => {
            drop((out, err, over, done_end, worker));
            let status = command.stdout(Stdio::from(out_end)).stderr(Stdio::from(err_end)).status();
            // The command holds the program's ends open until it is dropped.
            command.stdout(Stdio::null()).stderr(Stdio::null());
            drop(over_end);
            let _ = File::from(done).read(&mut [0]);
            let status = status?;
            let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
            Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)))
        }
    }
}

fn own(stream: &impl AsFd) -> io::Result<File> {
    Ok(File::from(stream.as_fd().try_clone_to_owned()?))
}

#[expect(unsafe_code, reason = "no wrapper forks without it")]
fn fork_alone() -> io::Result<ForkResult> {
    // SAFETY: this process has one thread, so the child may do whatever this process may.
    unsafe { fork() }.map_err(io::Error::from)
}

#[expect(unsafe_code, reason = "a child must not run its parent's destructors")]
fn leave() -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(0) }
}

/// An output on its way.
struct Copy {
    from: Option<File>,
    to: File,
}

impl Copy {
    fn new(from: OwnedFd, to: File) -> Self {
        Self { from: Some(File::from(from)), to }
    }

    /// Copies what is there, once. A reader that is gone is felt by the program as ever.
    fn step(&mut self, worker: &mut Option<File>) {
        let mut buffer = [0; PIECE];
        let Some(from) = &mut self.from else { return };
        match from.read(&mut buffer) {
            Ok(0) => self.from = None,
            Ok(length) => {
                let data = &buffer[..length];
                if worker.as_mut().is_some_and(|worker| worker.write_all(data).is_err()) {
                    *worker = None;
                }
                if self.to.write_all(data).is_err() {
                    self.from = None;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.from = None,
        }
    }
}

/// Copies until nobody holds the outputs any more. `done` closes when the program has ended and nothing is left of it.
fn copy(outputs: &mut [Copy; 2], worker: File, over: OwnedFd, done: OwnedFd) {
    let (mut worker, mut over, mut done) = (Some(worker), Some(over), Some(done));
    loop {
        let ended = over.is_none();
        let mut fds = Vec::with_capacity(3);
        let mut whose = Vec::with_capacity(3);
        for (index, output) in outputs.iter().enumerate() {
            if let Some(from) = &output.from {
                fds.push(PollFd::new(from.as_fd(), PollFlags::POLLIN));
                whose.push(index);
            }
        }
        if let Some(over) = &over {
            fds.push(PollFd::new(over.as_fd(), PollFlags::POLLIN));
        }
        if whose.is_empty() && ended {
            return;
        }
        // Once the program has ended, the first moment of silence means that all it wrote was copied.
        let patience = if ended && done.is_some() { PollTimeout::ZERO } else { PollTimeout::NONE };
        let found = match poll(&mut fds, patience) {
            Ok(found) => found,
            Err(Errno::EINTR) => continue,
            Err(_) => return,
        };
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        drop(fds);
        if found == 0 {
            done = None;
        }
        for (index, _) in whose.iter().zip(&ready).filter(|(_, ready)| **ready) {
            outputs[*index].step(&mut worker);
        }
        if over.is_some() && ready.get(whose.len()).copied().unwrap_or(false) {
            over = None;
        }
    }
}
