//! Who is who: the mesh's private CA, join strings, certificates, TLS configurations, peer identity.
//!
//! Must never know: tasks, sockets, storage other than its own key files.

use std::collections::BTreeSet;
use std::sync::Arc;

use ado_proto::{Principal, Timestamp};
use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;

/// The name every controller's certificate carries and every client asks for, whatever address it dials.
pub const SERVER_NAME: &str = "controller.ado";

/// Placeholder.
#[derive(Clone)]
pub struct ClientTls {
    _config: Arc<rustls::ClientConfig>,
}

/// Placeholder.
#[derive(Clone)]
pub struct ServerTls {
    _config: Arc<rustls::ServerConfig>,
}

/// Serials of certificates that are denied. Clones share it.
#[derive(Clone, Default)]
pub struct Denied(Arc<ArcSwap<BTreeSet<String>>>);

impl Denied {
    /// Replaces the set.
    pub fn set(&self, serials: impl IntoIterator<Item = String>) {
        self.0.store(Arc::new(serials.into_iter().collect()));
    }

    /// Whether a serial is denied.
    pub fn contains(&self, serial: &str) -> bool {
        self.0.load().contains(serial)
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Somebody who wants to enrol, and may do nothing else.
    Joining,
    /// Somebody with a certificate of the mesh's CA.
    Verified(VerifiedPeer),
}

/// Proof that the other end holds a certificate of the mesh. Made by [`verify_peer`] only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    principal: Principal,
    serial: String,
    not_after: Timestamp,
}

impl VerifiedPeer {
    /// Who it is.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// Its certificate's serial number, lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The end of its certificate's life.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

/// Why a peer is not let in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// `ado/1` without a certificate.
    #[error("no certificate: `ado join` first")]
    NoCertificate,
    /// Its certificate names nobody.
    #[error("the certificate names no identity of this mesh")]
    NoIdentity,
    /// Its certificate's life is over, or has not begun.
    #[error("the certificate of {0} has expired")]
    Expired(String),
    /// Its certificate is denied.
    #[error("the certificate of {0} has been revoked")]
    Revoked(String),
    /// The protocol is not ours.
    #[error("unknown protocol")]
    UnknownProtocol,
}

/// Turns what TLS says into who it is. The chain has been verified by TLS; this enforces the rest.
///
/// # Errors
/// [`PeerError`] when the peer may not come in.
pub fn verify_peer(
    _alpn: &[u8],
    _chain: Option<&[CertificateDer<'_>]>,
    _denied: &Denied,
    _now: Timestamp,
) -> Result<Peer, PeerError> {
    unimplemented!()
}
