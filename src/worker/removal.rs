//! Removing what agents leave in their directories, whatever they did to it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Removes a directory and all that is in it, if it is there. Nobody may be working in it any more.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => by_force(dir),
    }
}

/// Also where directories are read-only (package caches are), and nested deeper than paths are long or files may be open:
/// directories within directories are moved up before they are emptied.
fn by_force(dir: &Path) -> io::Result<()> {
    let mut names = (0u64..).map(|number| dir.join(format!("{number}")));
    open_up(dir)?;
    loop {
        let inner = empty_of_files(dir)?;
        if inner.is_empty() {
            return fs::remove_dir(dir);
        }
        for inner in inner {
            open_up(&inner)?;
            for innermost in empty_of_files(&inner)? {
                // To be moved it must be writable itself: its entry `..` changes.
                open_up(&innermost)?;
                let free = names.by_ref().find(|name| fs::symlink_metadata(name).is_err());
                fs::rename(&innermost, free.expect("numbers do not end"))?;
            }
            fs::remove_dir(&inner)?;
        }
    }
}

/// Removes what is no directory; returns the directories.
fn empty_of_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            directories.push(entry.path());
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(directories)
}

fn open_up(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, Permissions::from_mode(0o700))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    const NOBODY: u32 = 65_534;

    /// Does something with the rights of an ordinary user on files: root may remove anything.
    fn as_nobody(work: impl FnOnce(&Path) + Send + 'static) {
        let dir = tempfile::tempdir().unwrap();
        if nix::unistd::geteuid().is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let path = dir.path().to_owned();
        let thread = std::thread::spawn(move || {
            #[cfg(target_os = "linux")]
            if nix::unistd::geteuid().is_root() {
                // Of this thread only.
                nix::unistd::setfsuid(nix::unistd::Uid::from_raw(NOBODY));
            }
            work(&path);
        });
        thread.join().unwrap();
    }

    #[test]
    fn read_only_folders_go_and_what_links_point_to_stays() {
        as_nobody(|dir| {
            let (task, other) = (dir.join("task"), dir.join("other"));
            for path in [task.join("cache/pkg/deep"), task.join("0/1"), other.clone()] {
                fs::create_dir_all(path).unwrap();
            }
            for file in [task.join("cache/pkg/deep/file"), task.join("0/1/2"), other.join("precious")] {
                fs::write(file, "x").unwrap();
            }
            symlink(&other, task.join("cache/link")).unwrap();
            symlink("/no/such/file", task.join("cache/dangling")).unwrap();
            for locked in ["cache/pkg/deep", "cache/pkg", "cache", "0/1", "0", ""] {
                fs::set_permissions(task.join(locked), Permissions::from_mode(0o500)).unwrap();
            }
            fs::set_permissions(&other, Permissions::from_mode(0o500)).unwrap();
            #[cfg(target_os = "linux")]
            assert!(fs::remove_dir_all(&task).is_err(), "else this test shows nothing");
            remove(&task).unwrap();
            assert!(!task.exists() && other.join("precious").exists());
            assert_eq!(fs::metadata(&other).unwrap().permissions().mode() & 0o777, 0o500);
            remove(&task).unwrap();
        });
    }

    #[test]
    fn no_depth_is_too_deep() {
        let dir = tempfile::tempdir().unwrap();
        let task = dir.path().join("task");
        // A path of 1,500 levels, put below another of as many: longer than any path may be.
        let long: PathBuf = std::iter::repeat_n("d", 1_500).collect();
        let (upper, lower) = (task.join(&long), dir.path().join("lower"));
        fs::create_dir_all(&upper).unwrap();
        fs::create_dir_all(lower.join(&long)).unwrap();
        fs::rename(&lower, upper.join("lower")).unwrap();
        by_force(&task).unwrap();
        assert!(!task.exists());
    }
}
