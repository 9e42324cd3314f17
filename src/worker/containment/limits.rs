//! What an agent and all it starts may use. The limits are set on its control group of version 2 where that has the
//! controllers, else on groups of version 1 made for it. There is no other way: what a process may do to its own limits
//! is no limit, so nothing else is claimed to be one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use ado_proto::spec::{Resource, Resources};
use nix::errno::Errno;
use nix::poll::{PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup::{self, Cgroup};

/// In which the kernel counts processor time, microseconds.
const PERIOD: u64 = 100_000;
/// Least processor time of a period: the kernel takes no less.
const LEAST_QUOTA: u64 = 1000;
/// Rounds of killing what is in a group, and the wait between two.
const ROUNDS: usize = 100;
const ROUND_MS: u8 = 10;

/// Limits that hold.
#[derive(Debug, Default)]
pub(super) struct Limits {
    groups: Vec<Group>,
    memory: Option<Memory>,
}

/// A group of version 1: one kind of limit.
#[derive(Debug)]
struct Group {
    path: PathBuf,
    procs: File,
}

/// What tells that memory ran out.
#[derive(Debug)]
struct Memory {
    /// Has a line `oom_kill` and how often it happened.
    counter: PathBuf,
    /// The kernel's word that it is about to kill one process. Version 2 kills all of them by itself.
    notice: Option<EventFd>,
}

impl Limits {
    /// Sets what is asked for, on `group` where it has the controllers.
    ///
    /// # Errors
    /// In words: which limit cannot be had, and why.
    pub(super) fn set(asked: &Resources, group: Option<&Cgroup>) -> Result<Self, String> {
        let mut limits = Self::default();
        for (kind, amount) in asked.kinds() {
            let Some(amount) = amount else { continue };
            limits.set_one(kind, amount, group).map_err(|error| format!("cannot limit {}: {error}", kind.as_str()))?;
        }
        Ok(limits)
    }

    fn set_one(&mut self, kind: Resource, amount: u64, group: Option<&Cgroup>) -> io::Result<()> {
        let unified = group.map(Cgroup::path).filter(|path| path.join(file_of(kind)).exists());
        match unified {
            Some(path) => self.set_unified(kind, amount, path),
            None => self.set_old(kind, amount),
        }
    }

    fn set_unified(&mut self, kind: Resource, amount: u64, path: &Path) -> io::Result<()> {
        match kind {
            Resource::Cpu => fs::write(path.join("cpu.max"), format!("{} {PERIOD}", quota(amount))),
            Resource::Pids => fs::write(path.join("pids.max"), amount.to_string()),
            Resource::Memory => {
                fs::write(path.join("memory.max"), amount.to_string())?;
                optional(path.join("memory.swap.max"), "0")?;
                // What is left of a task that lost a process to this is of no use.
                optional(path.join("memory.oom.group"), "1")?;
                self.memory = Some(Memory { counter: path.join("memory.events"), notice: None });
                Ok(())
            }
        }
    }

    fn set_old(&mut self, kind: Resource, amount: u64) -> io::Result<()> {
        let controller = kind.as_str();
        let own = cgroup::own_old_group(controller)?;
        let path = own.join(cgroup::fresh_name());
        fs::create_dir(&path)?;
        let procs = OpenOptions::new().write(true).open(path.join("cgroup.procs"));
        // From here on its drop removes it.
        self.groups.push(Group { procs: procs.inspect_err(|_| drop(fs::remove_dir(&path)))?, path: path.clone() });
        match kind {
            Resource::Cpu => {
                fs::write(path.join("cpu.cfs_period_us"), PERIOD.to_string())?;
                fs::write(path.join("cpu.cfs_quota_us"), quota(amount).to_string())
            }
            Resource::Pids => fs::write(path.join("pids.max"), amount.to_string()),
            Resource::Memory => {
                fs::write(path.join("memory.limit_in_bytes"), amount.to_string())?;
                // With what is swapped out.
                optional(path.join("memory.memsw.limit_in_bytes"), &amount.to_string())?;
                let counter = path.join("memory.oom_control");
                self.memory = Some(Memory { notice: Some(notice(&path, &counter)?), counter });
                Ok(())
            }
        }
    }

    /// The files a process writes `0` into to be limited. It must do so before it can start others.
    pub(super) fn entrances(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.groups.iter().map(|group| group.procs.as_fd())
    }

    /// The groups that were made for this.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.groups.iter().map(|group| group.path.as_path())
    }

    /// Readable once memory has run out.
    pub(super) fn notice(&self) -> Option<BorrowedFd<'_>> {
        self.memory.as_ref()?.notice.as_ref().map(EventFd::as_fd)
    }

    /// Whether memory has run out, so that the kernel killed at least one process, or is about to.
    pub(super) fn ran_out(&self) -> bool {
        let Some(memory) = &self.memory else { return false };
        let noticed = memory.notice.as_ref().is_some_and(|notice| {
            // Back with it: whoever asks again is to be told again.
            notice.read().is_ok_and(|times| notice.write(times).is_ok())
        });
        noticed || fs::read_to_string(&memory.counter).is_ok_and(|text| kills(&text) > 0)
    }
}

/// The file by which a group of version 2 shows that it has a kind's controller.
fn file_of(kind: Resource) -> &'static str {
    match kind {
        Resource::Cpu => "cpu.max",
        Resource::Memory => "memory.max",
        Resource::Pids => "pids.max",
    }
}

/// Microseconds of a period, of thousandths of a processor.
fn quota(milli: u64) -> u64 {
    (milli.saturating_mul(PERIOD) / 1000).max(LEAST_QUOTA)
}

fn kills(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

/// Writes into a file that not every kernel has.
fn optional(path: PathBuf, text: &str) -> io::Result<()> {
    if path.exists() { fs::write(path, text) } else { Ok(()) }
}

/// Has the kernel say when memory runs out.
fn notice(group: &Path, counter: &Path) -> io::Result<EventFd> {
    let notice = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let counter = File::open(counter)?;
    let line = format!("{} {}", notice.as_raw_fd(), counter.as_raw_fd());
    OpenOptions::new().write(true).open(group.join("cgroup.event_control"))?.write_all(line.as_bytes())?;
    Ok(notice)
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.groups.iter().for_each(|group| empty_and_remove(&group.path));
    }
}

/// Kills what is in a group of version 1, and removes it and those below it. Bounded.
pub(super) fn empty_and_remove(path: &Path) {
    for _ in 0..ROUNDS {
        let mut empty = true;
        for pid in processes(path) {
            empty = false;
            match kill(pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => tracing::warn!(%pid, %error, "cannot kill"),
            }
        }
        if empty && (cgroup::remove(path) || !path.exists()) {
            return;
        }
        let _ = poll(&mut [], PollTimeout::from(ROUND_MS));
    }
    tracing::warn!(group = %path.display(), "cannot remove a control group");
}

/// Processes in a group and those below it.
fn processes(path: &Path) -> Vec<Pid> {
    let own = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<_> = own.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(processes(&entry.path()));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_as_the_kernel_takes_them() {
        assert_eq!([2000, 500, 1, 10].map(quota), [200_000, 50_000, 1000, 1000]);
        assert_eq!(kills("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 1\n"), 2);
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"), 0);
    }

    #[test]
    fn a_group_of_version_2_with_controllers_is_limited_itself() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["cpu.max", "memory.max", "memory.oom.group", "pids.max"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let mut limits = Limits::default();
        for (kind, amount) in [(Resource::Cpu, 1500), (Resource::Memory, 1 << 20), (Resource::Pids, 7)] {
            limits.set_unified(kind, amount, dir.path()).unwrap();
        }
        let text = |file| fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!((text("cpu.max"), text("pids.max")), ("150000 100000".into(), "7".into()));
        assert_eq!((text("memory.max"), text("memory.oom.group")), ("1048576".into(), "1".into()));
        assert!(!dir.path().join("memory.swap.max").exists(), "a kernel without swap");
        assert!(!limits.ran_out());
        fs::write(dir.path().join("memory.events"), "oom 1\noom_kill 1\n").unwrap();
        assert!(limits.ran_out());
    }
}
