//! Small secret files: whole or absent, never half written, readable by their owner only.
//!
//! Must never know what is in them.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::{Error, secret};

/// The file's bytes; `None` when there is no such file. Says so in the log when others may read it.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(bytes) => {
            warn_if_open(path);
            Ok(Some(bytes))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Writes a file that only its owner may read, replacing what was there. After a crash the file is the old or the new one.
///
/// # Errors
/// [`Error::Io`].
pub fn replace(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = write_temporary(path, bytes)?;
    let result = fs::rename(&temporary.0, path).and_then(|()| sync_folder(path));
    result.map_err(Error::io("write", path))
}

/// Writes the file unless there is one. Returns what is there afterwards, which another process may have written.
pub(crate) fn create(path: &Path, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let temporary = write_temporary(path, bytes)?;
    // A link, unlike a rename, never replaces. Some file systems have no links: there two processes that start at the same
    // moment can race.
    let linked = match fs::hard_link(&temporary.0, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists && !path.exists() => fs::rename(&temporary.0, path),
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    };
    linked.and_then(|()| sync_folder(path)).map_err(Error::io("create", path))?;
    fs::read(path).map_err(Error::io("read", path))
}

/// Makes the folder, closed to others when it is new.
///
/// # Errors
/// [`Error::Io`].
pub fn create_folder(path: &Path) -> Result<(), Error> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(Error::io("create", path))
}

/// One section of a PEM file (RFC 7468).
pub(crate) fn to_pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem + &format!("-----END {label}-----\n")
}

/// Removed when dropped, if it is still there.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn write_temporary(path: &Path, bytes: &[u8]) -> Result<Temporary, Error> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{:016x}", u64::from_le_bytes(secret::random())));
    let temporary = Temporary(path.with_file_name(name));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&temporary.0).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(Error::io("write", &temporary.0))?;
    Ok(temporary)
}

/// A new name is durable only when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) if cfg!(unix) => {
            File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?.sync_all()
        }
        _ => Ok(()),
    }
}

#[cfg(unix)]
fn warn_if_open(path: &Path) {
    use std::os::unix::fs::MetadataExt;
    if let Ok(metadata) = fs::metadata(path)
        && metadata.mode() & 0o077 != 0
    {
        tracing::warn!(path = %path.display(), "others may read this key file: chmod 600 it");
    }
}

#[cfg(not(unix))]
fn warn_if_open(_path: &Path) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_created_file_is_kept_and_a_replaced_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert_eq!(read(&path).unwrap(), None);
        assert_eq!(create(&path, b"first").unwrap(), b"first");
        assert_eq!(create(&path, b"second").unwrap(), b"first");
        replace(&path, b"third").unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), b"third");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn of_many_creators_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let seen: Vec<_> = std::thread::scope(|scope| {
            let path = &path;
            let threads: Vec<_> = (0..8u8).map(|i| scope.spawn(move || create(path, &[i; 100]).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(seen.iter().all(|bytes| *bytes == seen[0] && bytes.len() == 100));
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/folder");
        create_folder(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        for write in [|path: &Path| replace(path, b"x"), |path: &Path| create(path, b"x").map(drop)] {
            let path = folder.join("file");
            write(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/file");
        let error = replace(&path, b"x").unwrap_err();
        assert!(error.to_string().starts_with("cannot write "), "{error}");
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
