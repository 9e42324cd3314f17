//! What two ends of a real TLS handshake learn about each other.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ado_certs::{
    ALPN_JOIN, ALPN_MESH, Ca, ClientTls, Clock, Denied, Error, Identity, KeyRequest, Peer, PeerError, Pin, SERVER_NAME,
    ServerTls, verify_peer,
};
use ado_proto::Timestamp;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
};

const HOUR: Duration = Duration::from_secs(3600);
/// 2030.
const START: Timestamp = Timestamp(1_893_456_000_000_000);
const ANN: &str = "ado://default/user/ann";
const CONTROLLER: &str = "ado://default/controller/c1";

/// A mesh with a clock of its own.
struct World {
    dir: tempfile::TempDir,
    ca: Ca,
    now: Arc<AtomicI64>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path(), START).unwrap();
        Self { dir, ca, now: Arc::new(AtomicI64::new(START.0)) }
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::Relaxed))
    }

    fn pass(&self, time: Duration) {
        self.now.store(self.now().after(time).0, Ordering::Relaxed);
    }

    fn clock(&self) -> Clock {
        let now = self.now.clone();
        Clock::new(move || Timestamp(now.load(Ordering::Relaxed)))
    }

    /// Good for an hour.
    fn identity(&self, who: &str) -> Identity {
        let request = KeyRequest::new().unwrap();
        let issued = self.ca.issue(request.csr_der(), &who.parse().unwrap(), HOUR, self.now()).unwrap();
        request.into_identity(issued.chain).unwrap()
    }

    /// As above, for somebody with other software, who can do as they like with the key.
    fn chain(&self, who: &str, key: &KeyPair) -> Vec<CertificateDer<'static>> {
        let csr = CertificateParams::default().serialize_request(key).unwrap();
        self.ca.issue(csr.der(), &who.parse().unwrap(), HOUR, self.now()).unwrap().chain
    }

    fn server(&self) -> ServerTls {
        ServerTls::with_clock(self.identity(CONTROLLER), self.clock()).unwrap()
    }

    fn client(&self, who: &str) -> ClientTls {
        ClientTls::mesh_with_clock(self.identity(who), self.clock()).unwrap()
    }

    fn joiner(&self, pin: Pin) -> ClientTls {
        ClientTls::join_with_clock(pin, self.clock()).unwrap()
    }

    /// What the server makes of its peer.
    fn peer(&self, met: &Met, denied: &Denied) -> Result<Peer, PeerError> {
        verify_peer(met.server.alpn_protocol().unwrap(), met.server.peer_certificates(), denied, self.now())
    }

    /// The serial number of the certificate the server goes by.
    fn serial(&self, met: &Met) -> String {
        match self.peer(met, &Denied::default()).unwrap() {
            Peer::Verified(peer) => peer.serial().to_owned(),
            Peer::Joining => panic!("joining"),
        }
    }
}

/// Both ends after a handshake that both were content with.
#[derive(Debug)]
struct Met {
    client: ClientConnection,
    server: ServerConnection,
}

/// Who was not content, and why.
#[derive(Debug, PartialEq)]
enum Refused {
    ByClient(rustls::Error),
    ByServer(rustls::Error),
}

/// Connects over buffers, until neither end has anything to say: tickets have arrived then, too.
fn meet(client: &ClientTls, server: &ServerTls) -> Result<Met, Refused> {
    talk(client.config(), server.config())
}

fn talk(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<Met, Refused> {
    let mut met = open(client, server);
    met.settle()?;
    Ok(met)
}

fn open(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Met {
    let client = ClientConnection::new(client, ServerName::try_from(SERVER_NAME).unwrap()).unwrap();
    Met { client, server: ServerConnection::new(server).unwrap() }
}

impl Met {
    fn settle(&mut self) -> Result<(), Refused> {
        while self.client.wants_write() || self.server.wants_write() {
            let mut flight = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut flight).unwrap();
            }
            let mut rest = flight.as_slice();
            while !rest.is_empty() {
                self.server.read_tls(&mut rest).unwrap();
                self.server.process_new_packets().map_err(Refused::ByServer)?;
            }
            let mut flight = Vec::new();
            while self.server.wants_write() {
                self.server.write_tls(&mut flight).unwrap();
            }
            let mut rest = flight.as_slice();
            while !rest.is_empty() {
                self.client.read_tls(&mut rest).unwrap();
                self.client.process_new_packets().map_err(Refused::ByClient)?;
            }
        }
        assert!(!self.client.is_handshaking() && !self.server.is_handshaking());
        Ok(())
    }

    fn kind(&self) -> HandshakeKind {
        assert_eq!(self.client.handshake_kind(), self.server.handshake_kind());
        self.client.handshake_kind().unwrap()
    }
}

/// Somebody with other software: any chain, any protocol, trusting this CA.
fn stranger(ca: &Ca, shows: Option<(Vec<CertificateDer<'static>>, &KeyPair)>, alpn: &[u8]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate()).unwrap();
    let builder = ClientConfig::builder_with_details(Arc::new(default_provider()), Arc::new(Clock::new(|| START)))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shows {
        Some((chain, key)) => builder.with_client_auth_cert(chain, der(key)).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

/// A server with other software.
fn impostor(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, der(key))
        .unwrap();
    config.alpn_protocols = vec![ALPN_MESH.to_vec(), ALPN_JOIN.to_vec()];
    Arc::new(config)
}

fn der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(key.serialize_der().into())
}

/// A leaf that `issuer` signs for itself, with the names of a controller and an administrator.
fn forged(issuer: &Issuer<'_, KeyPair>, key: &KeyPair) -> CertificateDer<'static> {
    let mut params = CertificateParams::new([SERVER_NAME.to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI("ado://default/admin/eve".try_into().unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.signed_by(key, issuer).unwrap().into()
}

#[test]
fn a_member_is_known_by_its_certificate() {
    let world = World::new();
    let (client, server) = (world.client(ANN), world.server());
    let met = meet(&client, &server).unwrap();
    let Ok(Peer::Verified(peer)) = world.peer(&met, &Denied::default()) else { panic!() };
    let identity = client.identity().unwrap();
    assert_eq!(peer.principal(), identity.principal());
    assert_eq!(peer.principal().to_string(), ANN);
    assert_eq!((peer.serial(), peer.not_after()), (identity.serial(), identity.not_after()));
    assert_eq!(met.client.peer_certificates().unwrap(), server.identity().chain());
}

fn by_client(met: Result<Met, Refused>) -> CertificateError {
    match met.unwrap_err() {
        Refused::ByClient(rustls::Error::InvalidCertificate(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn by_server(met: Result<Met, Refused>) -> CertificateError {
    match met.unwrap_err() {
        Refused::ByServer(rustls::Error::InvalidCertificate(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_system_clock_is_the_default() {
    let (dir, now) = (tempfile::tempdir().unwrap(), Clock::system());
    let now = rustls::time_provider::TimeProvider::current_time(&now).unwrap().as_secs();
    let now = Timestamp(0).after(Duration::from_secs(now));
    let ca = Ca::open_or_create(dir.path(), now).unwrap();
    let identity = |who: &str| {
        let request = KeyRequest::new().unwrap();
        let issued = ca.issue(request.csr_der(), &who.parse().unwrap(), HOUR, now).unwrap();
        request.into_identity(issued.chain).unwrap()
    };
    let server = ServerTls::new(identity(CONTROLLER)).unwrap();
    meet(&ClientTls::mesh(identity(ANN)).unwrap(), &server).unwrap();
    meet(&ClientTls::join(ca.pin()).unwrap(), &server).unwrap();
}

#[test]
fn members_of_another_mesh_are_refused_by_both_ends() {
    let (here, there) = (World::new(), World::new());
    assert_eq!(by_client(meet(&there.client(ANN), &here.server())), CertificateError::UnknownIssuer);
    // One who trusts our server, and shows a certificate of theirs.
    let key = KeyPair::generate().unwrap();
    let eve = stranger(&here.ca, Some((there.chain(ANN, &key), &key)), ALPN_MESH);
    assert_eq!(by_server(talk(eve, here.server().config())), CertificateError::UnknownIssuer);
}

#[test]
fn a_member_cannot_make_members() {
    let world = World::new();
    let (ann_key, eve_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let ann = world.chain(ANN, &ann_key);
    let eve = forged(&Issuer::from_ca_cert_der(&ann[0], ann_key).unwrap(), &eve_key);
    let chain = vec![eve, ann[0].clone(), ann[1].clone()];
    by_server(talk(stranger(&world.ca, Some((chain.clone(), &eve_key)), ALPN_MESH), world.server().config()));
    by_client(talk(world.client(ANN).config(), impostor(chain.clone(), &eve_key)));
    by_client(talk(world.joiner(world.ca.pin()).config(), impostor(chain, &eve_key)));
}

#[test]
fn only_controllers_serve() {
    let world = World::new();
    let worker = "ado://default/worker/w1";
    let error = ServerTls::with_clock(world.identity(worker), world.clock()).unwrap_err();
    assert!(matches!(&error, Error::NotController(who) if who == worker), "{error}");
    assert!(matches!(world.server().replace(world.identity(worker)), Err(Error::NotController(_))));

    let refused = |server: Arc<ServerConfig>| {
        by_client(talk(world.client(ANN).config(), server.clone()));
        by_client(talk(world.joiner(world.ca.pin()).config(), server))
    };
    let key = KeyPair::generate().unwrap();
    refused(impostor(world.chain(worker, &key), &key));

    // Not for its use alone: a certificate for servers that has another name is refused, too.
    let ca_key = KeyPair::from_pem(&std::fs::read_to_string(world.dir.path().join("ca.key")).unwrap()).unwrap();
    let issuer = Issuer::from_ca_cert_der(&world.ca.certificate(), ca_key).unwrap();
    let mut params = CertificateParams::new(["worker.ado".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = params.signed_by(&key, &issuer).unwrap().into();
    let why = refused(impostor(vec![leaf, world.ca.certificate()], &key));
    assert!(matches!(why, CertificateError::NotValidForNameContext { .. }), "{why:?}");
}

#[test]
fn who_joins_knows_the_mesh_by_its_pin() {
    let (world, other) = (World::new(), World::new());
    let met = meet(&world.joiner(world.ca.pin()), &world.server()).unwrap();
    assert_eq!(met.server.peer_certificates(), None);
    assert_eq!(world.peer(&met, &Denied::default()), Ok(Peer::Joining));

    let refused = by_client(meet(&other.joiner(other.ca.pin()), &world.server()));
    let CertificateError::Other(why) = refused else { panic!("{refused:?}") };
    for part in ["not of the mesh the join string is for", &world.ca.pin().to_string(), &other.ca.pin().to_string()] {
        assert!(why.to_string().contains(part), "{why}");
    }
}

#[test]
fn who_joins_is_not_fooled_by_a_genuine_ca_beside_a_forged_leaf() {
    let (world, eve) = (World::new(), World::new());
    let key = KeyPair::generate().unwrap();
    let join = || world.joiner(world.ca.pin()).config();
    let theirs = eve.chain(CONTROLLER, &key);
    let chains = [
        vec![theirs[0].clone(), world.ca.certificate()],
        vec![theirs[0].clone(), theirs[1].clone(), world.ca.certificate()],
        // No CA at all: a genuine leaf, then.
        vec![world.chain(CONTROLLER, &key)[0].clone()],
    ];
    for chain in chains {
        by_client(talk(join(), impostor(chain, &key)));
    }
    // With everything genuine, what fooled nobody is let in.
    talk(join(), impostor(world.chain(CONTROLLER, &key), &key)).unwrap();
}

#[test]
fn without_a_certificate_one_can_only_join() {
    let world = World::new();
    let server = world.server();
    let met = talk(stranger(&world.ca, None, ALPN_MESH), server.config()).unwrap();
    assert_eq!(world.peer(&met, &Denied::default()), Err(PeerError::NoCertificate));
    talk(stranger(&world.ca, None, b"h3"), server.config()).unwrap_err();

    // A certificate gives no rights on the joining protocol.
    let key = KeyPair::generate().unwrap();
    let ann = stranger(&world.ca, Some((world.chain(ANN, &key), &key)), ALPN_JOIN);
    let met = talk(ann, server.config()).unwrap();
    assert!(met.server.peer_certificates().is_some());
    assert_eq!(world.peer(&met, &Denied::default()), Ok(Peer::Joining));
}

#[test]
fn a_session_gives_no_more_on_another_protocol() {
    let world = World::new();
    let server = world.server();
    let turned = |config: &Arc<ClientConfig>, alpn: &[u8]| {
        let mut config = ClientConfig::clone(config);
        config.alpn_protocols = vec![alpn.to_vec()];
        Arc::new(config)
    };
    let nobody = stranger(&world.ca, None, ALPN_JOIN);
    talk(nobody.clone(), server.config()).unwrap();
    let met = talk(turned(&nobody, ALPN_MESH), server.config()).unwrap();
    assert_eq!(met.kind(), HandshakeKind::Resumed);
    assert_eq!(world.peer(&met, &Denied::default()), Err(PeerError::NoCertificate));

    let ann = world.client(ANN).config();
    talk(ann.clone(), server.config()).unwrap();
    let met = talk(turned(&ann, ALPN_JOIN), server.config()).unwrap();
    assert_eq!(met.kind(), HandshakeKind::Resumed);
    assert!(!met.client.is_early_data_accepted());
    assert_eq!(world.peer(&met, &Denied::default()), Ok(Peer::Joining));
}

#[test]
fn a_resumed_session_knows_its_peer_and_takes_early_data() {
    let world = World::new();
    let (client, server) = (world.client(ANN), world.server());
    assert_eq!(meet(&client, &server).unwrap().kind(), HandshakeKind::Full);

    let mut met = open(client.config(), server.config());
    met.client.early_data().expect("a ticket that allows early data").write_all(b"hello").unwrap();
    met.settle().unwrap();
    assert_eq!(met.kind(), HandshakeKind::Resumed);
    assert!(met.client.is_early_data_accepted());
    let mut early = String::new();
    met.server.early_data().unwrap().read_to_string(&mut early).unwrap();
    assert_eq!(early, "hello");
    assert_eq!(world.serial(&met), client.identity().unwrap().serial());
}

#[test]
fn the_configurations_suit_quic() {
    let world = World::new();
    let (client, server) = (world.client(ANN).config(), world.server().config());
    assert_eq!(server.max_early_data_size, u32::MAX);
    assert!(!server.ticketer.enabled() && server.session_storage.can_cache());
    assert!(client.enable_early_data && !world.joiner(world.ca.pin()).config().enable_early_data);
}

#[test]
fn a_denied_certificate_is_refused_also_when_its_session_is_resumed() {
    let world = World::new();
    let (client, server, denied) = (world.client(ANN), world.server(), Denied::default());
    let met = meet(&client, &server).unwrap();
    let Ok(Peer::Verified(peer)) = world.peer(&met, &denied) else { panic!() };
    assert!(!peer.is_denied(&denied));

    denied.set([peer.serial().to_owned()]);
    assert!(peer.is_denied(&denied));
    assert_eq!(world.peer(&met, &denied), Err(PeerError::Revoked(ANN.into())));
    let met = meet(&client, &server).unwrap();
    assert_eq!(met.kind(), HandshakeKind::Resumed);
    assert_eq!(world.peer(&met, &denied), Err(PeerError::Revoked(ANN.into())));

    // With a certificate of its own, it is let in again, once it stops resuming the old session.
    client.replace(world.identity(ANN)).unwrap();
    assert!(world.peer(&meet(&client, &server).unwrap(), &denied).is_err());
    client.forget_sessions();
    assert!(world.peer(&meet(&client, &server).unwrap(), &denied).is_ok());
}

#[test]
fn an_expired_certificate_is_refused_also_when_its_session_is_resumed() {
    let world = World::new();
    let server = world.server();
    // Its clock stands still, so it does not know.
    let client = ClientTls::mesh_with_clock(world.identity(ANN), Clock::new(|| START)).unwrap();
    meet(&client, &server).unwrap();
    world.pass(HOUR + Duration::from_secs(30));
    assert!(world.peer(&meet(&client, &server).unwrap(), &Denied::default()).is_ok(), "clocks may differ a little");
    world.pass(Duration::from_secs(31));
    let met = meet(&client, &server).unwrap();
    assert_eq!(met.kind(), HandshakeKind::Resumed);
    assert_eq!(world.peer(&met, &Denied::default()), Err(PeerError::Expired(ANN.into())));

    // And by TLS itself, when none is.
    let client = world.client(ANN);
    world.pass(HOUR * 2);
    server.replace(world.identity(CONTROLLER)).unwrap();
    let why = by_server(meet(&client, &server));
    assert!(matches!(why, CertificateError::Expired | CertificateError::ExpiredContext { .. }), "{why:?}");
}

#[test]
fn an_expired_server_is_refused() {
    let world = World::new();
    let server = world.server();
    world.pass(HOUR * 2);
    for client in [world.client(ANN), world.joiner(world.ca.pin())] {
        let why = by_client(meet(&client, &server));
        assert!(matches!(why, CertificateError::Expired | CertificateError::ExpiredContext { .. }), "{why:?}");
    }
    server.replace(world.identity(CONTROLLER)).unwrap();
    meet(&world.client(ANN), &server).unwrap();
    meet(&world.joiner(world.ca.pin()), &server).unwrap();
}

#[test]
fn a_renewal_keeps_sessions_until_the_old_certificate_ends() {
    let world = World::new();
    let (client, server) = (world.client(ANN), world.server());
    meet(&client, &server).unwrap();
    let old = client.identity().unwrap();

    world.pass(HOUR / 2);
    client.replace(world.identity(ANN)).unwrap();
    server.replace(world.identity(CONTROLLER)).unwrap();
    let new = client.identity().unwrap();
    assert_ne!(old.serial(), new.serial());
    for _ in 0..3 {
        let met = meet(&client, &server).unwrap();
        assert_eq!((met.kind(), world.serial(&met).as_str()), (HandshakeKind::Resumed, old.serial()));
    }

    world.pass(HOUR / 2);
    let met = meet(&client, &server).unwrap();
    assert_eq!((met.kind(), world.serial(&met).as_str()), (HandshakeKind::Full, new.serial()));
    assert_eq!(met.client.peer_certificates().unwrap(), server.identity().chain(), "the server's new certificate");
    let met = meet(&client, &server).unwrap();
    assert_eq!((met.kind(), world.serial(&met).as_str()), (HandshakeKind::Resumed, new.serial()));
}

#[test]
fn forgotten_sessions_are_not_resumed() {
    let world = World::new();
    let (client, server) = (world.client(ANN), world.server());
    let kind = || meet(&client, &server).unwrap().kind();
    assert_eq!((kind(), kind()), (HandshakeKind::Full, HandshakeKind::Resumed));
    server.forget_sessions();
    assert_eq!((kind(), kind()), (HandshakeKind::Full, HandshakeKind::Resumed));
    client.forget_sessions();
    assert_eq!((kind(), kind()), (HandshakeKind::Full, HandshakeKind::Resumed));
}

#[test]
fn an_identity_of_another_mesh_is_not_swapped_in() {
    let (world, other) = (World::new(), World::new());
    let (client, server) = (world.client(ANN), world.server());
    assert!(matches!(client.replace(other.identity(ANN)), Err(Error::OtherCa)));
    assert!(matches!(server.replace(other.identity(CONTROLLER)), Err(Error::OtherCa)));
    let join = world.joiner(world.ca.pin());
    assert!(join.identity().is_none());
    assert!(matches!(join.replace(world.identity(ANN)), Err(Error::Joining)));
    meet(&client, &server).unwrap();
}
