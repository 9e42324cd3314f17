//! The guard: the small process each agent runs under (`ado guard`).
//!
//! Owns: one agent, from its start until nothing of it is left; its containment; the deadline of its lease, at which it
//! freezes the agent by itself; its end when the worker is gone, however the worker went.
//! Must never know: the network, tasks, tokio. It is synchronous and has one thread: it has to work when its worker does
//! not, and it forks.
//!
//! Standard input is the control socket, standard output and error are the agent's: once the agent runs the guard lets go
//! of them, so that their end reaches the worker when the agent and all its descendants are gone.

mod agent;
mod clock;
mod control;
pub mod protocol;
mod wake;
mod watch;

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ado_proto::spec::{Containment, Exit};
use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdout, setsid};

use self::agent::Failure;
pub use self::clock::BootTime;
use self::control::Control;
use self::protocol::{FromGuard, Start, ToGuard};
use self::wake::Wake;
use self::watch::{Act, Watch};
use super::containment::Hold;

/// Between two rounds of killing, when no death is reported: processes in an uninterruptible wait die late.
const KILL_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Variables that together name one attempt, in the environment of all its processes.
pub(super) const MARKS: [&str; 2] = ["ADO_TASK_ID", "ADO_EPOCH"];

/// Runs a guard until its agent is gone. `guards` is the directory in which it holds the lock that shows that it lives.
pub fn run(guards: &Path) -> ExitCode {
    match prepare(guards).and_then(Guard::live) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The worker reads this where the agent's errors would have come.
            let _ = writeln!(io::stderr(), "ado guard: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Guard {
    control: Control,
    wake: Wake,
    life: Life,
}

fn prepare(guards: &Path) -> io::Result<Guard> {
    agent::close_inherited()?;
    // Signals of the terminal are for the worker, which tells us what to do. They stay blocked; nothing but SIGKILL ends
    // the guard before its agent.
    SigSet::all().thread_block()?;
    // Fails only if we lead a session already.
    let _ = setsid();
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_child_subreaper(true)?;
    let life = Life::begin(guards)?;
    std::env::set_current_dir("/")?;
    Ok(Guard { control: Control::stdin()?, wake: Wake::new()?, life })
}

impl Guard {
    fn live(mut self) -> io::Result<()> {
        let Some((start, early)) = self.wait_for_start()? else { return Ok(()) };
        let held = self.hold(&start, start.containment).and_then(|(hold, spawned)| match spawned {
            Err(Failure::NotHeld) => {
                drop(hold);
                self.hold(&start, Containment::Subreaper)
            }
            spawned => Ok((hold, spawned)),
        });
        let (hold, spawned) = match held {
            Ok((hold, spawned)) => (Some(hold), spawned),
            // Another worker may be able to.
            Err(error) => (None, Err(Failure::Refused { error: error.to_string(), permanent: false })),
        };
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        match spawned {
            Ok(agent) => {
                let hold = hold.expect("it was spawned into it");
                self.control
                    .tell(&FromGuard::Started { pid: agent.as_raw().unsigned_abs(), containment: hold.grade() });
                let watch = Watch::new(&start, BootTime::now());
                let limit = start.limits.memory;
                Running { guard: self, agent, hold, watch, limit, status: None }.run(early)
            }
            Err(Failure::Refused { error, permanent }) => {
                self.control.tell(&FromGuard::NotStarted { error, permanent });
                Ok(())
            }
            Err(Failure::NotHeld) => {
                let error = "cannot put it under its limits".into();
                self.control.tell(&FromGuard::NotStarted { error, permanent: false });
                Ok(())
            }
        }
    }

    /// Makes what holds the agent, notes it, and starts the agent in it.
    fn hold(&mut self, start: &Start, strongest: Containment) -> io::Result<(Hold, Result<Pid, Failure>)> {
        let hold = Hold::new(strongest, &start.limits).map_err(io::Error::other)?;
        self.life.note(&hold, start)?;
        let spawned = agent::spawn(start, &hold);
        Ok((hold, spawned))
    }

    /// `None`: the worker is gone, or wants nothing any more. Only once the lock is held and the worker has been seen alive
    /// after that does an agent start: a worker's successor that saw no lock can rely on there being no agent. Nor does it
    /// while its lease is over: a worker that stood still on the way here may have lost the task.
    fn wait_for_start(&mut self) -> io::Result<Option<(Start, Vec<ToGuard>)>> {
        let mut told: Option<(Start, Vec<ToGuard>)> = None;
        loop {
            for message in self.control.receive() {
                match (&mut told, message) {
                    (None, ToGuard::Start(start)) => told = Some((start, Vec::new())),
                    (None, _) => return Ok(None),
                    (Some((start, _)), ToGuard::Renew(lease)) => start.lease = start.lease.max(lease),
                    (Some((_, early)), message) => early.push(message),
                }
            }
            if self.control.is_closed() {
                return Ok(None);
            }
            if let Some((start, early)) = &told {
                let ends = early.iter().find_map(|message| match message {
                    ToGuard::Kill | ToGuard::Stop { .. } => Some(Exit::Cancelled),
                    ToGuard::TimeOut(limit) => Some(Exit::TimedOut(*limit)),
                    _ => None,
                });
                if let Some(exit) = ends {
                    self.control.tell(&FromGuard::Exited(exit));
                    return Ok(None);
                }
                if BootTime::now() < start.lease {
                    return Ok(told);
                }
            }
            self.wake.wait(self.control.fd(), None, BootTime::NEVER)?;
        }
    }
}

struct Running {
    guard: Guard,
    agent: Pid,
    hold: Hold,
    watch: Watch,
    /// Bytes of memory that it may use.
    limit: Option<u64>,
    /// How the agent's first process ended.
    status: Option<Exit>,
}

impl Running {
    fn run(mut self, early: Vec<ToGuard>) -> io::Result<()> {
        let mut messages = early;
        loop {
            let now = BootTime::now();
            let mut acts: Vec<Act> = messages.iter().flat_map(|message| self.watch.hear(now, message)).collect();
            acts.extend(self.watch.tick(now));
            let killed = !acts.into_iter().all(|act| self.perform(act));
            self.reap();
            if killed || self.status.is_some() || self.hold.ran_out_of_memory() {
                return self.end();
            }
            if self.guard.control.is_closed() {
                // Nobody is left to tell.
                return self.end();
            }
            self.guard.wake.wait(self.guard.control.fd(), self.hold.notice(), self.watch.next_tick())?;
            messages = self.guard.control.receive();
        }
    }

    /// Whether the agent may go on.
    fn perform(&mut self, act: Act) -> bool {
        match act {
            Act::Freeze => self.hold.freeze(self.agent),
            Act::Thaw => self.hold.thaw(self.agent),
            Act::Terminate => self.hold.terminate(self.agent),
            Act::Tell(message) => self.guard.control.tell(&message),
            Act::Kill => return false,
        }
        true
    }

    /// Leaves nothing behind, then says how the agent's first process ended.
    fn end(mut self) -> io::Result<()> {
        // They all are descendants of this process, their subreaper: with no child left there is nobody.
        while self.reap() {
            self.hold.kill(self.agent);
            self.guard.wake.wait_for_child(BootTime::now().after(KILL_AGAIN_AFTER))?;
        }
        let status = self.status.take().unwrap_or(Exit::Lost { error: "the agent was reaped by another".into() });
        let status = match self.limit.filter(|_| self.hold.ran_out_of_memory()) {
            Some(limit) => Exit::OutOfMemory { limit },
            None => status,
        };
        let exit = self.watch.conclude(status);
        // The group is removed before the report: nothing is left then, in no sense.
        drop(self.hold);
        self.guard.control.tell(&FromGuard::Exited(exit));
        Ok(())
    }

    /// Buries the dead. Whether anybody lives.
    fn reap(&mut self) -> bool {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if pid == self.agent => self.status = Some(Exit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == self.agent => {
                    self.status = Some(Exit::Signal(signal as i32));
                }
                Ok(WaitStatus::StillAlive) => return true,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }
}

/// The file that shows that this guard lives: locked as long as it does. It says how what it holds is found, for the case
/// that the guard is killed: the control groups on the first line, between tabs, then variables of the agent's environment.
struct Life {
    file: File,
    path: PathBuf,
}

impl Life {
    fn begin(guards: &Path) -> io::Result<Self> {
        let path = guards.join(std::process::id().to_string());
        let file = File::options().create(true).truncate(true).write(true).open(&path)?;
        file.try_lock().map_err(io::Error::from)?;
        Ok(Self { file, path })
    }

    fn note(&mut self, hold: &Hold, start: &Start) -> io::Result<()> {
        let groups: Vec<_> = hold.groups().into_iter().map(|group| group.display().to_string()).collect();
        let mut text = groups.join("\t");
        for name in MARKS {
            if let Some(value) = start.env.get(name) {
                text.push_str(&format!("\n{name}={value}"));
            }
        }
        self.file.set_len(0)?;
        self.file.write_all_at(text.as_bytes(), 0)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
