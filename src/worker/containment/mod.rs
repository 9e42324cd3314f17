//! How an agent and everything it starts is held together: frozen, thawed, killed as one.
//!
//! Owns: the three grades. `cgroup`: a control group of version 2, which the kernel freezes and kills as one. `subreaper`:
//! orphans come to the guard (it is their subreaper), so everything the agent started is below the guard in the tree of
//! processes, and a walk over it, repeated until nothing changes, finds all. `group`: the agent's process group.
//! Must never know: leases, reasons, the worker. Used inside the guard, which is synchronous: calls may block for a short,
//! bounded time.

#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(target_os = "linux")]
mod descendants;
#[cfg(target_os = "linux")]
mod limits;

use std::path::Path;

use ado_proto::spec::{Containment, Resources};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

#[cfg(target_os = "linux")]
use cgroup::Cgroup;
#[cfg(target_os = "linux")]
use descendants::Descendants;
#[cfg(target_os = "linux")]
pub(super) use descendants::parent;
#[cfg(target_os = "linux")]
use limits::Limits;

/// The name of the variable that forces a grade.
pub const FORCE: &str = "ADO_CONTAINMENT";

/// The strongest grade to be had here, or the one named in `forced` ([`FORCE`]'s value) where the system has it.
pub fn choose(forced: Option<&str>) -> Containment {
    #[cfg(target_os = "linux")]
    {
        cgroup::sweep();
        cgroup::step_aside();
        if forced == Some(Containment::Subreaper.as_str()) {
            return Containment::Subreaper;
        }
        match Cgroup::create() {
            Ok(_) => Containment::Cgroup,
            Err(error) => {
                tracing::debug!(%error, "no control group of version 2 to be had");
                Containment::Subreaper
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = forced;
        Containment::Group
    }
}

/// Kinds of limits that can be enforced here, tried one by one. How much is of no meaning.
pub fn enforceable(grade: Containment) -> Resources {
    // Little of what a group above may have less of: the kernel takes no quota larger than that one's.
    let all = Resources { cpu_milli: Some(10), memory: Some(1 << 30), pids: Some(100) };
    let can = |one: Resources| {
        Hold::new(grade, &one).inspect_err(|error| tracing::debug!(error, "a limit that cannot be had")).is_ok()
    };
    let none = Resources::default();
    Resources {
        cpu_milli: all.cpu_milli.filter(|_| can(Resources { cpu_milli: all.cpu_milli, ..none })),
        memory: all.memory.filter(|_| can(Resources { memory: all.memory, ..none })),
        pids: all.pids.filter(|_| can(Resources { pids: all.pids, ..none })),
    }
}

/// Kills what a guard that was killed left behind: its control groups, if it had any, and processes that have all of
/// `marks` (`NAME=value`) in their environment. Blocks until they are gone, for a second or two at most.
pub(super) fn remove_leftovers(groups: &[&Path], marks: &[String]) {
    #[cfg(target_os = "linux")]
    {
        groups.iter().for_each(|group| cgroup::remove_leftover(group));
        if !marks.is_empty() {
            descendants::kill_marked(marks);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (groups, marks);
}

/// One agent and all it starts. Belongs to the process that is their subreaper.
#[derive(Debug)]
pub(super) struct Hold {
    #[cfg(target_os = "linux")]
    cgroup: Option<Cgroup>,
    #[cfg(target_os = "linux")]
    limits: Limits,
    #[cfg(target_os = "linux")]
    descendants: Descendants,
}

impl Hold {
    /// Ready for an agent. A grade that cannot be had is replaced by the next one; see [`Hold::grade`].
    ///
    /// # Errors
    /// In words: a limit that cannot be had. Nothing replaces it.
    pub(super) fn new(strongest: Containment, limits: &Resources) -> Result<Self, String> {
        #[cfg(target_os = "linux")]
        {
            let cgroup = (strongest == Containment::Cgroup).then(Cgroup::create).and_then(Result::ok);
            let limits = Limits::set(limits, cgroup.as_ref())?;
            Ok(Self { cgroup, limits, descendants: Descendants::of_this_process() })
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = strongest;
            let asked = limits.kinds().into_iter().find(|(_, amount)| amount.is_some());
            asked.map_or(Ok(Self {}), |(kind, _)| Err(format!("cannot limit {} on this system", kind.as_str())))
        }
    }

    /// The grade that holds.
    #[cfg(target_os = "linux")]
    pub(super) fn grade(&self) -> Containment {
        if self.cgroup.is_some() { Containment::Cgroup } else { Containment::Subreaper }
    }

    /// The grade that holds.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn grade(&self) -> Containment {
        Containment::Group
    }

    /// The directories of the control groups.
    #[cfg(target_os = "linux")]
    pub(super) fn groups(&self) -> Vec<&Path> {
        self.cgroup.as_ref().map(Cgroup::path).into_iter().chain(self.limits.paths()).collect()
    }

    /// The directories of the control groups.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn groups(&self) -> Vec<&Path> {
        Vec::new()
    }

    /// Readable once memory has run out, where the kernel says so.
    pub(super) fn notice(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        #[cfg(target_os = "linux")]
        return self.limits.notice();
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Whether more memory was wanted than there may be: something was killed, and the rest is to be.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        #[cfg(target_os = "linux")]
        return self.limits.ran_out();
        #[cfg(not(target_os = "linux"))]
        false
    }

    /// The control group's directory, open: processes may be born there.
    #[cfg(target_os = "linux")]
    pub(super) fn group_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.cgroup.as_ref().map(Cgroup::fd)
    }

    /// The files a process writes `0` into to be limited. It must do so before it can start others.
    #[cfg(target_os = "linux")]
    pub(super) fn limited_by(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        self.limits.entrances().collect()
    }

    /// The file a process writes `0` into to be held, if it was not born so. It must do so before it can start others.
    #[cfg(target_os = "linux")]
    pub(super) fn entrance(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.cgroup.as_ref().map(Cgroup::entrance)
    }

    /// Nothing of the agent runs after this.
    pub(super) fn freeze(&mut self, agent: Pid) {
        #[cfg(target_os = "linux")]
        match &self.cgroup {
            Some(cgroup) => cgroup.freeze(true),
            None => self.descendants.stop(),
        }
        #[cfg(not(target_os = "linux"))]
        signal_group(agent, Signal::SIGSTOP);
        let _ = agent;
    }

    /// It goes on; what it had itself stopped stays stopped.
    pub(super) fn thaw(&mut self, agent: Pid) {
        #[cfg(target_os = "linux")]
        match &self.cgroup {
            Some(cgroup) => cgroup.freeze(false),
            None => self.descendants.go_on(),
        }
        #[cfg(not(target_os = "linux"))]
        signal_group(agent, Signal::SIGCONT);
        let _ = agent;
    }

    /// Asks the agent to end.
    pub(super) fn terminate(&self, agent: Pid) {
        signal_group(agent, Signal::SIGTERM);
    }

    /// Kills everything there is now. Repeated, while the dead are reaped, until nothing is left.
    pub(super) fn kill(&mut self, agent: Pid) {
        signal_group(agent, Signal::SIGKILL);
        #[cfg(target_os = "linux")]
        {
            if let Some(cgroup) = &self.cgroup {
                cgroup.kill();
            }
            // Also with a control group: a process with enough rights can leave it.
            self.descendants.kill();
        }
    }
}

/// The agent leads its process group. A group that is gone is not an error.
fn signal_group(agent: Pid, signal: Signal) {
    match killpg(agent, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => tracing::warn!(%agent, %signal, %error, "cannot signal the agent"),
    }
}
