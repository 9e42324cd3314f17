//! The records of logs that were received.
//!
//! A file a log and generation. An entry is a dense run of records with its range of offsets; entries come in the order
//! they were received in. No offset is stored twice by those who hold the lock, and who reads does not rely on it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ado_proto::record::{Body, Reader, Record};
use ado_proto::request::StartAt;
use ado_proto::{Offset, TaskId, Timestamp};
use bytes::Bytes;

use super::frames::framed;
use super::journal::{self, Journal};
use super::ranges::{Ranges, Run, is_stored};
use super::{MAX_LOG, Place};

/// A run is written when it has this many bytes.
const RUN: usize = 64 * 1024;
/// Most bytes of a run before compression: one record more than [`RUN`] at most.
const MAX_RUN: usize = 1024 * 1024;
/// Bytes of an entry before its records: first and next offset, when it was received, bytes before compression.
const HEAD: usize = 8 + 8 + 8 + 4;
/// The end of every name.
const KIND: &str = "log";

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) task: TaskId,
    pub(super) generation: u64,
}

impl Name {
    fn label(self) -> Vec<u8> {
        format!("ado log 1 {} {:016x}", self.task, self.generation).into_bytes()
    }

    fn path(self, dir: &Path) -> PathBuf {
        dir.join(format!("{}-{:016x}.{KIND}", self.task.0.simple(), self.generation))
    }

    fn of(path: &Path) -> Option<Self> {
        if path.extension()? != KIND {
            return None;
        }
        let (task, generation) = path.file_stem()?.to_str()?.split_once('-')?;
        Some(Self { task: task.parse().ok()?, generation: u64::from_str_radix(generation, 16).ok()? })
    }
}

/// The logs in a folder.
fn names(dir: &Path) -> Vec<Name> {
    let Ok(files) = fs::read_dir(dir) else { return Vec::new() };
    files.flatten().filter_map(|file| Name::of(&file.path())).collect()
}

/// Writes one log.
pub(super) struct Writer {
    journal: Journal,
    ranges: Ranges,
    /// What waits to be written.
    pending: Option<Run>,
    seen_at: Timestamp,
    most: u64,
}

impl Writer {
    /// Begins to write a log. Others of the same task are of a store that is not there any more.
    pub(super) fn new(place: &Place, name: Name) -> Self {
        for other in names(&place.dir) {
            if other.task == name.task && other.generation != name.generation {
                let _ = fs::remove_file(other.path(&place.dir));
            }
        }
        Self {
            journal: Journal::new(name.path(&place.dir), name.label()),
            ranges: Ranges::default(),
            pending: None,
            seen_at: Timestamp(0),
            most: MAX_LOG.min(place.max_bytes / 4),
        }
    }

    /// Takes records as they came. Returns how many bytes were written.
    pub(super) fn take(&mut self, records: Bytes, seen_at: Timestamp) -> io::Result<u64> {
        let mut written = 0;
        self.seen_at = seen_at;
        // Who received them has read them all: none is malformed.
        for record in Reader::new(records).map_while(Result::ok) {
            if !is_stored(&record) {
                continue;
            }
            let fits = |run: &mut Run| run.bytes.len() < RUN && run.extend(&record);
            if !self.pending.as_mut().is_some_and(fits) {
                written += self.flush()?;
                self.pending = Some(Run::begin(&record));
            }
        }
        Ok(written)
    }

    /// Writes what waits, as far as nobody else has. Returns how many bytes.
    pub(super) fn flush(&mut self) -> io::Result<u64> {
        let Some(run) = self.pending.take() else { return Ok(0) };
        let mut locked = self.journal.lock()?;
        if locked.anew {
            self.ranges = Ranges::default();
        }
        for entry in std::mem::take(&mut locked.fresh) {
            if let Some(piece) = Piece::of(&entry) {
                self.ranges.insert(piece.first, piece.next);
            }
        }
        let runs = missing(run, &self.ranges);
        let entries: Vec<_> = runs.iter().map(|run| encode(run, self.seen_at)).collect();
        locked.append(entries.iter().map(Vec::as_slice))?;
        runs.iter().for_each(|run| self.ranges.insert(run.first, run.next));
        if locked.len() > self.most {
            let all = locked.all()?;
            let kept = newest(&all, self.most / 2);
            locked.replace(kept.iter().map(|entry| &entry[..]))?;
            self.ranges = Ranges::default();
            kept.iter().filter_map(Piece::of).for_each(|piece| self.ranges.insert(piece.first, piece.next));
        }
        Ok(entries.iter().map(|entry| framed(entry)).sum())
    }
}

/// The parts of a run that are not known yet.
fn missing(run: Run, known: &Ranges) -> Vec<Run> {
    let mut parts: Vec<Run> = Vec::new();
    let records = Reader::new(run.bytes.into()).map_while(Result::ok);
    for record in records.filter(|record| !known.contains(record.offset)) {
        if !parts.last_mut().is_some_and(|part| part.extend(&record)) {
            parts.push(Run::begin(&record));
        }
    }
    parts
}

/// As many of the entries with the highest offsets as fit, but one at least, in order of offset.
fn newest(entries: &[Bytes], most: u64) -> Vec<Bytes> {
    let mut order: Vec<_> = entries.iter().filter_map(|entry| Some((Piece::of(entry)?.first, entry))).collect();
    order.sort_by_key(|(first, _)| std::cmp::Reverse(*first));
    let mut left = most;
    let mut kept = Vec::new();
    for (_, entry) in order {
        match left.checked_sub(framed(entry)) {
            Some(rest) => left = rest,
            None if kept.is_empty() => left = 0,
            None => break,
        }
        kept.push(entry.clone());
    }
    kept.reverse();
    kept
}

fn encode(run: &Run, seen_at: Timestamp) -> Vec<u8> {
    let mut entry = Vec::with_capacity(HEAD + run.bytes.len() / 2);
    entry.extend_from_slice(&run.first.0.to_le_bytes());
    entry.extend_from_slice(&run.next.0.to_le_bytes());
    entry.extend_from_slice(&seen_at.0.to_le_bytes());
    entry.extend_from_slice(&u32::try_from(run.bytes.len()).expect("a run is at most MAX_RUN long").to_le_bytes());
    entry.extend_from_slice(&lz4_flex::compress(&run.bytes));
    entry
}

/// An entry of a log's file: a dense run, still compressed.
#[derive(Debug, Clone)]
struct Piece {
    first: Offset,
    next: Offset,
    seen_at: Timestamp,
    /// Bytes before compression.
    size: usize,
    packed: Bytes,
}

impl Piece {
    fn of(entry: &Bytes) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(entry.get(at..at + 8)?.try_into().ok()?));
        let size = u32::from_le_bytes(entry.get(24..HEAD)?.try_into().ok()?) as usize;
        let seen_at = Timestamp(number(16)?.cast_signed());
        let piece =
            Self { first: Offset(number(0)?), next: Offset(number(8)?), seen_at, size, packed: entry.slice(HEAD..) };
        (size <= MAX_RUN && piece.first < piece.next).then_some(piece)
    }

    /// Its records; none when they are not exactly what it says.
    fn records(&self) -> Vec<Record> {
        let bytes = lz4_flex::decompress(&self.packed, self.size).unwrap_or_default();
        let records: Vec<_> = Reader::new(bytes.into()).map_while(Result::ok).collect();
        let offsets = records.iter().map(|record| record.offset.0);
        if offsets.eq(self.first.0..self.next.0) { records } else { Vec::new() }
    }
}

/// What is known of a log, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// The next record.
    Record(Record),
    /// Records that this machine has not seen.
    Missing {
        /// The first of them.
        from: Offset,
        /// The first after them.
        to: Offset,
    },
}

/// What is known of a log.
#[derive(Debug, Clone)]
pub struct KnownLog {
    /// In order of offset; they may overlap.
    pieces: Vec<Piece>,
    /// When the newest part of it was received.
    pub seen_at: Timestamp,
}

impl KnownLog {
    /// Reads what is known of a task's log, and notes that it was used. `None`: nothing.
    pub(super) fn read(dir: &Path, task: TaskId, now: Timestamp) -> Option<Self> {
        let logs = names(dir).into_iter().filter(|name| name.task == task);
        // Of several generations the one that was received last is the log there is.
        let (path, log) = logs
            .filter_map(|name| Some((name.path(dir), Self::of(&journal::read(&name.path(dir), &name.label()))?)))
            .max_by_key(|(_, log)| log.seen_at)?;
        note_use(&path, now);
        Some(log)
    }

    fn of(entries: &[Bytes]) -> Option<Self> {
        let mut pieces: Vec<_> = entries.iter().filter_map(Piece::of).collect();
        pieces.sort_by_key(|piece| (piece.first, piece.next));
        let seen_at = pieces.iter().map(|piece| piece.seen_at).max()?;
        Some(Self { pieces, seen_at })
    }

    /// One after the last record that is known.
    pub fn next(&self) -> Offset {
        self.pieces.iter().map(|piece| piece.next).max().unwrap_or_default()
    }

    /// Whether its last record is known.
    pub fn is_ended(&self) -> bool {
        let last = self.pieces.iter().max_by_key(|piece| piece.next).and_then(|piece| piece.records().pop());
        last.is_some_and(|record| matches!(record.body, Body::Ended(_)))
    }

    /// What is known from `start` on: records in order, and the gaps between them. One piece at a time is held decoded.
    pub fn from(&self, start: StartAt) -> impl Iterator<Item = Known> + '_ {
        let (first, mut skip) = self.start(start);
        let mut next = first;
        let records = self.pieces.iter().filter(move |piece| piece.next > first).flat_map(Piece::records);
        records
            .flat_map(move |mut record| {
                if record.offset < next {
                    return [None, None];
                }
                let gap = (record.offset > next).then_some(Known::Missing { from: next, to: record.offset });
                next = record.offset.next();
                if let Body::Output(output) = &mut record.body {
                    let skipped = output.data.len().min(std::mem::take(&mut skip));
                    output.data = output.data.slice(skipped..);
                    output.position += skipped as u64;
                }
                [gap, Some(Known::Record(record))]
            })
            .flatten()
    }

    /// The offset meant, and bytes of its output that come before it.
    fn start(&self, start: StartAt) -> (Offset, usize) {
        match start {
            StartAt::Offset(offset) => (offset, 0),
            StartAt::Since(since) => {
                let mut records = self.pieces.iter().flat_map(Piece::records);
                (records.find(|record| record.time >= since).map_or(self.next(), |record| record.offset), 0)
            }
            StartAt::Tail(lines) => self.tail(lines),
        }
    }

    /// Where the last `lines` lines of what is known begin. When the part without gaps at the end has fewer, it is the gap
    /// before that part: nobody knows whether there are lines in it.
    fn tail(&self, lines: u32) -> (Offset, usize) {
        let mut left = u64::from(lines);
        let mut at_end = true;
        let mut start = self.next();
        for piece in self.pieces.iter().rev() {
            if piece.next < start {
                break;
            }
            for record in piece.records().into_iter().rev().filter(|record| record.offset < start) {
                if let Body::Output(output) = &record.body {
                    for (index, byte) in output.data.iter().enumerate().rev() {
                        // The newline that ends the last line begins none.
                        if *byte == b'\n' && !at_end {
                            left = left.saturating_sub(1);
                        }
                        at_end = false;
                        if left == 0 {
                            return (record.offset, index + 1);
                        }
                    }
                }
            }
            start = start.min(piece.first);
        }
        let before = self.pieces.iter().map(|piece| piece.next).filter(|next| *next <= start);
        (before.max().unwrap_or_default(), 0)
    }
}

/// Removes every log of another generation than `generation`.
pub(super) fn forget_others(dir: &Path, generation: u64) {
    for name in names(dir).into_iter().filter(|name| name.generation != generation) {
        let _ = fs::remove_file(name.path(dir));
    }
}

/// The file's time is when it was last used: those used least recently go first.
fn note_use(path: &Path, now: Timestamp) {
    let micros = std::time::Duration::from_micros(u64::try_from(now.0).unwrap_or(0));
    if let Ok(file) = fs::OpenOptions::new().write(true).open(path) {
        let _ = file.set_modified(std::time::UNIX_EPOCH + micros);
    }
}

/// Removes the logs used least recently, of all meshes, until those that are left take at most `most` bytes.
pub(super) fn sweep(root: &Path, most: u64) -> io::Result<()> {
    let mut files = BTreeMap::new();
    let mut total = 0;
    for dir in fs::read_dir(root)?.flatten() {
        let Ok(entries) = fs::read_dir(dir.path()) else { continue };
        for file in entries.flatten().filter(|file| Name::of(&file.path()).is_some()) {
            // Who else sweeps may have removed it.
            let Ok(data) = file.metadata() else { continue };
            total += data.len();
            files.insert((data.modified()?, file.path()), data.len());
        }
    }
    for ((_, path), length) in files {
        if total <= most {
            break;
        }
        fs::remove_file(&path)?;
        total -= length;
    }
    Ok(())
}
