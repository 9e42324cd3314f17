//! What two ends of a real TLS handshake learn about each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ado_certs::{
    Ca, ClientTls, Clock, Denied, Identity, KeyRequest, Peer, PeerError, Pin, SERVER_NAME, ServerTls, verify_peer,
};
use ado_proto::{Principal, Timestamp};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Error, HandshakeKind, ServerConnection};

const DAY: Duration = Duration::from_secs(24 * 3600);
const ANN: &str = "ado://default/user/ann";
const CONTROLLER: &str = "ado://default/controller/c1";

/// A mesh with a clock of its own.
struct World {
    _dir: tempfile::TempDir,
    ca: Ca,
    now: Arc<AtomicI64>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // 2030.
        let now = 1_893_456_000_000_000;
        let ca = Ca::open_or_create(dir.path(), Timestamp(now)).unwrap();
        Self { _dir: dir, ca, now: Arc::new(AtomicI64::new(now)) }
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

    fn identity(&self, who: &str) -> Identity {
        let request = KeyRequest::new().unwrap();
        let issued = self.ca.issue(request.csr_der(), &who.parse().unwrap(), DAY, self.now()).unwrap();
        request.into_identity(issued.chain).unwrap()
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

    fn who(&self, met: &Met) -> Principal {
        match self.peer(met, &Denied::default()).unwrap() {
            Peer::Verified(peer) => peer.principal().clone(),
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

impl Met {
    fn kind(&self) -> HandshakeKind {
        assert_eq!(self.client.handshake_kind(), self.server.handshake_kind());
        self.client.handshake_kind().unwrap()
    }
}

/// Who was not content, and why.
#[derive(Debug, PartialEq)]
enum Refused {
    ByClient(Error),
    ByServer(Error),
}

/// Connects over buffers, until neither end has anything to say: tickets have arrived then, too.
fn meet(client: &ClientTls, server: &ServerTls) -> Result<Met, Refused> {
    meet_with(client.config(), server)
}

fn meet_with(client: Arc<rustls::ClientConfig>, server: &ServerTls) -> Result<Met, Refused> {
    let mut client = ClientConnection::new(client, ServerName::try_from(SERVER_NAME).unwrap()).unwrap();
    let mut server = ServerConnection::new(server.config()).unwrap();
    while client.wants_write() || server.wants_write() {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        let mut rest = flight.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().map_err(Refused::ByServer)?;
        }
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).unwrap();
        }
        let mut rest = flight.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().map_err(Refused::ByClient)?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(Met { client, server })
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
