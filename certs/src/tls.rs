//! TLS configurations of clients and servers. Both are built once and kept: a rebuilt one would lose its sessions. A new
//! certificate is swapped into them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ado_proto::{Role, Timestamp};
use arc_swap::ArcSwap;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{PrivateKeyDer, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};

use crate::pinned::Pinned;
use crate::sessions::{Sessions, Tickets};
use crate::{Error, Identity, Pin};

/// The protocol of members of the mesh.
pub const ALPN_MESH: &[u8] = b"ado/1";

/// The protocol of those who want to become members. It serves enrolment only.
pub const ALPN_JOIN: &[u8] = b"ado-join/1";

/// Sessions a server remembers, two per handshake and about 2 KiB each.
const SESSIONS: usize = 16_384;

/// Time of day, for the life of certificates.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// Asks `now` every time.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The operating system's, to the second.
    pub fn system() -> Self {
        Self::new(|| {
            let seconds = DefaultTimeProvider.current_time().map_or(0, |time| time.as_secs());
            Timestamp(0).after(Duration::from_secs(seconds))
        })
    }

    pub(crate) fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.now().since(Timestamp(0))))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// How a client connects. Clones share sessions and certificate.
#[derive(Debug, Clone)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    // None when joining.
    mesh: Option<Mesh>,
}

#[derive(Debug, Clone)]
struct Mesh {
    holder: Arc<Holder>,
    tickets: Arc<Tickets>,
}

impl ClientTls {
    /// A member's: protocol `ado/1`, shows the identity's certificate, trusts the identity's CA and nobody else, resumes
    /// sessions with early data. The server name to ask for is [`SERVER_NAME`](crate::SERVER_NAME).
    ///
    /// # Errors
    /// [`Error::Crypto`] when the library does not accept the key or the CA.
    pub fn mesh(identity: Identity) -> Result<Self, Error> {
        Self::mesh_with_clock(identity, Clock::system())
    }

    /// [`ClientTls::mesh`] with another time of day.
    ///
    /// # Errors
    /// As there.
    pub fn mesh_with_clock(identity: Identity, clock: Clock) -> Result<Self, Error> {
        let roots = roots(&identity)?;
        let holder = Arc::new(Holder::new(identity)?);
        let tickets = Arc::new(Tickets::new(holder.clone(), clock.clone()));
        let mut config = ClientConfig::builder_with_details(provider(), Arc::new(clock))
            .with_protocol_versions(&[&TLS13])
            .map_err(Error::crypto("set TLS up"))?
            .with_root_certificates(roots)
            .with_client_cert_resolver(holder.clone());
        config.alpn_protocols = vec![ALPN_MESH.to_vec()];
        config.enable_early_data = true;
        config.resumption = Resumption::store(tickets.clone());
        Ok(Self { config: Arc::new(config), mesh: Some(Mesh { holder, tickets }) })
    }

    /// A stranger's: protocol `ado-join/1`, shows nothing, trusts controllers of the CA with this pin, resumes nothing.
    ///
    /// # Errors
    /// [`Error::Crypto`].
    pub fn join(pin: Pin) -> Result<Self, Error> {
        Self::join_with_clock(pin, Clock::system())
    }

    /// [`ClientTls::join`] with another time of day.
    ///
    /// # Errors
    /// As there.
    pub fn join_with_clock(pin: Pin, clock: Clock) -> Result<Self, Error> {
        let provider = provider();
        let algorithms = provider.signature_verification_algorithms;
        let mut config = ClientConfig::builder_with_details(provider, Arc::new(clock))
            .with_protocol_versions(&[&TLS13])
            .map_err(Error::crypto("set TLS up"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned { pin, algorithms }))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), mesh: None })
    }

    /// Who we are; `None` when joining.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.mesh.as_ref().map(|mesh| mesh.holder.identity())
    }

    /// The configuration: always the same one, as sessions belong to it.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// Shows this identity from the next full handshake on. Sessions stay good until the certificate they began with ends.
    ///
    /// # Errors
    /// [`Error::OtherCa`] when it is of another mesh, [`Error::Joining`].
    pub fn replace(&self, identity: Identity) -> Result<(), Error> {
        self.mesh.as_ref().ok_or(Error::Joining)?.holder.replace(identity)
    }

    /// Makes the next connection a full handshake with the certificate of now: for a client whose resumed session was
    /// refused because of the certificate it began with (revoked or expired), while it has a newer one.
    pub fn forget_sessions(&self) {
        if let Some(mesh) = &self.mesh {
            mesh.tickets.forget();
        }
    }
}

/// How a server accepts. Clones share sessions and certificate.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    pub(crate) holder: Arc<Holder>,
    sessions: Arc<Sessions>,
}

impl ServerTls {
    /// A controller's: protocols `ado/1` and `ado-join/1`. A client certificate must be of the identity's CA if one is
    /// shown; who must show one is for [`verify_peer`](crate::verify_peer).
    ///
    /// # Errors
    /// [`Error::NotController`], [`Error::Crypto`].
    pub fn new(identity: Identity) -> Result<Self, Error> {
        Self::with_clock(identity, Clock::system())
    }

    /// [`ServerTls::new`] with another time of day.
    ///
    /// # Errors
    /// As there.
    pub fn with_clock(identity: Identity, clock: Clock) -> Result<Self, Error> {
        if identity.principal().role != Role::Controller {
            return Err(Error::NotController(identity.principal().to_string()));
        }
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&identity)?), provider())
            .allow_unauthenticated()
            .build()
            .map_err(Error::crypto("set TLS up"))?;
        let holder = Arc::new(Holder::new(identity)?);
        let sessions = Arc::new(Sessions::new(SESSIONS));
        let mut config = ServerConfig::builder_with_details(provider(), Arc::new(clock))
            .with_protocol_versions(&[&TLS13])
            .map_err(Error::crypto("set TLS up"))?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(holder.clone());
        config.alpn_protocols = vec![ALPN_MESH.to_vec(), ALPN_JOIN.to_vec()];
        // QUIC allows this value and 0 only.
        config.max_early_data_size = u32::MAX;
        // And no `ticketer`: with one, rustls accepts no early data.
        config.session_storage = sessions.clone();
        Ok(Self { config: Arc::new(config), holder, sessions })
    }

    /// Who we are.
    pub fn identity(&self) -> Arc<Identity> {
        self.holder.identity()
    }

    /// The configuration: always the same one, as sessions belong to it.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Shows this identity from the next full handshake on. Sessions stay good.
    ///
    /// # Errors
    /// [`Error::OtherCa`] when it is of another mesh, [`Error::NotController`].
    pub fn replace(&self, identity: Identity) -> Result<(), Error> {
        if identity.principal().role != Role::Controller {
            return Err(Error::NotController(identity.principal().to_string()));
        }
        self.holder.replace(identity)
    }

    /// Makes every client's next connection a full handshake.
    pub fn forget_sessions(&self) {
        self.sessions.forget();
    }
}

/// The identity a configuration shows, which can be replaced.
pub(crate) struct Holder(ArcSwap<Held>);

struct Held {
    identity: Arc<Identity>,
    certified: Arc<CertifiedKey>,
}

impl Holder {
    fn new(identity: Identity) -> Result<Self, Error> {
        Ok(Self(ArcSwap::from_pointee(Held::new(identity)?)))
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.0.load().identity)
    }

    fn replace(&self, identity: Identity) -> Result<(), Error> {
        if identity.pin() != self.0.load().identity.pin() {
            return Err(Error::OtherCa);
        }
        self.0.store(Arc::new(Held::new(identity)?));
        Ok(())
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.load().certified)
    }
}

impl Held {
    fn new(identity: Identity) -> Result<Self, Error> {
        let key = PrivateKeyDer::Pkcs8(identity.key().clone_key());
        let key = ring::sign::any_supported_type(&key).map_err(Error::crypto("use the private key"))?;
        let certified = Arc::new(CertifiedKey::new(identity.chain().to_vec(), key));
        Ok(Self { identity: Arc::new(identity), certified })
    }
}

impl ResolvesClientCert for Holder {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Holder {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Holder").field(&self.identity()).finish()
    }
}

/// Always named: a process-wide default could be another library's choice, or none.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(identity: &Identity) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.ca().clone()).map_err(Error::crypto("trust the CA"))?;
    Ok(roots)
}
