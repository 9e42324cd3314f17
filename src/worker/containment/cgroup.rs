//! Control groups of version 2. No controller is needed: `cgroup.freeze` and `cgroup.kill` belong to the core.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::worker::guard::BootTime;

/// What our groups' names begin with.
const PREFIX: &str = "ado-";
/// Waits of at most 50 ms until the kernel says that a group is frozen or empty. One in an uninterruptible wait takes
/// longer; it is frozen as soon as it could do anything.
const WAITS: usize = 20;
const WAIT_MS: u8 = 50;

/// A group of our own, removed when dropped.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    dir: File,
    procs: File,
}

impl Cgroup {
    /// Makes a group below this process's own.
    pub(super) fn create() -> io::Result<Self> {
        let own = own_group()?;
        // Moving a process into a child needs the right to write here.
        OpenOptions::new().write(true).open(own.join("cgroup.procs"))?;
        let path = own.join(format!("{PREFIX}{}-{:x}", std::process::id(), BootTime::now().0));
        fs::create_dir(&path)?;
        let write = |name| OpenOptions::new().write(true).open(path.join(name));
        let opened = || {
            write("cgroup.kill")?;
            write("cgroup.freeze")?;
            io::Result::Ok((File::open(&path)?, write("cgroup.procs")?))
        };
        match opened() {
            Ok((dir, procs)) => Ok(Self { dir, procs, path }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn entrance(&self) -> BorrowedFd<'_> {
        self.procs.as_fd()
    }

    /// Freezes or thaws; freezing waits until it is done.
    pub(super) fn freeze(&self, on: bool) {
        if let Err(error) = fs::write(self.path.join("cgroup.freeze"), if on { "1" } else { "0" }) {
            tracing::warn!(group = %self.path.display(), %error, "cannot freeze or thaw");
        }
        if on {
            wait_for(&self.path, "frozen 1");
        }
    }

    pub(super) fn kill(&self) {
        if let Err(error) = fs::write(self.path.join("cgroup.kill"), "1") {
            tracing::warn!(group = %self.path.display(), %error, "cannot kill");
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Whoever else came into the group.
        self.kill();
        wait_for(&self.path, "populated 0");
        remove(&self.path);
    }
}

/// See [`super::remove_leftovers`].
pub(super) fn remove_leftover(path: &Path) {
    let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if !ours || !path.join("cgroup.kill").exists() {
        return;
    }
    let _ = fs::write(path.join("cgroup.kill"), "1");
    wait_for(path, "populated 0");
    remove(path);
}

/// Removes a group and those the agent made below it.
fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    if let Err(error) = fs::remove_dir(path) {
        tracing::debug!(group = %path.display(), %error, "cannot remove");
    }
}

/// Waits, bounded, until `cgroup.events` has this line. The kernel signals its changes.
fn wait_for(path: &Path, line: &str) {
    let Ok(events) = File::open(path.join("cgroup.events")) else { return };
    for _ in 0..WAITS {
        // Reading is what arms the signal, so it comes first, and through the same open file.
        let mut text = [0; 128];
        let Ok(length) = events.read_at(&mut text, 0) else { return };
        if String::from_utf8_lossy(&text[..length]).lines().any(|found| found == line) {
            return;
        }
        let _ = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], PollTimeout::from(WAIT_MS));
    }
}

/// The directory of this process's own group of version 2.
fn own_group() -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    locate(&mounts, &groups).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no cgroup2 mount holds us"))
}

/// Where `/proc/self/mountinfo` and `/proc/self/cgroup` say it is.
fn locate(mounts: &str, groups: &str) -> Option<PathBuf> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        if filesystem.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
        // A mount may show a part of the tree only.
        let below = Path::new(own).strip_prefix(&root).ok()?;
        Some(Path::new(&point).join(below))
    })
}

/// Blanks and backslashes are written in octal there.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_own_group_is_found() {
        let find = |mounts: &str, groups: &str| locate(mounts, groups).map(|path| path.display().to_string());
        assert_eq!(find(MIXED, "9:cpu:/\n0::/a/b\n").as_deref(), Some("/sys/fs/cgroup/unified/a/b"));
        let bound = "41 31 0:38 /pod /mnt/c\\040g rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find(bound, "0::/pod/x\n").as_deref(), Some("/mnt/c g/x"));
        assert_eq!(find(bound, "0::/other\n"), None, "outside of what the mount shows");
        assert_eq!(find("", "0::/\n"), None);
        assert_eq!(find(MIXED, "9:cpu:/\n"), None);
    }
}
