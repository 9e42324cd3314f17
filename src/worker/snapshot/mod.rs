//! Snapshots of a task's folders: taken while its agent stands still, kept as blobs, made again elsewhere.
//!
//! Owns: what of a folder is kept, what has changed since the last time, how a folder is made of a snapshot.
//! Must never know: guards, connections, when a snapshot is wanted. Everything here but [`Vault`]s blocks, and belongs on a
//! thread that may.
//!
//! A snapshot is of one or several roots, each a folder with a name, without what is excluded from it. It is looked at
//! twice: once while the agent runs, which reads what has changed, and once while it stands still, which reads what has
//! changed since. A file is taken for unchanged while its size, its inode and both of its times are what they were, and
//! were not made so a moment ago; one that is written through a shared mapping shows nothing of that before the mapping is
//! synced (msync(2), or the system within some seconds), and may be taken as it was then.
//!
//! Hard links become files of their own. Sockets, devices and pipes are left out, and named.

mod pack;
mod restore;
mod tree;
mod vault;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use ado_proto::BlobId;
use ado_proto::snapshot::{self, Chunk, Entry, Manifest, Meta, Node, Pack, Piece};
use bytes::Bytes;

use self::pack::Packer;
pub use self::restore::Restore;
use self::tree::{Seen, Stat};
pub(super) use self::vault::LinkVault;
pub use self::vault::{Vault, VaultError};

/// The root that is the task's own folder.
pub const WORKSPACE: &str = "workspace";

/// Special files that are named when they are left out.
const NAMED: usize = 5;

/// What a snapshot may take at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of files, without holes.
    pub max_bytes: u64,
    /// Files, folders and links.
    pub max_files: u64,
    /// Longest time that the agent stands still for one.
    pub max_freeze: std::time::Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 2 << 30, max_files: 200_000, max_freeze: std::time::Duration::from_secs(10) }
    }
}

/// A folder to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// What the snapshot calls it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Paths below it that are left out, with all that is in them.
    pub exclude: BTreeSet<Vec<u8>>,
}

impl Root {
    /// All of a folder.
    pub fn new(name: &str, path: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), path: path.into(), exclude: BTreeSet::new() }
    }
}

/// Why a snapshot was not taken, or nothing made of one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be used.
    #[error("cannot {doing} `{path}`")]
    File {
        /// What was attempted.
        doing: &'static str,
        /// With which.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// There is too much in it.
    #[error("it holds more than {0} bytes (worker.snapshots.maxBytes)")]
    TooLarge(u64),
    /// There are too many of them.
    #[error("it holds more than {0} files (worker.snapshots.maxFiles)")]
    TooMany(u64),
    /// Folders lie too deep in each other.
    #[error("`{0}` lies deeper than {max} folders", max = snapshot::MAX_DEPTH)]
    TooDeep(String),
    /// Whoever wanted it no longer does.
    #[error("it was given up")]
    Stopped,
    /// The manifest is unusable, or would be.
    #[error("its manifest cannot be used")]
    Manifest(#[from] snapshot::Error),
    /// A blob is not what its name says.
    #[error("blob {0} is damaged")]
    Damaged(BlobId),
    /// It holds a folder for which there is no place.
    #[error("it holds a folder called `{0}`, for which there is no place here")]
    NoPlace(String),
}

impl Error {
    /// With all its causes, on one line.
    pub fn in_words(&self) -> String {
        let mut words = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            words.push_str(": ");
            words.push_str(&error.to_string());
            cause = error.source();
        }
        words
    }
}

/// What was taken. Its packs are in the staging folder until [`Taker::recorded`] or [`Taker::failed`].
#[derive(Debug, Clone)]
pub struct Taken {
    /// The manifest's name.
    pub id: BlobId,
    /// The manifest, as it is kept.
    pub manifest: Bytes,
    /// Packs that no snapshot before had.
    pub new: Vec<BlobId>,
    /// Files in it.
    pub files: u64,
    /// Bytes of their contents.
    pub bytes: u64,
    /// It is what the last recorded one was.
    pub unchanged: bool,
    /// Special files that are not in it; `None`: there are none.
    pub left_out: Option<String>,
}

/// Takes snapshots of the same roots, each with what is known from the one before.
#[derive(Debug)]
pub struct Taker {
    roots: Vec<Root>,
    limits: Limits,
    packer: Packer,
    cache: BTreeMap<(usize, Vec<u8>), Cached>,
    /// What was taken last, until it is recorded.
    taken: Option<Manifest>,
    recorded: Option<(BlobId, Manifest)>,
}

/// What is known of a file.
#[derive(Debug)]
struct Cached {
    stat: Stat,
    pieces: Vec<Part>,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Chunk(BlobId),
    Hole(u64),
}

/// What one look at the roots found.
#[derive(Default)]
struct Look {
    roots: Vec<BTreeMap<Vec<u8>, Found>>,
    cache: BTreeMap<(usize, Vec<u8>), Cached>,
    bytes: u64,
    count: u64,
    special: Vec<String>,
}

enum Found {
    Folder(Meta),
    File(Meta),
    Link(Vec<u8>),
}

impl Taker {
    /// Of these roots. `staging` is a folder of its own, which need not be there.
    pub fn new(roots: Vec<Root>, limits: Limits, staging: PathBuf) -> Self {
        let packer = Packer::new(staging);
        Self { roots, limits, packer, cache: BTreeMap::new(), taken: None, recorded: None }
    }

    /// The roots were made of this snapshot, whose blobs lie where those of the next one will.
    pub fn begins_with(&mut self, id: BlobId, manifest: Manifest) {
        self.packer.know(&manifest);
        self.recorded = Some((id, manifest));
    }

    /// Looks at the roots and reads what has changed. `now`: the time of day, microseconds, on the clock of the file system.
    /// Gives up soon once `stop` is set. What was read is remembered, so that another look costs little.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn take(&mut self, now: i64, stop: &AtomicBool) -> Result<Taken, Error> {
        let mut look = Look::default();
        let looked = (0..self.roots.len()).try_for_each(|index| {
            look.roots.push(BTreeMap::new());
            self.look_at(index, now, stop, &mut look)
        });
        match looked.and_then(|()| self.packer.seal()) {
            Ok(()) => self.cache = std::mem::take(&mut look.cache),
            Err(error) => {
                // What was read need not be read again.
                self.cache.append(&mut look.cache);
                return Err(error);
            }
        }
        let manifest = self.manifest(&look);
        let encoded = manifest.encode()?;
        let id = pack::hash(&encoded);
        let (files, bytes) = manifest.size();
        let new = manifest.packs.iter().map(|pack| pack.id).filter(|pack| self.packer.is_staged(pack)).collect();
        let unchanged = self.recorded.as_ref().is_some_and(|(last, _)| *last == id);
        self.taken = Some(manifest);
        Ok(Taken { id, manifest: encoded.into(), new, files, bytes, unchanged, left_out: left_out(&look.special) })
    }

    /// The bytes of a new pack.
    ///
    /// # Errors
    /// [`Error::File`] when it is not there.
    pub fn pack(staging: &Path, id: &BlobId) -> Result<Bytes, Error> {
        let path = staging.join(id.to_string());
        fs::read(&path)
            .map(Bytes::from)
            .map_err(|source| file_error("read", path.as_os_str().as_encoded_bytes(), source))
    }

    /// What was taken last is durable, and what the next one builds on.
    pub fn recorded(&mut self, id: BlobId) {
        if let Some(manifest) = self.taken.take() {
            self.recorded = Some((id, manifest));
        }
        self.forget();
    }

    /// It is not.
    pub fn failed(&mut self) {
        self.taken = None;
        self.forget();
    }

    fn forget(&mut self) {
        self.packer.forget();
        if let Some((_, manifest)) = &self.recorded {
            self.packer.know(manifest);
        }
    }

    fn look_at(&mut self, index: usize, now: i64, stop: &AtomicBool, look: &mut Look) -> Result<(), Error> {
        let root = self.roots[index].clone();
        tree::walk(&root.path, &root.exclude, &mut |path, seen| {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            look.count += 1;
            if look.count > self.limits.max_files {
                return Err(Error::TooMany(self.limits.max_files));
            }
            let found = match seen {
                Seen::Folder(meta) => Found::Folder(meta),
                Seen::Link(target) => Found::Link(target),
                Seen::Special => {
                    look.special.push(String::from_utf8_lossy(path).into_owned());
                    return Ok(());
                }
                Seen::File { stat, open } => {
                    let key = (index, path.to_vec());
                    let known = self.cache.remove(&key).filter(|known| {
                        known.stat == stat && known.stat.is_settled(now) && self.packer.knows(&known.pieces)
                    });
                    let known = match known {
                        Some(known) => known,
                        None => {
                            match open().and_then(|file| file.map(|file| self.read(path, file, stop)).transpose())? {
                                Some(known) => known,
                                // It has just gone.
                                None => return Ok(()),
                            }
                        }
                    };
                    let data = known.pieces.iter().map(|part| self.packer.length(part)).sum::<u64>();
                    look.bytes = look.bytes.saturating_add(data);
                    if look.bytes > self.limits.max_bytes {
                        return Err(Error::TooLarge(self.limits.max_bytes));
                    }
                    let meta = known.stat.meta();
                    look.cache.insert(key, known);
                    Found::File(meta)
                }
            };
            look.roots[index].insert(path.to_vec(), found);
            Ok(())
        })
    }

    /// Reads a file, whatever it was when it was looked at.
    fn read(&mut self, path: &[u8], mut file: File, stop: &AtomicBool) -> Result<Cached, Error> {
        let failed = |source| file_error("read", path, source);
        let before = Stat::of(&file).map_err(failed)?;
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some((from, to)) = data_after(&file, at, before.size).map_err(failed)? {
            if from > at {
                pieces.push(Part::Hole(from - at));
            }
            file.seek(SeekFrom::Start(from)).map_err(failed)?;
            let mut data = (&file).take(to - from);
            let read = self.packer.cut(&mut data, stop, self.limits.max_bytes, &mut pieces, &failed)?;
            at = from + read;
            if at < to {
                // It was cut off meanwhile.
                break;
            }
        }
        if at < before.size && file.metadata().map_err(failed)?.len() >= before.size {
            pieces.push(Part::Hole(before.size - at));
        }
        let after = Stat::of(&file).map_err(failed)?;
        // What changed while it was read is not what will be found again.
        let stat = if before == after { before } else { after.unsettled() };
        Ok(Cached { stat, pieces })
    }

    fn manifest(&self, look: &Look) -> Manifest {
        let mut manifest = Manifest::default();
        let (mut packs, mut chunks) = (BTreeMap::new(), BTreeMap::new());
        for (index, (root, found)) in self.roots.iter().zip(&look.roots).enumerate() {
            let mut entries = Vec::with_capacity(found.len());
            for (path, found) in found {
                // Of a folder that has gone while it was looked at.
                let node = match found {
                    Found::Folder(meta) => Node::Folder(*meta),
                    Found::Link(target) => Node::Link(target.clone()),
                    Found::File(meta) => {
                        let known = &self.cache[&(index, path.clone())];
                        let pieces: Vec<_> = known
                            .pieces
                            .iter()
                            .map(|part| match part {
                                Part::Hole(len) => Piece::Hole(*len),
                                Part::Chunk(id) => Piece::Chunk(*chunks.entry(*id).or_insert_with(|| {
                                    let place = self.packer.place(id);
                                    let pack = *packs.entry(place.pack).or_insert_with(|| {
                                        let raw = self.packer.raw(&place.pack);
                                        manifest.packs.push(Pack { id: place.pack, raw });
                                        index_of(manifest.packs.len())
                                    });
                                    manifest.chunks.push(Chunk { id: *id, pack, at: place.at, len: place.len });
                                    index_of(manifest.chunks.len())
                                })),
                            })
                            .collect();
                        let size = known.pieces.iter().map(|part| match part {
                            Part::Hole(len) => *len,
                            Part::Chunk(_) => self.packer.length(part),
                        });
                        Node::File { meta: *meta, size: size.sum(), pieces }
                    }
                };
                entries.push(Entry { path: path.clone(), node });
            }
            manifest.roots.push(snapshot::Root { name: root.name.clone(), entries });
        }
        manifest
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.packer.forget();
    }
}

fn index_of(length: usize) -> u32 {
    u32::try_from(length - 1).expect("a manifest has fewer than 2^32 chunks")
}

/// The first stretch of data at or after a place, up to where the file ended.
#[cfg(target_os = "linux")]
fn data_after(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    use nix::errno::Errno;
    use nix::unistd::{Whence, lseek};

    if at >= size {
        return Ok(None);
    }
    let seek = |at: u64, whence| lseek(file, at.cast_signed(), whence).map(i64::cast_unsigned);
    match seek(at, Whence::SeekData) {
        Ok(from) if from >= size => Ok(None),
        Ok(from) => Ok(Some((from, seek(from, Whence::SeekHole)?.min(size)))),
        // No data follows.
        Err(Errno::ENXIO) => Ok(None),
        // A file system without holes.
        Err(Errno::EINVAL) => Ok(Some((at, size))),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn data_after(_: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    Ok((at < size).then_some((at, size)))
}

fn left_out(special: &[String]) -> Option<String> {
    let named = special.iter().take(NAMED).map(|path| format!("`{}`", path.escape_debug())).collect::<Vec<_>>();
    match special.len() {
        0 => None,
        count if count > NAMED => Some(format!("{} and {} more", named.join(", "), count - NAMED)),
        _ => Some(named.join(", ")),
    }
}

fn file_error(doing: &'static str, path: &[u8], source: io::Error) -> Error {
    Error::File { doing, path: String::from_utf8_lossy(path).escape_debug().to_string(), source }
}

#[cfg(test)]
mod tests;
