//! A folder made of a snapshot.
//!
//! A manifest may be hostile: everything is made relative to an open root, through folders that are no links, and nothing
//! that is there is touched. Links come last, so that nothing is made through one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ado_proto::BlobId;
use ado_proto::snapshot::{Manifest, Meta, Node, Piece};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, fchmod, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::symlinkat;

use super::pack::{self, hash};
use super::{Error, file_error};

/// A snapshot that is being made into folders: [`Restore::begin`], every pack of [`Restore::packs`] once, [`Restore::finish`].
#[derive(Debug)]
pub struct Restore {
    manifest: Manifest,
    /// One for each root of the manifest.
    roots: Vec<OwnedFd>,
    /// What each pack is needed for.
    wanted: BTreeMap<u32, Vec<Wanted>>,
}

/// A chunk's place in a file.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    chunk: u32,
    root: usize,
    entry: usize,
    at: u64,
}

impl Restore {
    /// Makes folders, and files without their contents, in empty folders of these names.
    ///
    /// # Errors
    /// See [`Error`]; something may have been made.
    pub fn begin(manifest: Manifest, places: &BTreeMap<String, PathBuf>) -> Result<Self, Error> {
        // Nothing is made of one that does not fit.
        if let Some(root) = manifest.roots.iter().find(|root| !places.contains_key(&root.name)) {
            return Err(Error::NoPlace(root.name.clone()));
        }
        let mut roots = Vec::new();
        let mut wanted: BTreeMap<u32, Vec<Wanted>> = BTreeMap::new();
        for (index, root) in manifest.roots.iter().enumerate() {
            let top = open_top(&places[&root.name])?;
            let mut folders = Folders::new(&top);
            for (number, entry) in root.entries.iter().enumerate() {
                match &entry.node {
                    Node::Folder(_) => {
                        let (parent, name) = folders.parent(&entry.path)?;
                        mkdirat(parent, name, Mode::S_IRWXU)
                            .map_err(|error| file_error("make", &entry.path, error.into()))?;
                    }
                    Node::File { size, pieces, .. } => {
                        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
                        let file = folders.file(&entry.path, flags)?;
                        file.set_len(*size).map_err(|error| file_error("make", &entry.path, error))?;
                        let mut at = 0;
                        for piece in pieces {
                            match piece {
                                Piece::Hole(len) => at += len,
                                Piece::Chunk(chunk) => {
                                    let place = manifest.chunks[*chunk as usize];
                                    let it = Wanted { chunk: *chunk, root: index, entry: number, at };
                                    wanted.entry(place.pack).or_default().push(it);
                                    at += u64::from(place.len);
                                }
                            }
                        }
                    }
                    Node::Link(_) => {}
                }
            }
            roots.push(top);
        }
        Ok(Self { manifest, roots, wanted })
    }

    /// The packs it takes.
    pub fn packs(&self) -> Vec<BlobId> {
        self.wanted.keys().map(|index| self.manifest.packs[*index as usize].id).collect()
    }

    /// Writes what is in a pack into its files.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is not what it should be, and see [`Error`].
    pub fn fill(&self, id: BlobId, bytes: &[u8]) -> Result<(), Error> {
        let known = self.manifest.packs.iter().position(|pack| pack.id == id).and_then(|at| u32::try_from(at).ok());
        let Some(index) = known else { return Ok(()) };
        let wanted = self.wanted.get(&index).map_or(&[][..], Vec::as_slice);
        let raw = self.manifest.packs[index as usize].raw;
        let plain = if hash(bytes) == id { pack::open(bytes, raw) } else { None };
        let plain = plain.ok_or(Error::Damaged(id))?;
        let mut file: Option<(usize, usize, File)> = None;
        let mut sound = BTreeMap::new();
        for it in wanted {
            let chunk = self.manifest.chunks[it.chunk as usize];
            let at = chunk.at as usize;
            let data = &plain[at..at + chunk.len as usize];
            if !*sound.entry(it.chunk).or_insert_with(|| hash(data) == chunk.id) {
                return Err(Error::Damaged(id));
            }
            let path = &self.manifest.roots[it.root].entries[it.entry].path;
            let open = match file.take() {
                Some((root, entry, open)) if (root, entry) == (it.root, it.entry) => open,
                _ => Folders::new(&self.roots[it.root]).file(path, OFlag::O_WRONLY)?,
            };
            open.write_all_at(data, it.at).map_err(|error| file_error("write", path, error))?;
            file = Some((it.root, it.entry, open));
        }
        Ok(())
    }

    /// Makes links, and gives everything its mode and time.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn finish(self) -> Result<Manifest, Error> {
        for (root, top) in self.manifest.roots.iter().zip(&self.roots) {
            let mut folders = Folders::new(top);
            for entry in &root.entries {
                if let Node::File { meta, .. } = &entry.node {
                    let file = folders.file(&entry.path, OFlag::O_WRONLY)?;
                    dress(&file, *meta, &entry.path)?;
                }
            }
            for entry in &root.entries {
                if let Node::Link(target) = &entry.node {
                    let (parent, name) = folders.parent(&entry.path)?;
                    symlinkat(OsStr::from_bytes(target), parent, name)
                        .map_err(|error| file_error("make", &entry.path, error.into()))?;
                }
            }
            // The innermost first: what is in a folder changes its time, and may not be there for others.
            for entry in root.entries.iter().rev() {
                if let Node::Folder(meta) = &entry.node {
                    let folder = folders.open(&entry.path)?;
                    dress(&folder, *meta, &entry.path)?;
                }
            }
        }
        Ok(self.manifest)
    }
}

fn dress(it: &impl AsFd, meta: Meta, path: &[u8]) -> Result<(), Error> {
    let time = TimeSpec::new(meta.seconds, meta.nanos.into());
    futimens(it, &time, &time)
        .and_then(|()| fchmod(it, Mode::from_bits_truncate(meta.mode.into())))
        .map_err(|error| file_error("set the mode and time of", path, error.into()))
}

fn open_top(place: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::open(place, flags, Mode::empty())
        .map_err(|error| file_error("open", place.as_os_str().as_bytes(), error.into()))
}

/// Folders below a root, the last one kept open: what comes next is often in it, too.
struct Folders<'a> {
    top: &'a OwnedFd,
    last: Option<(Vec<u8>, OwnedFd)>,
}

impl<'a> Folders<'a> {
    fn new(top: &'a OwnedFd) -> Self {
        Self { top, last: None }
    }

    /// The folder something is in, and its name there.
    fn parent<'b>(&'b mut self, path: &'b [u8]) -> Result<(&'b OwnedFd, &'b OsStr), Error> {
        let Some(at) = path.iter().rposition(|byte| *byte == b'/') else {
            return Ok((self.top, OsStr::from_bytes(path)));
        };
        let (folder, name) = (&path[..at], OsStr::from_bytes(&path[at + 1..]));
        if self.last.as_ref().is_none_or(|(known, _)| known != folder) {
            self.last = Some((folder.to_vec(), self.open(folder)?));
        }
        let (_, open) = self.last.as_ref().expect("it was just opened");
        Ok((open, name))
    }

    /// A folder, step by step, through no link.
    fn open(&self, path: &[u8]) -> Result<OwnedFd, Error> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut at: Option<OwnedFd> = None;
        for name in path.split(|byte| *byte == b'/') {
            let within = at.as_ref().unwrap_or(self.top);
            let next = openat(within, OsStr::from_bytes(name), flags, Mode::empty());
            at = Some(next.map_err(|error| file_error("open", path, error.into()))?);
        }
        Ok(at.expect("a path has a first step"))
    }

    fn file(&mut self, path: &[u8], flags: OFlag) -> Result<File, Error> {
        let (parent, name) = self.parent(path)?;
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        file.map(File::from).map_err(|error| file_error("make", path, error.into()))
    }
}
