//! What can go wrong here, in words for whoever has to mend it.

use std::io;
use std::path::{Path, PathBuf};

/// Why something about keys or certificates did not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("cannot {doing} {path}", path = path.display())]
    Io {
        /// A verb: read, write, create.
        doing: &'static str,
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is there and is not what it should be.
    #[error("{path}: {problem}", path = path.display())]
    BadFile {
        /// Which one.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// This process has no certificate yet.
    #[error("no identity in {path}: `ado join` first", path = .0.display())]
    NoIdentity(PathBuf),
    /// A certificate request that must not be signed.
    #[error("bad certificate request: {0}")]
    BadRequest(String),
    /// A name that no certificate may carry.
    #[error("`{0}` cannot be certified: names are 1 to 63 of a-z A-Z 0-9 . _ @ -")]
    BadName(String),
    /// A certificate chain that is not a leaf and the CA that signed it.
    #[error("bad certificate: {0}")]
    BadCertificate(String),
    /// A certificate of somebody else's key.
    #[error("the certificate is not of this key")]
    KeyMismatch,
    /// A new certificate of another mesh, where one of this mesh was expected.
    #[error("the certificate was signed by another CA: `ado join` that mesh as a context of its own")]
    OtherCa,
    /// Only a controller's certificate can serve.
    #[error("{0} is no controller: only a controller's certificate can serve")]
    NotController(String),
    /// A connection that only joins has no identity.
    #[error("a joining connection has no identity to replace")]
    Joining,
    /// Text that is no hash of a CA key.
    #[error("`{0}` is no CA hash: it has 64 hexadecimal digits")]
    BadPin(String),
    /// Text that is no master key.
    #[error(
        "a master key is 32 random bytes in base64 or hexadecimal, or the absolute path of a file with them: make one with \
         `openssl rand -base64 32`"
    )]
    BadMasterKey,
    /// Text that is no join string.
    #[error(
        "bad join string: {0}; it looks like ado1:<host:port,...>:<64 hexadecimal digits>:<secret>, all of one piece"
    )]
    BadJoinString(String),
    /// The cryptography library failed.
    #[error("cannot {doing}: {cause}")]
    Crypto {
        /// What was attempted.
        doing: &'static str,
        /// What the library says.
        cause: String,
    },
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.into(), source }
    }

    pub(crate) fn crypto<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| Self::Crypto { doing, cause: cause.to_string() }
    }

    pub(crate) fn bad_file(path: &Path, problem: impl Into<String>) -> Self {
        Self::BadFile { path: path.into(), problem: problem.into() }
    }
}
