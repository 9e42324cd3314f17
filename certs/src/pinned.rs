//! Verifies a server before its CA is known: only the hash of the CA's key is.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};

use crate::{Pin, SERVER_NAME};

/// Accepts a server whose chain ends in the pinned CA, and that is a controller of it.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) pin: Pin,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

/// The server is of another mesh, or somebody is between.
#[derive(Debug, thiserror::Error)]
#[error("this controller is not of the mesh the join string is for: its CA is {found}, and should be {wanted}")]
struct OtherMesh {
    found: String,
    wanted: Pin,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = rest.last().and_then(Pin::of);
        let Some(ca) = rest.last().filter(|_| found == Some(self.pin)) else {
            let found = found.map_or_else(|| "missing".into(), |pin| pin.to_string());
            let cause = OtherMesh { found, wanted: self.pin };
            return Err(CertificateError::Other(OtherError(std::sync::Arc::new(cause))).into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let leaf = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &roots, &[], now, self.algorithms.all)?;
        // Whatever name was dialled: a worker of the mesh has a good certificate too, and is no controller.
        let name = ServerName::try_from(SERVER_NAME).expect("it is a DNS name");
        verify_server_name(&leaf, &name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
