//! Secrets a server keeps over restarts, so that peers notice a restart at their next packet.

use std::path::Path;

use zeroize::Zeroizing;

use crate::{Error, files, secret};

/// Keys of a server's transport, the same after every restart.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerSecrets {
    /// Key of stateless resets.
    pub reset: [u8; 64],
    /// Key of connection ids.
    pub connection_id: u64,
    /// Key of address-validation tokens.
    pub token: [u8; 64],
}

const FILE: &str = "server.keys";
const LEN: usize = 64 + 8 + 64;

impl ServerSecrets {
    /// Reads `server.keys` (mode 0600) in `dir`, or makes it. Of processes that race to make it, all get the same keys.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::BadFile`] when the file has another size.
    pub fn open_or_create(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let bytes = match files::read(&path)? {
            Some(bytes) => bytes,
            None => {
                files::create_folder(dir)?;
                files::create(&path, &secret::random::<LEN>())?
            }
        };
        Self::from_bytes(&bytes).ok_or_else(|| {
            Error::bad_file(
                &path,
                "not a file of server keys: delete it, and peers take some seconds to reconnect once",
            )
        })
    }

    /// New ones, that are in no file.
    pub fn generate() -> Self {
        Self::from_bytes(&secret::random::<LEN>()).expect("the length is right")
    }

    /// As [`ServerSecrets::from_bytes`] reads them: a secret.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([&self.reset[..], &self.connection_id.to_le_bytes(), &self.token].concat())
    }

    /// `None`: the length is another.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (reset, rest) = bytes.split_first_chunk()?;
        let (connection_id, rest) = rest.split_first_chunk()?;
        let token = rest.try_into().ok()?;
        Some(Self { reset: *reset, connection_id: u64::from_le_bytes(*connection_id), token })
    }
}

impl std::fmt::Debug for ServerSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerSecrets").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_differ_between_servers() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = ServerSecrets::open_or_create(one.path()).unwrap();
        assert_eq!(first, ServerSecrets::open_or_create(one.path()).unwrap());
        let other = ServerSecrets::open_or_create(two.path()).unwrap();
        assert!(first.reset != other.reset && first.token != other.token && first.reset != first.token);
        assert_ne!(first.connection_id, other.connection_id);
        assert_eq!(format!("{first:?}"), "ServerSecrets { .. }");
        let made = ServerSecrets::generate();
        assert_eq!(ServerSecrets::from_bytes(&made.to_bytes()), Some(made));
    }

    #[test]
    fn a_file_of_another_size_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0, LEN - 1, LEN + 1] {
            std::fs::write(dir.path().join(FILE), vec![7; len]).unwrap();
            let error = ServerSecrets::open_or_create(dir.path()).unwrap_err().to_string();
            assert!(error.contains("server.keys") && error.contains("delete it"), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_them() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        ServerSecrets::open_or_create(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().mode() & 0o777, 0o600);
    }
}
