//! What is kept at a place that others can read, closed under a key that is kept elsewhere.
//!
//! Every item has a data key of its own; the master key closes only those. So it closes few bytes however large the items
//! are, and one day another master key can take over without anything being closed anew but data keys. An item is bound to
//! a context, a text that says what it is: whoever can write the store cannot pass one item for another.
//!
//! Must never know: where items are kept, what is in them.

use std::fmt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use zeroize::Zeroizing;

use crate::{Error, files, secret};

const FILE: &str = "master.key";
/// Says how what follows is laid out: id of the master key, nonce, closed data key, closed item.
const FORMAT: u8 = 1;
const ID: usize = 8;
const KEY: usize = 32;
const TAG: usize = 16;
/// Bytes before the closed item.
const HEAD: usize = 1 + ID + NONCE_LEN + KEY + TAG;

/// Bytes that a closed item has more than the item.
pub const OVERHEAD: usize = HEAD + TAG;

/// Tells master keys apart, and tells nothing about them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; ID]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&secret::to_hex(&self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Opens and closes items. Clones share nothing but the key.
#[derive(Clone)]
pub struct MasterKey {
    key: LessSafeKey,
    id: KeyId,
}

/// Why an item cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It was closed under another master key.
    #[error("it was closed with the master key {with}, and this is {this}")]
    OtherKey {
        /// The key that would open it.
        with: KeyId,
        /// The key that was tried.
        this: KeyId,
    },
    /// A newer build closed it.
    #[error("it has format {0}: run a newer build")]
    Format(u8),
    /// It was changed, cut, or stands in the place of another.
    #[error("it is damaged, or not what it stands for")]
    Damaged,
}

impl MasterKey {
    /// A new one, of the operating system's generator.
    pub fn generate() -> Self {
        Self::of(&Zeroizing::new(secret::random()))
    }

    /// Reads `master.key` (mode 0600) in `dir`, or makes it. Of processes that race to make it, all get the same.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] when it is damaged: it is never replaced, what it closed could not be opened again.
    pub fn open_or_create(dir: &Path) -> Result<Self, Error> {
        if let Some(key) = Self::open(dir)? {
            return Ok(key);
        }
        files::create_folder(dir)?;
        let text = Zeroizing::new(STANDARD.encode(*Zeroizing::new(secret::random::<KEY>())) + "\n");
        let path = dir.join(FILE);
        let bytes = Zeroizing::new(files::create(&path, text.as_bytes())?);
        Self::of_file(&path, &bytes)
    }

    /// Reads `master.key` in `dir`; `None` when there is none.
    ///
    /// # Errors
    /// Those of [`MasterKey::open_or_create`].
    pub fn open(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE);
        files::read(&path)?.map(|bytes| Self::of_file(&path, &Zeroizing::new(bytes))).transpose()
    }

    /// From a setting: the key itself, or the absolute path of a file that holds it.
    ///
    /// # Errors
    /// [`Error::BadMasterKey`], which does not show the setting; [`Error::Io`], [`Error::BadFile`].
    pub fn from_setting(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if let Some(key) = Self::parse(text) {
            return Ok(key);
        }
        let path = Path::new(text);
        if !path.is_absolute() {
            return Err(Error::BadMasterKey);
        }
        let missing = || Error::bad_file(path, "there is no such file: it should hold the master key");
        Self::of_file(path, &Zeroizing::new(files::read(path)?.ok_or_else(missing)?))
    }

    /// Says which key it is.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Closes an item. `context` says what it is, and must be said again to open it; it is not kept.
    pub fn seal(&self, context: &str, item: &[u8]) -> Vec<u8> {
        let data_key = Zeroizing::new(secret::random::<KEY>());
        let nonce = secret::random::<NONCE_LEN>();
        let mut sealed = Vec::with_capacity(item.len() + OVERHEAD);
        sealed.push(FORMAT);
        sealed.extend(self.id.0);
        sealed.extend(nonce);
        let mut wrapped = Zeroizing::new(data_key.to_vec());
        close(&self.key, nonce, context, &mut wrapped);
        sealed.extend_from_slice(&wrapped);
        let mut body = item.to_vec();
        // A key that closes one item needs no nonce.
        close(&key(&data_key), [0; NONCE_LEN], context, &mut body);
        sealed.append(&mut body);
        sealed
    }

    /// Opens what [`MasterKey::seal`] closed with the same context. The memory is wiped when the item is dropped.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_item(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let (format, rest) = sealed.split_first().ok_or(OpenError::Damaged)?;
        if *format != FORMAT {
            return Err(OpenError::Format(*format));
        }
        let (id, rest) = rest.split_first_chunk().ok_or(OpenError::Damaged)?;
        let with = KeyId(*id);
        if with != self.id {
            return Err(OpenError::OtherKey { with, this: self.id });
        }
        let (nonce, rest) = rest.split_first_chunk().ok_or(OpenError::Damaged)?;
        let (wrapped, body) = rest.split_at_checked(KEY + TAG).ok_or(OpenError::Damaged)?;
        let data_key = open(&self.key, *nonce, context, wrapped)?;
        let data_key = Zeroizing::new(<[u8; KEY]>::try_from(&data_key[..]).map_err(|_| OpenError::Damaged)?);
        open(&key(&data_key), [0; NONCE_LEN], context, body)
    }

    fn of(bytes: &[u8; KEY]) -> Self {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, bytes), b"ado master key id");
        let (id, _) = tag.as_ref().split_first_chunk().expect("a tag has 32 bytes");
        Self { key: key(bytes), id: KeyId(*id) }
    }

    /// 32 bytes in base64 (44 characters, the last one `=`, so that it is never a path) or 64 hexadecimal digits.
    fn parse(text: &str) -> Option<Self> {
        let bytes = match text.len() {
            44 => Zeroizing::new(STANDARD.decode(text).ok()?),
            64 if text.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                let digits = |at: usize| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
                Zeroizing::new((0..64).step_by(2).map(digits).collect::<Option<_>>()?)
            }
            _ => return None,
        };
        Some(Self::of(&Zeroizing::new(<[u8; KEY]>::try_from(&bytes[..]).ok()?)))
    }

    fn of_file(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let key = std::str::from_utf8(bytes).ok().and_then(|text| Self::parse(text.trim()));
        key.ok_or_else(|| {
            Error::bad_file(
                path,
                "no master key is in it (32 bytes in base64 or hexadecimal): restore it from a backup",
            )
        })
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MasterKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// By its id, which follows from the key.
impl PartialEq for MasterKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for MasterKey {}

fn key(bytes: &[u8; KEY]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("the length is this algorithm's"))
}

fn close(key: &LessSafeKey, nonce: [u8; NONCE_LEN], context: &str, bytes: &mut Vec<u8>) {
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(nonce, Aad::from(context.as_bytes()), bytes).expect("no item has 64 GiB");
}

fn open(
    key: &LessSafeKey,
    nonce: [u8; NONCE_LEN],
    context: &str,
    closed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let mut bytes = Zeroizing::new(closed.to_vec());
    let nonce = Nonce::assume_unique_for_key(nonce);
    let opened = key.open_in_place(nonce, Aad::from(context.as_bytes()), &mut bytes);
    let len = opened.map_err(|_| OpenError::Damaged)?.len();
    bytes.truncate(len);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const HEX: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    #[test]
    fn what_is_closed_opens_with_the_same_key_and_context_only() {
        let key = MasterKey::generate();
        for item in [&b""[..], b"x", &[7; 100_000]] {
            let sealed = key.seal("a", item);
            assert_eq!(sealed.len(), item.len() + OVERHEAD);
            assert_eq!(key.open_item("a", &sealed).unwrap()[..], *item);
            assert_eq!(key.open_item("b", &sealed), Err(OpenError::Damaged), "another item's place");
            let other = MasterKey::generate();
            assert_eq!(other.open_item("a", &sealed), Err(OpenError::OtherKey { with: key.id(), this: other.id() }));
        }
        assert_ne!(key.seal("a", b"x"), key.seal("a", b"x"));
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_noticed() {
        let key = MasterKey::generate();
        let sealed = key.seal("a", b"hush");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 0x10;
            let refused = key.open_item("a", &changed).unwrap_err();
            let expected = match at {
                0 => matches!(refused, OpenError::Format(0x11)),
                1..=ID => matches!(refused, OpenError::OtherKey { .. }),
                _ => refused == OpenError::Damaged,
            };
            assert!(expected, "{at}: {refused:?}");
            assert!(key.open_item("a", &sealed[..at]).is_err());
        }
        // Two items of one key and context: neither's parts fit the other.
        let other = key.seal("a", b"hush");
        let mixed = [&sealed[..HEAD], &other[HEAD..]].concat();
        assert_eq!(key.open_item("a", &mixed), Err(OpenError::Damaged));
    }

    /// Made by another implementation of the layout.
    #[test]
    fn an_item_of_an_earlier_build_opens() {
        let key = MasterKey::from_setting(TEXT).unwrap();
        let sealed = STANDARD.decode(include_str!("../tests/golden/envelope.v1").trim()).unwrap();
        assert_eq!(key.open_item("secret/default/token", &sealed).unwrap()[..], *b"hush");
    }

    #[test]
    fn a_key_is_read_as_people_make_them() {
        let key = MasterKey::from_setting(TEXT).unwrap();
        assert_eq!(MasterKey::from_setting(&format!(" {HEX}\n")).unwrap(), key);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, format!("{TEXT}\r\n")).unwrap();
        assert_eq!(MasterKey::from_setting(path.to_str().unwrap()).unwrap(), key);
        for bad in ["", "hunter2", &TEXT[1..], &HEX[1..], &HEX.replace('0', "g"), "master.key"] {
            let error = MasterKey::from_setting(bad).unwrap_err().to_string();
            assert!(error.contains("openssl rand -base64 32"), "{error}");
            assert!(bad.is_empty() || !error.contains(bad), "it is shown: {error}");
        }
        let error = MasterKey::from_setting("/nowhere/key").unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/key: there is no such file"), "{error}");
        assert_eq!(format!("{key:?}"), format!("MasterKey {{ id: {}, .. }}", key.id()));
    }

    #[test]
    fn a_file_is_made_once_and_a_damaged_one_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("new");
        assert_eq!(MasterKey::open(&dir).unwrap(), None);
        let seen: Vec<_> = std::thread::scope(|scope| {
            let open = || MasterKey::open_or_create(&dir).unwrap();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(seen.iter().all(|key| *key == seen[0]));
        assert_eq!(MasterKey::open(&dir).unwrap(), Some(seen[0].clone()));
        std::fs::write(dir.join(FILE), "half a k").unwrap();
        let error = MasterKey::open_or_create(&dir).unwrap_err().to_string();
        assert!(error.contains("master.key") && error.contains("backup"), "{error}");
        assert_eq!(std::fs::read(dir.join(FILE)).unwrap(), b"half a k");
    }
}
