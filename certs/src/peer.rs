//! Who is at the other end of a connection.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ado_proto::{Principal, Timestamp};
use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use crate::{ALPN_JOIN, ALPN_MESH, secret};

/// Clocks of two machines may differ by this much before a certificate is too old or too young.
const SKEW: Duration = Duration::from_secs(60);

/// Serials of certificates that are denied. Clones share it.
#[derive(Debug, Clone, Default)]
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

    /// Whether its certificate has been denied since: asked at every request, as a connection outlives a revocation.
    pub fn is_denied(&self, denied: &Denied) -> bool {
        denied.contains(&self.serial)
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
    #[error("the certificate of {0} has expired, or the clocks of the two machines differ: `ado join` again")]
    Expired(String),
    /// Its certificate is denied.
    #[error("the certificate of {0} has been revoked")]
    Revoked(String),
    /// The protocol is not ours.
    #[error("unknown protocol")]
    UnknownProtocol,
}

/// Turns what TLS says into who it is.
///
/// `chain` must be what TLS verified against the CA on this connection, or on the one whose session it resumed, or what
/// [`Ca::issue`](crate::Ca::issue) has just signed: no signature is checked here. Everything TLS does not ask again on a
/// resumed connection is: life and denial.
///
/// # Errors
/// [`PeerError`] when the peer may not come in.
pub fn verify_peer(
    alpn: &[u8],
    chain: Option<&[CertificateDer<'_>]>,
    denied: &Denied,
    now: Timestamp,
) -> Result<Peer, PeerError> {
    match alpn {
        ALPN_JOIN => return Ok(Peer::Joining),
        ALPN_MESH => {}
        _ => return Err(PeerError::UnknownProtocol),
    }
    let leaf = chain.and_then(<[_]>::first).ok_or(PeerError::NoCertificate)?;
    let leaf = Leaf::parse(leaf).ok_or(PeerError::NoIdentity)?;
    if denied.contains(&leaf.serial) {
        return Err(PeerError::Revoked(leaf.principal.to_string()));
    }
    if leaf.not_after.after(SKEW) < now || now.after(SKEW) < leaf.not_before {
        return Err(PeerError::Expired(leaf.principal.to_string()));
    }
    Ok(Peer::Verified(VerifiedPeer { principal: leaf.principal, serial: leaf.serial, not_after: leaf.not_after }))
}

/// What a leaf certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) principal: Principal,
    pub(crate) serial: String,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

impl Leaf {
    /// `None` when it is no certificate, or names not exactly one principal.
    pub(crate) fn parse(der: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
        Self::of(&certificate)
    }

    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Option<Self> {
        let names = &certificate.subject_alternative_name().ok()??.value.general_names;
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
        let (Some(uri), None) = (uris.next(), uris.next()) else { return None };
        let validity = certificate.validity();
        Some(Self {
            principal: uri.parse().ok()?,
            serial: secret::to_hex(certificate.raw_serial()),
            not_before: Timestamp(validity.not_before.timestamp().checked_mul(1_000_000)?),
            not_after: Timestamp(validity.not_after.timestamp().checked_mul(1_000_000)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;
    use crate::{Ca, KeyRequest};

    const NOW: Timestamp = Timestamp(1_893_456_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn chain_with(uris: &[&str]) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::new(["controller.ado".to_owned()]).unwrap();
        for uri in uris {
            params.subject_alt_names.push(SanType::URI((*uri).try_into().unwrap()));
        }
        vec![params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()]
    }

    fn check(alpn: &[u8], chain: Option<&[CertificateDer<'_>]>) -> Result<Peer, PeerError> {
        verify_peer(alpn, chain, &Denied::default(), NOW)
    }

    #[test]
    fn a_certificate_names_exactly_one_principal() {
        let ann = "ado://default/user/ann";
        assert!(matches!(check(ALPN_MESH, Some(&chain_with(&[ann]))), Ok(Peer::Verified(_))));
        for uris in [&[][..], &["https://example.org"], &["ado://default/king/ann"], &[ann, "ado://default/admin/ann"]]
        {
            assert_eq!(check(ALPN_MESH, Some(&chain_with(uris))), Err(PeerError::NoIdentity), "{uris:?}");
        }
        let garbage = [CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])];
        assert_eq!(check(ALPN_MESH, Some(&garbage)), Err(PeerError::NoIdentity));
    }

    #[test]
    fn the_protocol_decides_what_is_asked() {
        assert_eq!(check(ALPN_MESH, None), Err(PeerError::NoCertificate));
        assert_eq!(check(ALPN_MESH, Some(&[])), Err(PeerError::NoCertificate));
        assert_eq!(check(ALPN_JOIN, None), Ok(Peer::Joining));
        for alpn in [&b""[..], b"ado/2", b"ado-join/12"] {
            assert_eq!(check(alpn, Some(&chain_with(&["ado://default/user/ann"]))), Err(PeerError::UnknownProtocol));
        }
    }

    #[test]
    fn what_was_just_issued_is_good_for_its_life() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path(), NOW).unwrap();
        let request = KeyRequest::new().unwrap();
        let who = "ado://default/worker/w1".parse().unwrap();
        let issued = ca.issue(request.csr_der(), &who, HOUR, NOW).unwrap();
        let at = |now| verify_peer(ALPN_MESH, Some(&issued.chain), &Denied::default(), now);
        let Ok(Peer::Verified(peer)) = at(NOW) else { panic!() };
        assert_eq!((peer.principal(), peer.serial(), peer.not_after()), (&who, &*issued.serial, issued.not_after));
        assert_eq!(issued.not_after, NOW.after(HOUR));

        let seconds = Duration::from_secs;
        let expired = Err(PeerError::Expired(who.to_string()));
        assert!(at(NOW.after(HOUR + seconds(60))).is_ok());
        assert_eq!(at(NOW.after(HOUR + seconds(61))), expired);
        // Made five minutes old, and another minute is forgiven.
        assert!(at(Timestamp(NOW.0 - 360_000_000)).is_ok());
        assert_eq!(at(Timestamp(NOW.0 - 361_000_000)), expired);
    }
}
