//! Entries of a file: a length, a checksum, the bytes. Pure.

use bytes::{Buf, Bytes};

/// Most bytes of one entry.
pub(super) const MAX_ENTRY: usize = 4 * 1024 * 1024;
/// Bytes before an entry's own: its length (u32, little endian) and the beginning of its SHA-256.
const HEAD: usize = 4 + CHECK;
const CHECK: usize = 8;

/// Appends an entry to `out`.
pub(super) fn push(entry: &[u8], out: &mut Vec<u8>) {
    debug_assert!(entry.len() <= MAX_ENTRY, "an entry of {} bytes", entry.len());
    let length = u32::try_from(entry.len()).expect("an entry is at most MAX_ENTRY long");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&check(entry));
    out.extend_from_slice(entry);
}

/// Bytes an entry takes in a file.
pub(super) fn framed(entry: &[u8]) -> u64 {
    (HEAD + entry.len()) as u64
}

/// Walks the entries of `bytes` up to the first that is not whole. Copies nothing.
pub(super) struct Entries {
    rest: Bytes,
    /// Bytes of the whole entries walked so far.
    pub(super) valid: u64,
}

impl Entries {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { rest: bytes, valid: 0 }
    }
}

impl Iterator for Entries {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let length = u32::from_le_bytes(self.rest.get(..4)?.try_into().ok()?) as usize;
        let sum: [u8; CHECK] = self.rest.get(4..HEAD)?.try_into().ok()?;
        if length > MAX_ENTRY || self.rest.len() < HEAD + length {
            return None;
        }
        let entry = self.rest.slice(HEAD..HEAD + length);
        if check(&entry) != sum {
            return None;
        }
        self.rest.advance(HEAD + length);
        self.valid += (HEAD + length) as u64;
        Some(entry)
    }
}

fn check(entry: &[u8]) -> [u8; CHECK] {
    let digest = ring::digest::digest(&ring::digest::SHA256, entry);
    digest.as_ref()[..CHECK].try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        entries.iter().for_each(|entry| push(entry, &mut out));
        out
    }

    proptest! {
        #[test]
        fn what_is_read_is_a_prefix_of_what_was_written(
            entries in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
            cut in any::<proptest::sample::Index>(),
            flip in any::<proptest::sample::Index>(),
        ) {
            let whole = file(&entries);
            let read: Vec<_> = Entries::new(whole.clone().into()).map(|entry| entry.to_vec()).collect();
            prop_assert_eq!(&read, &entries);

            let cut = cut.index(whole.len() + 1);
            let mut walk = Entries::new(whole[..cut].to_vec().into());
            let read: Vec<_> = walk.by_ref().map(|entry| entry.to_vec()).collect();
            prop_assert_eq!(&read[..], &entries[..read.len()]);
            prop_assert_eq!(walk.valid as usize, file(&read).len());
            prop_assert!(cut < whole.len() || read.len() == entries.len());

            if !whole.is_empty() {
                let mut flipped = whole.clone();
                let at = flip.index(whole.len());
                flipped[at] ^= 0x10;
                let read: Vec<_> = Entries::new(flipped.into()).map(|entry| entry.to_vec()).collect();
                prop_assert!(read.len() < entries.len());
                prop_assert_eq!(&read[..], &entries[..read.len()]);
            }
        }
    }
}
