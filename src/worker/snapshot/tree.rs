//! Walking through a folder: relative to open folders and never through a link, so that whoever changes it meanwhile leads
//! nowhere else.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use ado_proto::snapshot::{MAX_DEPTH, Meta};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};

use super::{Error, file_error};

/// How old a change must be to be told from the next one: file systems count time in ticks of some milliseconds.
const SETTLED_AFTER: i64 = 200_000;

/// Something in a folder.
pub(super) enum Seen<'a> {
    Folder(Meta),
    File {
        stat: Stat,
        /// `None`: it is gone, or no file any more.
        open: &'a dyn Fn() -> Result<Option<File>, Error>,
    },
    Link(Vec<u8>),
    /// A socket, a pipe, a device.
    Special,
}

/// By what a file is taken for unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    mode: u32,
    changed: (i64, i64),
    touched: (i64, i64),
}

impl Stat {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            mode: found.mode(),
            changed: (found.mtime(), found.mtime_nsec()),
            touched: (found.ctime(), found.ctime_nsec()),
        })
    }

    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_cast,
        reason = "types of these fields differ between systems"
    )]
    fn from(found: &FileStat) -> Self {
        Self {
            device: found.st_dev as u64,
            inode: found.st_ino as u64,
            size: u64::try_from(found.st_size).unwrap_or(0),
            mode: u32::from(found.st_mode),
            changed: (found.st_mtime as i64, found.st_mtime_nsec as i64),
            touched: (found.st_ctime as i64, found.st_ctime_nsec as i64),
        }
    }

    /// Whether another change, at `now` (microseconds) or later, would show.
    pub(super) fn is_settled(&self, now: i64) -> bool {
        let latest = self.changed.max(self.touched);
        latest.0.saturating_mul(1_000_000).saturating_add(latest.1 / 1000) < now.saturating_sub(SETTLED_AFTER)
    }

    /// One that no look will find again.
    pub(super) fn unsettled(self) -> Self {
        Self { touched: (i64::MAX, 0), ..self }
    }

    pub(super) fn meta(&self) -> Meta {
        Meta {
            mode: (self.mode & 0o7777) as u16,
            seconds: self.changed.0,
            nanos: u32::try_from(self.changed.1).unwrap_or(0).min(999_999_999),
        }
    }
}

/// Hears of something at a path.
type Visit<'a> = &'a mut dyn FnMut(&[u8], Seen<'_>) -> Result<(), Error>;

/// Visits all that is below a folder, folders before what is in them.
pub(super) fn walk(root: &Path, exclude: &BTreeSet<Vec<u8>>, visit: Visit<'_>) -> Result<(), Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = Dir::open(root, flags, Mode::empty())
        .map_err(|error| file_error("open", root.as_os_str().as_encoded_bytes(), error.into()))?;
    inside(dir, &mut Vec::new(), 1, exclude, visit)
}

fn inside(
    mut dir: Dir,
    path: &mut Vec<u8>,
    depth: usize,
    exclude: &BTreeSet<Vec<u8>>,
    visit: Visit<'_>,
) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::TooDeep(String::from_utf8_lossy(path).escape_debug().to_string()));
    }
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry.map_err(|error| file_error("list", path, error.into()))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    names.sort();
    let folder = path.len();
    for name in names {
        path.truncate(folder);
        if folder > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        if exclude.contains(path) {
            continue;
        }
        let name = name.as_c_str();
        let found = match fstatat(dir.as_fd(), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::ENOENT) => continue,
            Err(error) => return Err(file_error("look at", path, error.into())),
        };
        let stat = Stat::from(&found);
        let kind = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT;
        if kind == SFlag::S_IFDIR {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            match Dir::openat(dir.as_fd(), name, flags, Mode::empty()) {
                Ok(inner) => {
                    visit(path, Seen::Folder(stat.meta()))?;
                    inside(inner, path, depth + 1, exclude, visit)?;
                }
                // It is gone, or something else by now.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(error) => return Err(file_error("open", path, error.into())),
            }
        } else if kind == SFlag::S_IFREG {
            let open = || open(&dir, name, path);
            visit(path, Seen::File { stat, open: &open })?;
        } else if kind == SFlag::S_IFLNK {
            match readlinkat(dir.as_fd(), name) {
                Ok(target) => visit(path, Seen::Link(target.into_vec()))?,
                Err(Errno::ENOENT | Errno::EINVAL) => {}
                Err(error) => return Err(file_error("read", path, error.into())),
            }
        } else {
            visit(path, Seen::Special)?;
        }
    }
    path.truncate(folder);
    Ok(())
}

fn open(dir: &Dir, name: &std::ffi::CStr, path: &[u8]) -> Result<Option<File>, Error> {
    // A pipe that has taken the file's place is not waited for.
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    match openat(dir.as_fd(), name, flags, Mode::empty()) {
        Ok(file) => {
            let file = File::from(file);
            let found = file.metadata().map_err(|error| file_error("look at", path, error))?;
            Ok(found.is_file().then_some(file))
        }
        Err(Errno::ENOENT | Errno::ELOOP | Errno::ENXIO) => Ok(None),
        Err(error) => Err(file_error("open", path, error.into())),
    }
}
