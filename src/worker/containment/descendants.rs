//! Everything below this process in the tree of processes. Orphans come back to it (it is their subreaper), so nothing
//! leaves the tree while it lives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use nix::poll::{PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgrp, getpid};

/// Walks until a freeze is given up. Each takes about a millisecond; an uninterruptible process may need longer.
const WALKS: usize = 500;

#[derive(Debug)]
pub(super) struct Descendants {
    root: Pid,
    /// Processes the agent itself had stopped before we stopped everything.
    stopped_before: BTreeSet<Identity>,
}

/// A process id and its start: ids are used again.
type Identity = (i32, u64);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    state: char,
    start: u64,
}

impl Process {
    fn identity(&self) -> Identity {
        (self.pid, self.start)
    }

    fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    /// Dead, but not reaped.
    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

impl Descendants {
    pub(super) fn of_this_process() -> Self {
        Self { root: getpid(), stopped_before: BTreeSet::new() }
    }

    /// Stops everything. Done when a walk finds nobody running: nobody was left to start others.
    pub(super) fn stop(&mut self) {
        let mut first = true;
        for _ in 0..WALKS {
            let all = self.walk();
            if first {
                self.stopped_before =
                    all.iter().filter(|process| process.is_stopped()).map(Process::identity).collect();
                first = false;
            }
            let running: Vec<_> = all.into_iter().filter(|process| !process.is_stopped()).collect();
            if running.is_empty() {
                return;
            }
            signal(&running, Signal::SIGSTOP);
            let _ = poll(&mut [], PollTimeout::from(1u8));
        }
        tracing::warn!("some of the agent's processes do not stop");
    }

    /// Lets go on what [`Descendants::stop`] stopped.
    pub(super) fn go_on(&mut self) {
        let before = std::mem::take(&mut self.stopped_before);
        for process in self.walk() {
            if !before.contains(&process.identity()) {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGCONT);
            }
        }
    }

    /// Kills everything there is now.
    pub(super) fn kill(&mut self) {
        signal(&self.walk(), Signal::SIGKILL);
    }

    /// All living descendants.
    fn walk(&self) -> Vec<Process> {
        below(self.root.as_raw(), processes())
    }
}

/// Signals whole groups first: for a group the kernel does it at once, so that nobody in it can start another meanwhile.
/// Descendants' groups hold descendants only: the agent begins a session of its own, and groups do not cross sessions.
fn signal(processes: &[Process], signal: Signal) {
    let own = getpgrp().as_raw();
    let groups: BTreeSet<i32> = processes.iter().map(|process| process.group).filter(|group| *group != own).collect();
    for group in groups.into_iter().filter(|group| *group > 1) {
        let _ = killpg(Pid::from_raw(group), signal);
    }
    for process in processes {
        let _ = kill(Pid::from_raw(process.pid), signal);
    }
}

/// See [`super::remove_leftovers`]. Orphans of a dead guard are nobody's descendants; what they inherited is all that
/// tells whose they were.
pub(super) fn kill_marked(marks: &[String]) {
    for _ in 0..WALKS {
        let found: Vec<_> =
            processes().into_iter().filter(|found| !found.is_dead() && is_marked(found, marks)).collect();
        if found.is_empty() {
            return;
        }
        for process in found {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        let _ = poll(&mut [], PollTimeout::from(1u8));
    }
}

/// Only processes of our own user show their environment.
fn is_marked(process: &Process, marks: &[String]) -> bool {
    let environment = fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
    marks.iter().all(|mark| environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()))
}

/// Those of `all` that descend from `root` and live.
fn below(root: i32, all: Vec<Process>) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut next = vec![root];
    while let Some(parent) = next.pop() {
        for process in children.remove(&parent).unwrap_or_default() {
            next.push(process.pid);
            if !process.is_dead() {
                found.push(process);
            }
        }
    }
    found
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit))
        .filter_map(|entry| look(&entry.path()))
        .collect()
}

/// The parent of a process; `None` when it is gone.
pub(in crate::worker) fn parent(pid: i32) -> Option<i32> {
    look(Path::new(&format!("/proc/{pid}"))).map(|process| process.parent)
}

fn look(entry: &Path) -> Option<Process> {
    parse(&String::from_utf8_lossy(&fs::read(entry.join("stat")).ok()?))
}

/// Reads a line of `/proc/<pid>/stat` (proc_pid_stat(5)). The name in brackets may hold anything, brackets too.
fn parse(stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(") ")?;
    let pid = head.split_once(' ')?.0.parse().ok()?;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    Some(Process {
        pid,
        state: fields.first()?.chars().next()?,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, state: char) -> Process {
        Process { pid, parent, group: pid, state, start: 0 }
    }

    #[test]
    fn descendants_are_found_through_the_dead() {
        let all = vec![
            process(1, 0, 'S'),
            process(10, 1, 'S'),
            process(11, 10, 'Z'),
            process(12, 11, 'R'),
            process(13, 12, 'T'),
            process(20, 1, 'S'),
        ];
        let mut found: Vec<_> = below(10, all).into_iter().map(|process| process.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [12, 13]);
    }

    #[test]
    fn a_name_may_hold_anything() {
        let stat = "42 (a) R 1 (b) S 7 43 43 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 9876 1000 10";
        assert_eq!(parse(stat), Some(Process { pid: 42, parent: 7, group: 43, state: 'S', start: 9876 }));
        assert_eq!(parse("42 (a"), None);
        let own = processes().into_iter().find(|process| process.pid == getpid().as_raw()).unwrap();
        assert_eq!(own.group, getpgrp().as_raw());
    }
}
