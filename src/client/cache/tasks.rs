//! The newest that was seen of every task.
//!
//! Entries are JSON, compressed: they survive an update of ado that knows more about a task, or less.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use ado_proto::request::TaskInfo;
use ado_proto::{TaskId, Timestamp};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::frames::MAX_ENTRY;
use super::journal::{self, Journal};
use super::{MAX_TASKS, Place};

const LABEL: &[u8] = b"ado tasks 1";
/// Most tasks of one entry: of the largest tasks there are, they still fit one.
const CHUNK: usize = 16;
/// What has not changed is written again only when what is written is older than this: its age is shown in minutes.
const FRESH_FOR: Duration = Duration::from_secs(20);
/// Most bytes of a checkpoint's data that are kept: it is shown, and nothing goes on from it.
const MAX_DATA: usize = 4 * 1024;
/// A file below this size is not worth being made smaller.
const SMALL: u64 = 256 * 1024;
/// Most bytes of the file, as stored.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// A task as it was seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownTask {
    /// When, on this machine's clock.
    pub seen_at: Timestamp,
    /// What was seen.
    pub info: TaskInfo,
}

/// What is known of every task.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table(BTreeMap<TaskId, KnownTask>);

impl Table {
    /// Reads the file, without waiting for anybody.
    pub(super) fn read(path: &Path) -> Self {
        let mut table = Self::default();
        journal::read(path, LABEL).iter().for_each(|entry| table.take(entry));
        table.trim();
        table
    }

    /// Newest first.
    pub(super) fn into_newest_first(self) -> Vec<KnownTask> {
        self.0.into_values().rev().collect()
    }

    /// Those of `seen` that say something new.
    fn news(&self, seen: Vec<KnownTask>) -> Vec<KnownTask> {
        let is_new = |task: &KnownTask| match self.0.get(&task.info.id) {
            Some(known) if known.info == task.info => task.seen_at.since(known.seen_at) >= FRESH_FOR,
            Some(known) => task.seen_at >= known.seen_at,
            None => true,
        };
        seen.into_iter().filter(is_new).collect()
    }

    fn take(&mut self, entry: &Bytes) {
        for task in decode(entry) {
            self.put(task);
        }
    }

    /// Who writes has seen all that was written before: what comes later in the file is newer.
    fn put(&mut self, task: KnownTask) {
        self.0.insert(task.info.id, task);
    }

    /// Forgets those that were not seen for longest; of those seen at once, the oldest.
    fn trim(&mut self) {
        let excess = self.0.len().saturating_sub(MAX_TASKS);
        if excess > 0 {
            let mut order: Vec<_> = self.0.values().map(|task| (task.seen_at, task.info.id)).collect();
            order.sort_unstable();
            order[..excess].iter().for_each(|(_, id)| drop(self.0.remove(id)));
        }
    }

    /// All of it as entries: as many of the newest as fit the file.
    fn entries(&self) -> Vec<Vec<u8>> {
        let mut order: Vec<&KnownTask> = self.0.values().collect();
        order.sort_unstable_by_key(|task| (task.seen_at, task.info.id));
        let mut entries = Vec::new();
        let mut left = MAX_FILE / 2;
        for chunk in order.rchunks(CHUNK) {
            let entry = encode(chunk);
            match left.checked_sub(entry.len() as u64) {
                Some(rest) => left = rest,
                None => break,
            }
            entries.push(entry);
        }
        entries.reverse();
        entries
    }
}

/// Writes what is seen.
pub(super) struct Writer {
    journal: Journal,
    table: Table,
    /// Size of the file when it was last made as small as it can be.
    compact: u64,
}

impl Writer {
    pub(super) fn new(place: &Place) -> Self {
        Self { journal: Journal::new(place.tasks(), LABEL.to_vec()), table: Table::default(), compact: 0 }
    }

    /// Learns what is in the file already. Cheap when nobody wrote since.
    pub(super) fn look(&mut self) -> io::Result<()> {
        self.write(Vec::new())
    }

    /// Writes what is new of `seen`.
    pub(super) fn write(&mut self, seen: Vec<KnownTask>) -> io::Result<()> {
        let mut locked = self.journal.lock()?;
        if locked.anew {
            self.table = Table::default();
        }
        for entry in std::mem::take(&mut locked.fresh) {
            self.table.take(&entry);
        }
        let news = self.table.news(seen.into_iter().map(shortened).collect());
        let refs: Vec<&KnownTask> = news.iter().collect();
        let entries: Vec<_> = refs.chunks(CHUNK).map(encode).filter(|entry| entry.len() <= MAX_ENTRY).collect();
        if !entries.is_empty() {
            locked.append(entries.iter().map(Vec::as_slice))?;
        }
        news.into_iter().for_each(|task| self.table.put(task));
        if locked.len() > SMALL.max(self.compact * 4).min(MAX_FILE) || self.table.0.len() > MAX_TASKS + MAX_TASKS / 4 {
            self.table.trim();
            let entries = self.table.entries();
            locked.replace(entries.iter().map(Vec::as_slice))?;
            self.compact = locked.len();
        }
        Ok(())
    }

    /// Forgets all of them: the mesh is not what it was.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        self.journal.lock()?.replace([])?;
        self.table = Table::default();
        Ok(())
    }
}

fn shortened(mut task: KnownTask) -> KnownTask {
    if let Some(checkpoint) = &mut task.info.checkpoint {
        checkpoint.data = checkpoint.data.take().filter(|data| data.len() <= MAX_DATA);
    }
    task
}

fn encode(tasks: &[&KnownTask]) -> Vec<u8> {
    let json = serde_json::to_vec(tasks).expect("tasks have string keys and are written to memory");
    lz4_flex::compress_prepend_size(&json)
}

/// An entry that another version of ado wrote may not be understood: then it says nothing.
fn decode(entry: &Bytes) -> Vec<KnownTask> {
    // A task's words are at most MAX_SPEC long and JSON makes six bytes of one at worst.
    const MOST: usize = 8 * MAX_ENTRY;
    let size = entry.get(..4).and_then(|size| Some(u32::from_le_bytes(size.try_into().ok()?) as usize));
    if size.is_none_or(|size| size > MOST) {
        return Vec::new();
    }
    let json = lz4_flex::decompress_size_prepended(entry).unwrap_or_default();
    serde_json::from_slice(&json).unwrap_or_default()
}
