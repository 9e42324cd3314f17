//! Control groups: where they are, and those of version 2. Freezing and killing need no controller: `cgroup.freeze` and
//! `cgroup.kill` belong to the core. Limits do; see [`super::limits`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::worker::guard::BootTime;

/// What our groups' names begin with.
const PREFIX: &str = "ado-";
/// Limits need these.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The group a worker lies in beside those of its agents: the kernel gives controllers only to groups below one that has
/// no process itself. Made by systemd (`DelegateSubgroup=`) or by the worker.
const LEAF: &str = "ado-worker";
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
    /// Makes a group below this process's own, or beside it.
    pub(super) fn create() -> io::Result<Self> {
        let home = home(own_group()?);
        // Moving a process into a child needs the right to write here.
        OpenOptions::new().write(true).open(home.join("cgroup.procs"))?;
        let path = home.join(fresh_name());
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

/// Makes room for groups with controllers: a process that is alone in its group goes into one below.
pub(super) fn step_aside() {
    let aside = || {
        let own = own_group()?;
        enable(&own);
        let alone = fs::read_to_string(own.join("cgroup.procs"))?.trim() == std::process::id().to_string();
        let offered = !fs::read_to_string(own.join("cgroup.controllers"))?.trim().is_empty();
        if own.ends_with(LEAF) || has_controllers(&own) || !alone || !offered {
            return Ok(());
        }
        let leaf = own.join(LEAF);
        if !leaf.exists() {
            fs::create_dir(&leaf)?;
        }
        fs::write(leaf.join("cgroup.procs"), "0")
    };
    let result: io::Result<()> = aside();
    if let Err(error) = result {
        tracing::debug!(%error, "stays in its control group");
    }
}

/// Where the groups of agents are made: in this process's own, or beside it where it lies in [`LEAF`].
fn home(own: PathBuf) -> PathBuf {
    enable(&own);
    match own.parent().filter(|_| own.ends_with(LEAF) && !has_controllers(&own)) {
        Some(parent) if parent.join("cgroup.procs").exists() => {
            enable(parent);
            parent.to_owned()
        }
        _ => own,
    }
}

/// Gives groups below this one the controllers that it has, as far as the kernel lets it.
fn enable(group: &Path) {
    let words = |file| fs::read_to_string(group.join(file)).unwrap_or_default();
    let (has, gives) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    let is_in = |name: &str, text: &str| text.split_whitespace().any(|word| word == name);
    for name in CONTROLLERS.into_iter().filter(|name| is_in(name, &has) && !is_in(name, &gives)) {
        if let Err(error) = fs::write(group.join("cgroup.subtree_control"), format!("+{name}")) {
            tracing::debug!(group = %group.display(), name, %error, "no controller for agents");
        }
    }
}

fn has_controllers(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.subtree_control")).is_ok_and(|text| !text.trim().is_empty())
}

/// A name no other group has.
pub(super) fn fresh_name() -> String {
    format!("{PREFIX}{}-{:x}", std::process::id(), BootTime::now().0)
}

/// Removes empty groups whose guards were killed before they could note what they had made.
pub(super) fn sweep() {
    let old = CONTROLLERS.iter().map(|controller| own_old_group(controller));
    for folder in old.chain([own_group().map(home)]).flatten() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let maker =
                name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
            if maker.is_some_and(|maker| !Path::new(&format!("/proc/{maker}")).exists()) {
                // The kernel keeps those that hold somebody: whose they are is not known.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

/// See [`super::remove_leftovers`].
pub(super) fn remove_leftover(path: &Path) {
    let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if !ours || !path.join("cgroup.procs").exists() {
        return;
    }
    if !path.join("cgroup.kill").exists() {
        return super::limits::empty_and_remove(path);
    }
    let _ = fs::write(path.join("cgroup.kill"), "1");
    wait_for(path, "populated 0");
    remove(path);
}

/// Removes a group and those the agent made below it. Whether it is gone.
pub(super) fn remove(path: &Path) -> bool {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let removed = fs::remove_dir(path);
    if let Err(error) = &removed {
        tracing::debug!(group = %path.display(), %error, "cannot remove");
    }
    removed.is_ok()
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

/// The directory of this process's own group of version 1 that has a controller.
pub(super) fn own_old_group(controller: &str) -> io::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    locate_old(&mounts, &groups, controller)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no control group here has the controller for it"))
}

/// Where `/proc/self/mountinfo` and `/proc/self/cgroup` say it is.
fn locate(mounts: &str, groups: &str) -> Option<PathBuf> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounted(mounts, own, |filesystem, _| filesystem == "cgroup2")
}

/// The same for version 1.
fn locate_old(mounts: &str, groups: &str, controller: &str) -> Option<PathBuf> {
    let among = |list: &str| list.split(',').any(|name| name == controller);
    let own = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        fields.next().filter(|controllers| among(controllers))?;
        fields.next()
    })?;
    mounted(mounts, own, |filesystem, options| filesystem == "cgroup" && among(options))
}

/// Where a group is to be found below a mount that fits, by its kind of file system and its options.
fn mounted(mounts: &str, own: &str, fits: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut words = filesystem.split(' ');
        if !fits(words.next()?, words.nth(1).unwrap_or_default()) {
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

    #[test]
    fn a_group_of_version_1_is_found_by_its_controller() {
        let find = |groups: &str, controller: &str| {
            locate_old(MIXED, groups, controller).map(|path| path.display().to_string())
        };
        assert_eq!(find("9:cpu,cpuacct:/x\n0::/a\n", "cpu").as_deref(), Some("/sys/fs/cgroup/cpu/x"));
        assert_eq!(find("9:cpuacct:/x\n0::/a\n", "cpu"), None, "a name that only begins so");
        assert_eq!(find("8:memory:/x\n9:cpu:/\n", "memory"), None, "it is mounted nowhere");
    }

    #[test]
    fn controllers_are_given_to_groups_below_a_leaf_of_our_own() {
        let dir = tempfile::tempdir().unwrap();
        let unit = dir.path().join("unit");
        let leaf = unit.join(LEAF);
        fs::create_dir_all(&leaf).unwrap();
        let file = |group: &Path, name: &str, text: &str| fs::write(group.join(name), text).unwrap();
        for group in [&unit, &leaf] {
            file(group, "cgroup.procs", "");
            file(group, "cgroup.controllers", "cpuset cpu memory\n");
            file(group, "cgroup.subtree_control", "");
        }
        // The kernel lets a leaf give nothing away: it has processes.
        fs::remove_file(leaf.join("cgroup.controllers")).unwrap();
        assert_eq!(home(leaf), unit);
        assert_eq!(fs::read_to_string(unit.join("cgroup.subtree_control")).unwrap(), "+memory", "the last one written");
        assert_eq!(home(unit.clone()), unit);
    }
}
