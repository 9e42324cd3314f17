//! Files cut into chunks, where their contents say, and chunks put together into packs.
//!
//! A pack is kept as `form byte | length before compression (u32, little endian) | lz4 block`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use ado_proto::BlobId;
use ado_proto::snapshot::{MAX_PACK, Manifest};
use fastcdc::v2020::FastCDC;

use super::{Error, Part, file_error};

/// Chunks, bytes. Smaller ones find more that is the same and make longer manifests.
const MIN: usize = 16 * 1024;
const AVERAGE: usize = 64 * 1024;
const MAX: usize = 256 * 1024;
/// Bytes of chunks in a pack, to within one. One that is sent in vain costs no more than this.
const PACK: usize = 4 * 1024 * 1024;
/// Most of a file that is held at a time.
const WINDOW: usize = 4 * 1024 * 1024;
const _: () = assert!(PACK + MAX <= MAX_PACK && WINDOW >= 2 * MAX);

const FORM: u8 = 1;
const HEAD: usize = 5;

/// SHA-256.
pub(super) fn hash(bytes: &[u8]) -> BlobId {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    BlobId(digest.as_ref().try_into().expect("a digest of 32 bytes"))
}

/// A pack's chunks, if it is one of so many bytes.
pub(super) fn open(bytes: &[u8], raw: u32) -> Option<Vec<u8>> {
    let (head, block) = bytes.split_first_chunk::<HEAD>()?;
    let expected = raw as usize;
    if head[0] != FORM || head[1..] != raw.to_le_bytes() || expected > MAX_PACK {
        return None;
    }
    let mut plain = vec![0; expected];
    let found = lz4_flex::block::decompress_into(block, &mut plain).ok()?;
    (found == expected).then_some(plain)
}

/// Where a chunk is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) pack: BlobId,
    pub(super) at: u32,
    pub(super) len: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Packer {
    staging: PathBuf,
    /// Chunks in packs.
    known: BTreeMap<BlobId, Place>,
    /// Bytes in each pack.
    packs: BTreeMap<BlobId, u32>,
    /// Those of them that are in the staging folder.
    staged: BTreeSet<BlobId>,
    /// The pack that is being filled, and where its chunks lie.
    open: Vec<u8>,
    in_open: BTreeMap<BlobId, (u32, u32)>,
    window: Vec<u8>,
}

impl Packer {
    pub(super) fn new(staging: PathBuf) -> Self {
        Self {
            staging,
            known: BTreeMap::new(),
            packs: BTreeMap::new(),
            staged: BTreeSet::new(),
            open: Vec::new(),
            in_open: BTreeMap::new(),
            window: Vec::new(),
        }
    }

    /// A snapshot's packs are durable. One of which it needs less than half is not built upon: what it needs of it is packed
    /// anew when it is met, so that what is kept is at most twice what is needed.
    pub(super) fn know(&mut self, manifest: &Manifest) {
        let mut needed: BTreeMap<u32, u64> = BTreeMap::new();
        for chunk in &manifest.chunks {
            *needed.entry(chunk.pack).or_default() += u64::from(chunk.len);
        }
        let is_dense = |index: u32| {
            let raw = manifest.packs[index as usize].raw;
            needed.get(&index).is_some_and(|needed| needed * 2 >= u64::from(raw))
        };
        for chunk in manifest.chunks.iter().filter(|chunk| is_dense(chunk.pack)) {
            let pack = manifest.packs[chunk.pack as usize];
            self.packs.insert(pack.id, pack.raw);
            self.known.insert(chunk.id, Place { pack: pack.id, at: chunk.at, len: chunk.len });
        }
    }

    /// Forgets everything, what is in the staging folder too.
    pub(super) fn forget(&mut self) {
        self.known.clear();
        self.packs.clear();
        self.open = Vec::new();
        self.in_open.clear();
        self.window = Vec::new();
        for pack in std::mem::take(&mut self.staged) {
            let _ = fs::remove_file(self.staging.join(pack.to_string()));
        }
        // Where it is not empty somebody else's packs are in it.
        let _ = fs::remove_dir(&self.staging);
    }

    pub(super) fn is_staged(&self, pack: &BlobId) -> bool {
        self.staged.contains(pack)
    }

    pub(super) fn knows(&self, parts: &[Part]) -> bool {
        parts.iter().all(|part| match part {
            Part::Chunk(id) => self.known.contains_key(id) || self.in_open.contains_key(id),
            Part::Hole(_) => true,
        })
    }

    /// Bytes of data.
    pub(super) fn length(&self, part: &Part) -> u64 {
        match part {
            Part::Hole(_) => 0,
            Part::Chunk(id) => {
                let open = || self.in_open.get(id).map(|(_, len)| *len);
                self.known.get(id).map(|place| place.len).or_else(open).map_or(0, u64::from)
            }
        }
    }

    /// Where a chunk is that was cut or is known. Everything is sealed.
    pub(super) fn place(&self, chunk: &BlobId) -> Place {
        self.known[chunk]
    }

    pub(super) fn raw(&self, pack: &BlobId) -> u32 {
        self.packs[pack]
    }

    /// Cuts what can be read into chunks. Bytes read.
    pub(super) fn cut(
        &mut self,
        from: &mut impl Read,
        stop: &AtomicBool,
        most: u64,
        parts: &mut Vec<Part>,
        failed: &impl Fn(io::Error) -> Error,
    ) -> Result<u64, Error> {
        let mut window = std::mem::take(&mut self.window);
        window.clear();
        let mut total = 0;
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let room = WINDOW - window.len();
            let read = from.take(room as u64).read_to_end(&mut window).map_err(failed)?;
            total += read as u64;
            if total > most {
                return Err(Error::TooLarge(most));
            }
            let ended = read < room;
            let mut done = 0;
            for chunk in FastCDC::new(&window, MIN, AVERAGE, MAX) {
                let end = chunk.offset + chunk.length;
                // What follows decides where the last one ends.
                if !ended && end == window.len() {
                    break;
                }
                let bytes = &window[chunk.offset..end];
                let id = hash(bytes);
                self.add(id, bytes)?;
                parts.push(Part::Chunk(id));
                done = end;
            }
            window.drain(..done);
            if ended {
                self.window = window;
                return Ok(total);
            }
        }
    }

    fn add(&mut self, id: BlobId, bytes: &[u8]) -> Result<(), Error> {
        if self.known.contains_key(&id) || self.in_open.contains_key(&id) {
            return Ok(());
        }
        let place = (small(self.open.len()), small(bytes.len()));
        self.in_open.insert(id, place);
        self.open.extend_from_slice(bytes);
        if self.open.len() >= PACK { self.seal() } else { Ok(()) }
    }

    /// Closes the pack that is being filled.
    pub(super) fn seal(&mut self) -> Result<(), Error> {
        if self.open.is_empty() {
            return Ok(());
        }
        let raw = small(self.open.len());
        let mut bytes = vec![FORM];
        bytes.extend_from_slice(&raw.to_le_bytes());
        bytes.extend_from_slice(&lz4_flex::block::compress(&self.open));
        let id = hash(&bytes);
        let path = self.staging.join(id.to_string());
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.staging);
        made.and_then(|()| fs::write(&path, &bytes))
            .map_err(|source| file_error("write", path.as_os_str().as_encoded_bytes(), source))?;
        self.open.clear();
        self.packs.insert(id, raw);
        self.staged.insert(id);
        let places = std::mem::take(&mut self.in_open);
        self.known.extend(places.into_iter().map(|(chunk, (at, len))| (chunk, Place { pack: id, at, len })));
        Ok(())
    }
}

fn small(length: usize) -> u32 {
    u32::try_from(length).expect("a pack is at most MAX_PACK long")
}
