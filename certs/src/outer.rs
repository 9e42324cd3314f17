//! TLS around a connection that is secured already: what a WebSocket is wrapped in, so that networks that let nothing but
//! HTTPS pass let it pass.
//!
//! It protects nothing and proves nothing. Who is who, and that nobody reads along, is settled by the QUIC handshake that
//! goes through it, as on a bare UDP socket: so a client takes whatever certificate comes, be it the controller's own, a
//! reverse proxy's or that of a company's inspecting middlebox.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};

use crate::Error;
use crate::tls::{ServerTls, provider};

/// What a WebSocket begins as.
const ALPN_HTTP: &[u8] = b"http/1.1";

/// The client's side.
///
/// # Errors
/// [`Error::Crypto`] when the library has no TLS 1.3.
pub fn client() -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::crypto("set TLS up"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody { algorithms }))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_HTTP.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The server's side: shows the controller's certificate, asks for none.
///
/// # Errors
/// [`Error::Crypto`] when the library has no TLS 1.3.
pub fn server(tls: &ServerTls) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::crypto("set TLS up"))?
        .with_no_client_auth()
        .with_cert_resolver(tls.holder.clone());
    config.alpn_protocols = vec![ALPN_HTTP.to_vec()];
    Ok(Arc::new(config))
}

/// Accepts every server that has the key of the certificate it shows.
#[derive(Debug)]
struct Anybody {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _rest: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
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
