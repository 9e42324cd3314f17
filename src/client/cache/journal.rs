//! One file of entries that several processes append to.
//!
//! Whoever writes holds the file's lock, which the kernel releases when a process ends, however it ends. The first entry is
//! a label that says what the file is; a file with another label, or with none, begins anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::frames::{self, Entries};

/// A file as far as this process knows it.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    label: Vec<u8>,
    file: Option<File>,
    /// Where the entries known to be whole end.
    end: u64,
}

impl Journal {
    pub(super) fn new(path: PathBuf, label: Vec<u8>) -> Self {
        Self { path, label, file: None, end: 0 }
    }

    /// Takes the lock, looks at what others wrote meanwhile, and cuts what is not whole.
    pub(super) fn lock(&mut self) -> io::Result<Locked<'_>> {
        let anew = self.open_and_lock()?;
        let mut locked = Locked { journal: self, fresh: Vec::new(), anew };
        locked.catch_up()?;
        Ok(locked)
    }

    /// Opens and locks the file that the path names now. Says whether it is another one than before.
    fn open_and_lock(&mut self) -> io::Result<bool> {
        let mut anew = false;
        loop {
            if let Some(file) = self.file.take() {
                file.lock()?;
                if is_at(&file, &self.path) {
                    self.file = Some(file);
                    return Ok(anew);
                }
            }
            // It was replaced or removed by somebody who had the lock.
            (anew, self.end) = (true, 0);
            self.file = Some(open(&self.path)?);
        }
    }
}

/// A journal while its lock is held.
pub(super) struct Locked<'a> {
    journal: &'a mut Journal,
    /// Entries that this process did not know, in order.
    pub(super) fresh: Vec<Bytes>,
    /// Whether what was known before is not in the file any more.
    pub(super) anew: bool,
}

impl Locked<'_> {
    /// Bytes in the file.
    pub(super) fn len(&self) -> u64 {
        self.journal.end
    }

    /// Adds entries. After a failure the file is as it was, or its tail is cut by whoever comes next.
    pub(super) fn append<'e>(&mut self, entries: impl IntoIterator<Item = &'e [u8]>) -> io::Result<()> {
        let mut bytes = Vec::new();
        entries.into_iter().for_each(|entry| frames::push(entry, &mut bytes));
        self.write(&bytes)
    }

    /// Every entry but the label, in order.
    pub(super) fn all(&mut self) -> io::Result<Vec<Bytes>> {
        let entries = Entries::new(self.read_from(0)?).skip(1).collect();
        Ok(entries)
    }

    /// Replaces the file by one with these entries. Who reads the old one sees all of it.
    pub(super) fn replace<'e>(&mut self, entries: impl IntoIterator<Item = &'e [u8]>) -> io::Result<()> {
        let mut bytes = Vec::new();
        frames::push(&self.journal.label, &mut bytes);
        entries.into_iter().for_each(|entry| frames::push(entry, &mut bytes));
        let path = self.journal.path.with_extension("new");
        // Nobody else is here: the lock is held. What a killed process left is in the way.
        let _ = fs::remove_file(&path);
        let mut file = open(&path)?;
        file.lock()?;
        let replaced = file.write_all(&bytes).and_then(|()| fs::rename(&path, &self.journal.path));
        if replaced.is_err() {
            let _ = fs::remove_file(&path);
        }
        replaced?;
        self.journal.file = Some(file);
        self.journal.end = bytes.len() as u64;
        Ok(())
    }

    /// Reads what is there from the last known end on.
    fn catch_up(&mut self) -> io::Result<()> {
        let length = self.file().metadata()?.len();
        if length < self.journal.end {
            // Cut behind our back.
            (self.journal.end, self.anew) = (0, true);
        }
        if length > self.journal.end {
            let mut entries = Entries::new(self.read_from(self.journal.end)?);
            if self.journal.end == 0 && entries.next().is_none_or(|label| label != self.journal.label) {
                entries.valid = 0;
            } else {
                self.fresh.extend(entries.by_ref());
            }
            self.journal.end += entries.valid;
        }
        if length > self.journal.end {
            tracing::debug!(path = %self.journal.path.display(), bytes = length - self.journal.end, "a damaged tail is cut");
            self.file().set_len(self.journal.end)?;
        }
        if self.journal.end == 0 {
            let mut label = Vec::new();
            frames::push(&self.journal.label, &mut label);
            self.write(&label)?;
        }
        Ok(())
    }

    fn read_from(&mut self, from: u64) -> io::Result<Bytes> {
        let mut bytes = Vec::new();
        let mut file = self.file();
        file.seek(SeekFrom::Start(from))?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes.into())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.journal.end;
        let mut file = self.file();
        file.seek(SeekFrom::Start(end))?;
        if let Err(error) = file.write_all(bytes) {
            // A disk that is full has taken a part.
            let _ = file.set_len(end);
            return Err(error);
        }
        self.journal.end += bytes.len() as u64;
        Ok(())
    }

    fn file(&self) -> &File {
        self.journal.file.as_ref().expect("a locked journal has a file")
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Some(file) = &self.journal.file {
            let _ = file.unlock();
        }
    }
}

/// The entries of a file but its label, without waiting for anybody. A file with another label has none.
pub(super) fn read(path: &Path, label: &[u8]) -> Vec<Bytes> {
    let Ok(bytes) = fs::read(path) else { return Vec::new() };
    let mut entries = Entries::new(bytes.into());
    if entries.next().is_none_or(|found| found != label) {
        return Vec::new();
    }
    entries.collect()
}

/// Opens a file, makes it when it is not there: readable by its owner only.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Whether the path still names this file.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let of = |data: fs::Metadata| (data.dev(), data.ino());
        file.metadata().map(of).is_ok_and(|ours| fs::metadata(path).map(of).is_ok_and(|theirs| ours == theirs))
    }
    #[cfg(not(unix))]
    {
        // A file that is open is not replaced there.
        file.metadata().is_ok() && path.exists()
    }
}
