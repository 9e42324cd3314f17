//! Locks on files: who holds one lives.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a lock is tried again.
const TRY_EVERY: Duration = Duration::from_millis(10);
/// How often an owner tries before the lock counts as taken: somebody who only looks holds it for microseconds.
const OWNER_TRIES: u32 = 20;

/// How often an owner looks whether its lock is still where others look for it.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// A lock of this process, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock and writes this process's id into the file. `None` when another process holds it.
    ///
    /// # Errors
    /// When the file cannot be made or locked.
    pub async fn own(path: &Path) -> io::Result<Option<Self>> {
        for _ in 0..OWNER_TRIES {
            if let Some(mut lock) = Self::now(path)? {
                lock.file.set_len(0)?;
                writeln!(lock.file, "{}", std::process::id())?;
                return Ok(Some(lock));
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
        Ok(None)
    }

    /// Takes the lock when it is free, at most `patience` from now. `None` when it never was.
    ///
    /// # Errors
    /// When the file cannot be made or locked.
    pub async fn wait(path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let until = tokio::time::Instant::now() + patience;
        loop {
            if let Some(lock) = Self::now(path)? {
                return Ok(Some(lock));
            }
            if tokio::time::Instant::now() >= until {
                return Ok(None);
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
    }

    /// Takes the lock if it is free.
    ///
    /// # Errors
    /// When the file cannot be made or locked.
    pub fn now(path: &Path) -> io::Result<Option<Self>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { file, path: path.to_path_buf() })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Resolves once its file is no longer at its path: the directory was removed, and nobody finds this process there.
    /// Cancel safe.
    pub async fn displaced(&self) {
        while self.is_in_place() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn is_in_place(&self) -> bool {
        let place = |metadata: &std::fs::Metadata| (metadata.dev(), metadata.ino());
        match (std::fs::metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(own)) => place(&there) == place(&own),
            (Err(error), _) => error.kind() != io::ErrorKind::NotFound,
            // Who cannot look does not know.
            (Ok(_), Err(_)) => true,
        }
    }
}

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Nobody: its process is not there.
    Nobody,
    /// This process.
    Process(u32),
    /// Somebody who has not yet said who.
    Unnamed,
}

/// Looks who holds the lock at `path`. Cheap.
pub fn holder(path: &Path) -> Holder {
    let Ok(mut file) = File::open(path) else { return Holder::Nobody };
    // Shared: two who look at once do not see each other.
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {}
        Ok(()) | Err(TryLockError::Error(_)) => return Holder::Nobody,
    }
    let mut text = String::new();
    match file.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok()) {
        Some(pid) => Holder::Process(pid),
        None => Holder::Unnamed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lock_names_its_holder_while_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        assert_eq!(holder(&path), Holder::Nobody);
        let lock = Lock::own(&path).await.unwrap().unwrap();
        assert_eq!(holder(&path), Holder::Process(std::process::id()));
        assert!(Lock::own(&path).await.unwrap().is_none());
        assert!(Lock::wait(&path, Duration::from_millis(30)).await.unwrap().is_none());
        drop(lock);
        assert_eq!(holder(&path), Holder::Nobody);
        assert!(Lock::own(&path).await.unwrap().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn an_owner_learns_that_its_directory_was_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let lock = Lock::own(&path).await.unwrap().unwrap();
        assert!(tokio::time::timeout(LOOK_EVERY * 3, lock.displaced()).await.is_err(), "it is there");
        std::fs::remove_file(&path).unwrap();
        lock.displaced().await;
        let _next = Lock::own(&path).await.unwrap().unwrap();
        lock.displaced().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_owner_replaces_the_name_of_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        std::fs::write(&path, "4294967290 and more\n").unwrap();
        let _lock = Lock::own(&path).await.unwrap().unwrap();
        assert_eq!(holder(&path), Holder::Process(std::process::id()));
    }
}
