//! Records that are not yet known to be in the log: first in memory, then in a file.
//!
//! Owns: their order, their limits. Must never know: what a record says, who it is for.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use ado_proto::Seq;
use bytes::{Bytes, BytesMut};

/// Bytes kept in memory before a file is used.
pub const MEMORY_LIMIT: usize = 4 * 1024 * 1024;

/// There is no room. What was to be kept is the caller's still; reading from the agent has to wait, which slows that agent
/// and nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the spool is full")]
pub struct Full;

/// A queue of encoded records with dense seqs. The oldest are in memory, the newest, when memory is full, in a file that is
/// used as a ring: it never grows beyond its limit.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    memory_limit: usize,
    file_limit: u64,
    /// Seq of the oldest record kept.
    first: Seq,
    memory: VecDeque<Bytes>,
    memory_bytes: usize,
    file: Option<File>,
    /// Where in the endless row of bytes written to the ring the records in it begin.
    start: u64,
    /// Where each record in the ring ends, oldest first.
    ends: VecDeque<u64>,
    /// So that a full disk is logged once.
    failing: bool,
}

impl Spool {
    /// An empty spool whose file, if one is needed, is made at `path` and has no name from then on.
    pub fn new(path: PathBuf, memory_limit: usize, file_limit: u64) -> Self {
        Self {
            path,
            memory_limit,
            file_limit,
            first: Seq(0),
            memory: VecDeque::new(),
            memory_bytes: 0,
            file: None,
            start: 0,
            ends: VecDeque::new(),
            failing: false,
        }
    }

    /// Seq of the oldest record kept, or of the next one.
    pub fn first_seq(&self) -> Seq {
        self.first
    }

    /// Seq of the next record.
    pub fn next_seq(&self) -> Seq {
        Seq(self.first.0 + (self.memory.len() + self.ends.len()) as u64)
    }

    /// Whether a record of this size would be the first one in the file.
    pub fn would_spill(&self, size: usize) -> bool {
        self.ends.is_empty() && !self.has_memory(size)
    }

    fn has_memory(&self, size: usize) -> bool {
        self.memory.is_empty() || self.memory_bytes + size <= self.memory_limit
    }

    /// Keeps a record. An empty spool takes one of any size.
    ///
    /// # Errors
    /// [`Full`], also when the file cannot be written.
    pub fn push(&mut self, record: Bytes) -> Result<(), Full> {
        if self.ends.is_empty() && self.has_memory(record.len()) {
            self.memory_bytes += record.len();
            self.memory.push_back(record);
            return Ok(());
        }
        if self.end() + record.len() as u64 - self.start > self.file_limit {
            return Err(Full);
        }
        match self.write(&record) {
            Ok(()) => {
                self.failing = false;
                self.ends.push_back(self.end() + record.len() as u64);
                Ok(())
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(path = %self.path.display(), %error, "cannot spool; the agent's output waits");
                }
                Err(Full)
            }
        }
    }

    /// Records from `from` on, laid end to end, with the seq that follows them: as many as `limit` bytes hold, but at least
    /// one if there is one.
    ///
    /// # Errors
    /// The file's.
    pub fn peek(&self, from: Seq, limit: usize) -> io::Result<(Bytes, Seq)> {
        let mut index = usize::try_from(from.0.saturating_sub(self.first.0)).unwrap_or(usize::MAX);
        let mut next = self.first.0 + index as u64;
        let mut out = BytesMut::with_capacity(self.memory_bytes.min(limit));
        while let Some(record) = self.memory.get(index) {
            if !out.is_empty() && out.len() + record.len() > limit {
                return Ok((out.freeze(), Seq(next)));
            }
            out.extend_from_slice(record);
            index += 1;
            next += 1;
        }
        let index = index - self.memory.len().min(index);
        if index >= self.ends.len() {
            return Ok((out.freeze(), Seq(next)));
        }
        let begin = if index == 0 { self.start } else { self.ends[index - 1] };
        let room = limit.saturating_sub(out.len()) as u64;
        let mut count = self.ends.range(index..).take_while(|end| **end - begin <= room).count();
        if count == 0 && out.is_empty() {
            count = 1;
        }
        if count > 0 {
            self.read(begin, self.ends[index + count - 1], &mut out)?;
        }
        Ok((out.freeze(), Seq(next + count as u64)))
    }

    /// Everything before `next` is in the log.
    pub fn acknowledge(&mut self, next: Seq) {
        while self.first < next {
            if let Some(record) = self.memory.pop_front() {
                self.memory_bytes -= record.len();
            } else if let Some(end) = self.ends.pop_front() {
                self.start = end;
            } else {
                return;
            }
            self.first = self.first.next();
        }
        if self.ends.is_empty() {
            self.start = 0;
            // Gives the disk back. A file that cannot be cut is written over.
            self.file = None;
        }
    }

    fn end(&self) -> u64 {
        self.ends.back().copied().unwrap_or(self.start)
    }

    fn write(&mut self, record: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(create(&self.path)?),
        };
        let at = self.ends.back().copied().unwrap_or(self.start) % self.file_limit;
        let (head, tail) = record.split_at(record.len().min(turn(self.file_limit, at)));
        file.write_all_at(head, at)?;
        file.write_all_at(tail, 0)
    }

    fn read(&self, from: u64, to: u64, out: &mut BytesMut) -> io::Result<()> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let begin = out.len();
        out.resize(begin + usize::try_from(to - from).map_err(io::Error::other)?, 0);
        let buffer = &mut out[begin..];
        let at = from % self.file_limit;
        let (head, tail) = buffer.split_at_mut(buffer.len().min(turn(self.file_limit, at)));
        file.read_exact_at(head, at)?;
        file.read_exact_at(tail, 0)
    }
}

/// Bytes from `at` to where the ring begins anew.
fn turn(limit: u64, at: u64) -> usize {
    usize::try_from(limit - at).unwrap_or(usize::MAX)
}

/// A file without a name: it goes when it is closed, whatever happens to the worker.
fn create(path: &PathBuf) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    fs::remove_file(path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        Acknowledge(u64),
        Peek(u64, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1usize..60).prop_map(Step::Push),
            2 => (0u64..12).prop_map(Step::Acknowledge),
            2 => (0u64..12, 1usize..200).prop_map(|(from, limit)| Step::Peek(from, limit)),
        ]
    }

    /// What peeking a plain queue gives.
    fn model_peek(model: &VecDeque<Bytes>, index: usize, limit: usize) -> (Vec<u8>, usize) {
        let mut out = Vec::new();
        let mut count = 0;
        for record in model.iter().skip(index) {
            if !out.is_empty() && out.len() + record.len() > limit {
                break;
            }
            out.extend_from_slice(record);
            count += 1;
        }
        (out, count)
    }

    proptest! {
        #[test]
        fn it_is_a_queue(steps in prop::collection::vec(step(), 1..200)) {
            let dir = tempfile::tempdir().unwrap();
            let mut spool = Spool::new(dir.path().join("spool"), 100, 300);
            let mut model: VecDeque<Bytes> = VecDeque::new();
            let mut first = 0;
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(size) => {
                        let record = Bytes::from(vec![number as u8; size]);
                        let total: usize = model.iter().map(Bytes::len).sum();
                        match spool.push(record.clone()) {
                            Ok(()) => model.push_back(record),
                            Err(Full) => prop_assert!(total + size > 300, "full with {total} + {size}"),
                        }
                        let total: usize = model.iter().map(Bytes::len).sum();
                        prop_assert!(total <= 400, "holds {total}");
                    }
                    Step::Acknowledge(count) => {
                        let count = count.min(model.len() as u64);
                        first += count;
                        spool.acknowledge(Seq(first));
                        model.drain(..usize::try_from(count).unwrap());
                    }
                    Step::Peek(from, limit) => {
                        let from = from.min(model.len() as u64);
                        let (bytes, next) = spool.peek(Seq(first + from), limit).unwrap();
                        let (expected, count) = model_peek(&model, usize::try_from(from).unwrap(), limit);
                        prop_assert_eq!(bytes.to_vec(), expected);
                        prop_assert_eq!(next, Seq(first + from + count as u64));
                    }
                }
                prop_assert_eq!(spool.first_seq(), Seq(first));
                prop_assert_eq!(spool.next_seq(), Seq(first + model.len() as u64));
                prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
            }
        }
    }

    #[test]
    fn a_disk_that_cannot_be_written_means_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(dir.path().join("missing/spool"), 10, 1000);
        spool.push(Bytes::from_static(b"0123456789")).unwrap();
        assert_eq!(spool.push(Bytes::from_static(b"a")), Err(Full));
        assert_eq!(spool.next_seq(), Seq(1), "what was refused has no seq");
        spool.acknowledge(Seq(1));
        spool.push(Bytes::from_static(b"a")).unwrap();
        assert_eq!(spool.peek(Seq(1), 10).unwrap(), (Bytes::from_static(b"a"), Seq(2)));
    }
}
