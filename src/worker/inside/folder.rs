//! Where sockets lie: in a folder of this worker alone whose path is short enough for a socket's address.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use ado_proto::session::Assignment;

use crate::worker::removal;

/// Longest path of a socket, bytes: `sun_path` has 108 on Linux and 104 elsewhere, one of them for the end.
const LONGEST: usize = if cfg!(target_os = "linux") { 107 } else { 103 };
/// Longest name of a socket: ten characters of the task, a dot, the epoch.
const LONGEST_NAME: usize = 10 + 1 + 20;
/// Below the worker's directory: the sockets, or a file that says where they are.
const FOLDER: &str = "sockets";
const ELSEWHERE: &str = "elsewhere";
/// Beginning of a folder's name where the worker's own directory does not do.
const PREFIX: &str = "ado-";

/// The folder of a worker's sockets.
#[derive(Debug, Clone)]
pub struct Sockets(PathBuf);

impl Sockets {
    /// The folder, empty: what an earlier worker of the directory left is removed. `random` names a folder elsewhere, below
    /// one of `shorter`, when the directory's path is too long or its file system has no sockets.
    ///
    /// # Errors
    /// When sockets can be made nowhere.
    pub fn prepare(dir: &Path, shorter: &[PathBuf], random: u64) -> io::Result<Self> {
        let own = dir.join(FOLDER);
        make(&own)?;
        if let Ok(known) = fs::read(own.join(ELSEWHERE)) {
            remove_if_ours(Path::new(OsStr::from_bytes(&known)));
        }
        removal::remove(&own)?;
        make(&own)?;
        if takes_sockets(&own) {
            return Ok(Self(own));
        }
        for parent in shorter {
            let folder = parent.join(format!("{PREFIX}{random:016x}"));
            // The note first: a folder nobody knows of would stay for ever.
            fs::write(own.join(ELSEWHERE), folder.as_os_str().as_bytes())?;
            if DirBuilder::new().mode(0o700).create(&folder).is_ok() {
                if takes_sockets(&folder) {
                    return Ok(Self(folder));
                }
                fs::remove_dir(&folder)?;
            }
        }
        Err(io::Error::other(format!("`{}` is too long a path for sockets, and nowhere else is better", own.display())))
    }

    /// The path of an attempt's socket.
    pub(in crate::worker) fn path(&self, assignment: &Assignment) -> PathBuf {
        let task = assignment.task.short();
        let task = task.strip_prefix("task-").unwrap_or(&task);
        self.0.join(format!("{task}.{}", assignment.epoch))
    }

    /// The worker leaves: a folder elsewhere goes.
    pub(in crate::worker) fn remove(&self, dir: &Path) {
        if !self.0.starts_with(dir) {
            remove_if_ours(&self.0);
            let _ = fs::remove_file(dir.join(FOLDER).join(ELSEWHERE));
        }
    }
}

fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Whether sockets of every name can be made in a folder.
fn takes_sockets(folder: &Path) -> bool {
    let probe = folder.join("x".repeat(LONGEST_NAME));
    let made = probe.as_os_str().len() <= LONGEST && UnixListener::bind(&probe).is_ok();
    let _ = fs::remove_file(probe);
    made
}

/// Removes a folder of sockets, if it is what we would have made.
fn remove_if_ours(folder: &Path) {
    let named = folder.file_name().is_some_and(|name| name.as_bytes().starts_with(PREFIX.as_bytes()));
    let Ok(found) = fs::symlink_metadata(folder) else { return };
    if named && found.is_dir() && found.uid() == nix::unistd::geteuid().as_raw() {
        let _ = fs::remove_dir_all(folder);
    }
}

/// A folder with a link named `ado` to `executable`, for the end of agents' `PATH`.
pub(in crate::worker) fn link_to(executable: &Path, dir: &Path) -> io::Result<PathBuf> {
    let folder = dir.join("bin");
    make(&folder)?;
    let link = folder.join("ado");
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => symlink(executable, link)?,
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_short_directory_holds_its_own_sockets_and_nothing_old() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = Sockets::prepare(dir.path(), &[], 1).unwrap();
        assert_eq!(sockets.0, dir.path().join("sockets"));
        assert_eq!(mode(&sockets.0), 0o700);
        let left = UnixListener::bind(sockets.0.join("left")).unwrap();
        Sockets::prepare(dir.path(), &[], 2).unwrap();
        assert_eq!(fs::read_dir(&sockets.0).unwrap().count(), 0);
        drop(left);
    }

    #[test]
    fn a_long_one_has_them_elsewhere_and_its_successor_cleans_up() {
        let (dir, short) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let long = dir.path().join("x".repeat(100));
        let parents = ["/no/such/place".into(), short.path().to_owned()];
        let first = Sockets::prepare(&long, &parents, 1).unwrap();
        assert_eq!((first.0.parent().unwrap(), mode(&first.0)), (short.path(), 0o700));
        let listener = UnixListener::bind(first.0.join("left")).unwrap();
        // Killed: the next one removes it.
        let second = Sockets::prepare(&long, &parents, 2).unwrap();
        assert!(!first.0.exists() && second.0.exists());
        second.remove(&long);
        assert_eq!(fs::read_dir(short.path()).unwrap().count(), 0);
        assert!(Sockets::prepare(&long, &parents[..1], 3).is_err());
        drop(listener);
    }

    #[test]
    fn a_note_that_was_tampered_with_removes_nothing_of_others() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let precious = other.path().join("precious");
        fs::create_dir(&precious).unwrap();
        let link = other.path().join("ado-link");
        symlink(&precious, &link).unwrap();
        for named in [&precious, &link] {
            make(&dir.path().join(FOLDER)).unwrap();
            fs::write(dir.path().join(FOLDER).join(ELSEWHERE), named.as_os_str().as_bytes()).unwrap();
            Sockets::prepare(dir.path(), &[], 1).unwrap();
            assert!(precious.exists() && link.exists());
        }
    }

    #[test]
    fn the_link_follows_the_program() {
        let dir = tempfile::tempdir().unwrap();
        for program in ["/bin/old", "/bin/new"] {
            let folder = link_to(Path::new(program), dir.path()).unwrap();
            assert_eq!(fs::read_link(folder.join("ado")).unwrap(), Path::new(program));
        }
    }
}
