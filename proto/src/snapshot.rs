//! Snapshots of folders: what a manifest says, and what it may not.
//!
//! Files are cut into chunks, chunks lie in packs, and a manifest says of every file which chunks it is made of. Packs and
//! manifests are blobs: bytes named by their own hash, so that a snapshot shares with the one before it what has not
//! changed. A manifest comes from a store or a worker, and folders are made from it: [`Manifest::decode`] refuses every one
//! that names something outside of its roots.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::is_name;
use crate::payload::{from_postcard, to_postcard};
use crate::{DecodeError, Seq, TaskId};

/// Longest blob, bytes.
pub const MAX_BLOB: usize = 16 * 1024 * 1024;
/// Most bytes of chunks in one pack, before compression.
pub const MAX_PACK: usize = 8 * 1024 * 1024;
/// Longest manifest before compression, bytes: some 200,000 files.
pub const MAX_MANIFEST: usize = 64 * 1024 * 1024;
/// Longest path below a root, bytes.
pub const MAX_PATH: usize = 4095;
/// Longest name of a file, bytes.
const MAX_NAME: usize = 255;
/// Most folders within each other.
pub const MAX_DEPTH: usize = 256;

/// First byte of an encoded manifest; another form gets another one.
const FORM: u8 = 1;

/// Names bytes: their SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobId(pub [u8; 32]);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a blob's name is 64 hexadecimal digits")]
pub struct NoBlobId;

impl FromStr for BlobId {
    type Err = NoBlobId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(NoBlobId);
        }
        let mut id = [0; 32];
        for (byte, pair) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| NoBlobId)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| NoBlobId)?;
        }
        Ok(Self(id))
    }
}

/// Where a checkpoint's snapshot is, and what of the log it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The task that took it: its blobs lie together.
    pub home: TaskId,
    /// The manifest's name.
    pub manifest: BlobId,
    /// What the agent had written when it was taken: of its epoch, the records before this one. What lies between and the
    /// checkpoint's own record is done again by whoever goes on from it.
    pub until: Seq,
    /// Files in it.
    pub files: u64,
    /// Bytes of their contents.
    pub bytes: u64,
}

/// A snapshot's contents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Where the chunks are.
    pub packs: Vec<Pack>,
    /// What files are made of.
    pub chunks: Vec<Chunk>,
    /// The folders.
    pub roots: Vec<Root>,
}

/// A blob that holds chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// Its name.
    pub id: BlobId,
    /// Bytes of chunks in it; a snapshot may need only some of them.
    pub raw: u32,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// SHA-256 of it.
    pub id: BlobId,
    /// Index of its pack.
    pub pack: u32,
    /// Where in the pack it begins.
    pub at: u32,
    /// Its bytes.
    pub len: u32,
}

/// A folder that was snapshotted, under the name it is known by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Its name; not its path, which may be another one elsewhere.
    pub name: String,
    /// What is in it, by path.
    pub entries: Vec<Entry>,
}

/// Something in a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its path below the root, as bytes: names of files need not be text.
    pub path: Vec<u8>,
    /// What it is.
    pub node: Node,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Node {
    /// A folder.
    Folder(Meta),
    /// A file.
    File {
        /// Mode and time.
        meta: Meta,
        /// Its length.
        size: u64,
        /// What it is made of, in order.
        pieces: Vec<Piece>,
    },
    /// A symbolic link, with what it says.
    Link(Vec<u8>),
}

/// What is kept of a file or folder beside its contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The twelve bits of its mode.
    pub mode: u16,
    /// When it was changed: seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanos: u32,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// The chunk with this index.
    Chunk(u32),
    /// So many zeros that take no space.
    Hole(u64),
}

/// Why a manifest cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are none.
    #[error("not a manifest of a snapshot")]
    Malformed,
    /// A form this build does not know.
    #[error("a manifest of form {0}, which this build does not know")]
    Form(u8),
    /// It takes more than it may.
    #[error("a manifest of {0} bytes is too long: at most {MAX_MANIFEST} before compression, {MAX_BLOB} after it")]
    TooLong(usize),
    /// What it says cannot be.
    #[error("the manifest says what cannot be: {0}")]
    Wrong(String),
}

impl From<DecodeError> for Error {
    fn from(_: DecodeError) -> Self {
        Self::Malformed
    }
}

impl Manifest {
    /// As it is kept: `form byte | length before compression (u32, little endian) | lz4 block`.
    ///
    /// # Errors
    /// [`Error::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let mut plain = Vec::new();
        to_postcard(self, &mut plain);
        let length = u32::try_from(plain.len()).ok().filter(|_| plain.len() <= MAX_MANIFEST);
        let length = length.ok_or(Error::TooLong(plain.len()))?;
        let mut out = vec![FORM];
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&lz4_flex::block::compress(&plain));
        if out.len() > MAX_BLOB { Err(Error::TooLong(out.len())) } else { Ok(out) }
    }

    /// Reads one, and checks all it says.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let (form, rest) = bytes.split_first().ok_or(Error::Malformed)?;
        if *form != FORM {
            return Err(Error::Form(*form));
        }
        let (length, block) = rest.split_first_chunk::<4>().ok_or(Error::Malformed)?;
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_MANIFEST || bytes.len() > MAX_BLOB {
            return Err(Error::TooLong(length.max(bytes.len())));
        }
        // A block of lz4 is at least a 255th of what it stands for: a promise costs nobody more than it brings.
        if length > block.len().saturating_mul(256) {
            return Err(Error::Malformed);
        }
        let mut plain = vec![0; length];
        let found = lz4_flex::block::decompress_into(block, &mut plain).map_err(|_| Error::Malformed)?;
        if found != length {
            return Err(Error::Malformed);
        }
        let manifest: Self = from_postcard(&plain, "manifest")?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Files in it, and bytes of their contents.
    pub fn size(&self) -> (u64, u64) {
        let entries = self.roots.iter().flat_map(|root| &root.entries);
        entries.fold((0, 0), |(files, bytes), entry| match &entry.node {
            Node::File { size, .. } => (files + 1, bytes.saturating_add(*size)),
            Node::Folder(_) | Node::Link(_) => (files, bytes),
        })
    }

    fn check(&self) -> Result<(), Error> {
        let wrong = |what: String| Err(Error::Wrong(what));
        if let Some(pack) = self.packs.iter().find(|pack| pack.raw as usize > MAX_PACK) {
            return wrong(format!("a pack of {} bytes", pack.raw));
        }
        for chunk in &self.chunks {
            let pack = self.packs.get(chunk.pack as usize);
            if pack.is_none_or(|pack| u64::from(chunk.at) + u64::from(chunk.len) > u64::from(pack.raw)) {
                return wrong(format!("chunk {} is in no pack", chunk.id));
            }
        }
        let mut names = BTreeSet::new();
        for root in &self.roots {
            if !is_name(&root.name) || !names.insert(&root.name) {
                return wrong(format!("a root called `{:.64}`", root.name.escape_debug()));
            }
            self.check_root(root)?;
        }
        Ok(())
    }

    fn check_root(&self, root: &Root) -> Result<(), Error> {
        let wrong = |entry: &Entry, what: &str| {
            Err(Error::Wrong(format!("{what}: `{:.255}`", String::from_utf8_lossy(&entry.path).escape_debug())))
        };
        let mut folders = BTreeSet::new();
        let mut last: Option<&[u8]> = None;
        for entry in &root.entries {
            let path = entry.path.as_slice();
            if !is_below(path) {
                return wrong(entry, "a path that leads out of its folder, or nowhere");
            }
            if last.is_some_and(|last| last >= path) {
                return wrong(entry, "a path out of order, or a second time");
            }
            last = Some(path);
            // What comes before is in the set: a folder's path is the beginning of those below it.
            let parent = path.iter().rposition(|byte| *byte == b'/').map(|at| &path[..at]);
            if parent.is_some_and(|parent| !folders.contains(parent)) {
                return wrong(entry, "a path in no folder of the snapshot");
            }
            match &entry.node {
                Node::Folder(meta) => {
                    folders.insert(path);
                    if !meta.is_sound() {
                        return wrong(entry, "a mode or time that cannot be");
                    }
                }
                Node::File { meta, size, pieces } => {
                    if !meta.is_sound() {
                        return wrong(entry, "a mode or time that cannot be");
                    }
                    if self.length(pieces) != Some(*size) || i64::try_from(*size).is_err() {
                        return wrong(entry, "parts that do not make the file");
                    }
                }
                Node::Link(target) => {
                    if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
                        return wrong(entry, "a link that cannot be");
                    }
                }
            }
        }
        Ok(())
    }

    fn length(&self, pieces: &[Piece]) -> Option<u64> {
        pieces.iter().try_fold(0u64, |sum, piece| match piece {
            Piece::Chunk(index) => sum.checked_add(self.chunks.get(*index as usize)?.len.into()),
            Piece::Hole(len) => sum.checked_add(*len),
        })
    }
}

impl Meta {
    fn is_sound(&self) -> bool {
        self.mode <= 0o7777 && self.nanos < 1_000_000_000
    }
}

/// Whether a path leads down from where it begins, step by step.
fn is_below(path: &[u8]) -> bool {
    let mut depth = 0;
    let sound = path.split(|byte| *byte == b'/').all(|name| {
        depth += 1;
        !name.is_empty() && name != b"." && name != b".." && name.len() <= MAX_NAME && !name.contains(&0)
    });
    sound && path.len() <= MAX_PATH && depth <= MAX_DEPTH
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: Meta = Meta { mode: 0o644, seconds: 1, nanos: 2 };

    fn manifest(entries: Vec<Entry>) -> Manifest {
        let id = BlobId([7; 32]);
        Manifest {
            packs: vec![Pack { id, raw: 10 }],
            chunks: vec![Chunk { id, pack: 0, at: 2, len: 8 }],
            roots: vec![Root { name: "workspace".into(), entries }],
        }
    }

    fn folder(path: &str) -> Entry {
        Entry { path: path.into(), node: Node::Folder(META) }
    }

    fn file(path: &str) -> Entry {
        let pieces = vec![Piece::Chunk(0), Piece::Hole(5)];
        Entry { path: path.into(), node: Node::File { meta: META, size: 13, pieces } }
    }

    fn link(path: &str, target: &str) -> Entry {
        Entry { path: path.into(), node: Node::Link(target.into()) }
    }

    /// Sends a manifest through its encoding.
    fn read(manifest: &Manifest) -> Result<Manifest, Error> {
        Manifest::decode(&manifest.encode().expect("it is short"))
    }

    fn refused(manifest: &Manifest) -> String {
        read(manifest).expect_err("it is hostile").to_string()
    }

    #[test]
    fn what_is_sound_is_read_again() {
        let sound = manifest(vec![folder("a"), file("a/b"), link("a/c", "../../etc"), file("z")]);
        assert_eq!(read(&sound), Ok(sound.clone()));
        assert_eq!(sound.size(), (2, 26));
        assert_eq!(read(&Manifest::default()), Ok(Manifest::default()));
    }

    #[test]
    fn no_path_leads_out_of_its_folder() {
        let deep = vec!["d"; MAX_DEPTH + 1].join("/");
        let long = "n".repeat(MAX_NAME + 1);
        for path in ["", "/", "/etc/passwd", "..", "../x", "a/../../x", "a/./b", "a//b", "a/", "x\0y", &deep, &long] {
            let message = refused(&manifest(vec![folder("a"), file(path)]));
            assert!(message.contains("leads out of its folder"), "{path}: {message}");
        }
    }

    #[test]
    fn nothing_lies_below_what_is_no_folder() {
        for entries in [vec![file("a/b")], vec![link("a", "/etc"), file("a/b")], vec![file("a"), file("a/b")]] {
            assert!(refused(&manifest(entries)).contains("in no folder of the snapshot"));
        }
        for entries in [vec![file("b"), file("a")], vec![link("a", "/etc"), file("a")], vec![folder("a"), file("a")]] {
            assert!(refused(&manifest(entries)).contains("out of order, or a second time"));
        }
    }

    #[test]
    fn files_are_made_of_what_there_is() {
        let sound = manifest(vec![file("a")]);
        let with = |change: fn(&mut Manifest)| {
            let mut hostile = sound.clone();
            change(&mut hostile);
            refused(&hostile)
        };
        assert!(with(|it| it.chunks[0].pack = 1).contains("is in no pack"));
        assert!(with(|it| it.chunks[0].at = 3).contains("is in no pack"));
        assert!(with(|it| it.chunks[0].at = u32::MAX).contains("is in no pack"));
        assert!(with(|it| it.packs[0].raw = u32::MAX).contains("a pack of"));
        assert!(with(|it| it.roots.push(it.roots[0].clone())).contains("a root called"));
        assert!(with(|it| it.roots[0].name = "../x".into()).contains("a root called"));
        let pieces = |size, pieces: Vec<Piece>| {
            refused(&manifest(vec![Entry { path: b"a".into(), node: Node::File { meta: META, size, pieces } }]))
        };
        assert!(pieces(9, vec![Piece::Chunk(0)]).contains("do not make the file"));
        assert!(pieces(8, vec![Piece::Chunk(1)]).contains("do not make the file"));
        assert!(pieces(1, vec![Piece::Hole(u64::MAX), Piece::Hole(2)]).contains("do not make the file"));
        assert!(pieces(u64::MAX, vec![Piece::Hole(u64::MAX)]).contains("do not make the file"));
        let meta = Meta { mode: 0o170_000, ..META };
        assert!(refused(&manifest(vec![Entry { path: b"a".into(), node: Node::Folder(meta) }])).contains("a mode"));
    }

    #[test]
    fn a_promise_of_length_costs_nothing() {
        let mut bomb = vec![FORM];
        bomb.extend_from_slice(&(MAX_MANIFEST as u32).to_le_bytes());
        bomb.extend_from_slice(&[0; 16]);
        assert_eq!(Manifest::decode(&bomb), Err(Error::Malformed));
        bomb[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Manifest::decode(&bomb), Err(Error::TooLong(u32::MAX as usize)));
        assert_eq!(Manifest::decode(&[9, 0]), Err(Error::Form(9)));
        assert_eq!(Manifest::decode(&[]), Err(Error::Malformed));
    }

    #[test]
    fn names_of_blobs_are_read_as_they_are_written() {
        let id = BlobId([0xa5; 32]);
        assert_eq!(id.to_string().parse(), Ok(id));
        let upper = id.to_string().to_uppercase();
        for wrong in ["", "a5", &upper, &"../".repeat(22)[..64], &"é".repeat(32)] {
            assert_eq!(wrong.parse::<BlobId>(), Err(NoBlobId), "{wrong}");
        }
    }
}
