//! Real quinn over the virtual network: the same seed gives the same run, to the nanosecond.
//!
//! What would break that is taken out here: quinn's own chance is seeded, connection ids are counted, and the certificate's
//! key is Ed25519, whose signatures are all of one size. The rest of TLS draws bytes, which are never of another size.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ado_netsim::nat::Nat;
use ado_netsim::record::Record;
use ado_netsim::{Network, Runtime, Scenario};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{AsyncUdpSocket, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::time::{Instant, sleep, timeout};

const NAT: IpAddr = IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1));
const LINES: u32 = 400;

/// Ids that count.
struct Counted(u64);

impl ConnectionIdGenerator for Counted {
    fn generate_cid(&mut self) -> ConnectionId {
        self.0 += 1;
        ConnectionId::new(&self.0.to_be_bytes())
    }
    fn cid_len(&self) -> usize {
        8
    }
    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

struct Identity {
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["server".to_owned()]).unwrap().self_signed(&key).unwrap();
        Self { certificate: certificate.der().clone(), key: key.serialize_der() }
    }

    fn server(&self) -> quinn::ServerConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], PrivatePkcs8KeyDer::from(self.key.clone()).into())
            .unwrap();
        quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
    }

    fn client(&self) -> quinn::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(Duration::from_millis(500)));
        config.transport_config(Arc::new(transport));
        config
    }
}

fn endpoint(seed: u8, socket: Arc<dyn AsyncUdpSocket>, server: Option<quinn::ServerConfig>) -> Endpoint {
    let mut config = EndpointConfig::default();
    config.rng_seed(Some([seed; 32]));
    let next = AtomicU64::new(u64::from(seed) << 32);
    config.cid_generator(move || Box::new(Counted(next.fetch_add(1 << 16, Ordering::Relaxed))));
    Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(Runtime)).unwrap()
}

/// A server says lines on three connections of a client behind a NAT, over a link that is flaky, falls silent and rebinds.
/// Gives back what happened to every packet, and when each line came.
fn run(identity: &Identity, seed: u64) -> (String, Vec<(u32, Duration)>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let network = Network::new(seed);
        let (record, written) = Record::in_memory();
        network.record(record);
        let text = format!(
            "seed {seed}\nprofile wifi-flaky\nset duplicate 1%\nat 2s down 1s\nat 5s rebind\nat 6s rebind address\n"
        );
        network.play(NAT, SERVER, &Scenario::parse(&text, &|_| unreachable!()).unwrap());
        let server = endpoint(1, network.host(SERVER).bind(443).unwrap(), Some(identity.server()));
        let nat = network.nat(NAT, Nat::HOME);
        let client = endpoint(2, nat.host(CLIENT).bind(5000).unwrap(), None);
        let serving = tokio::spawn(async move {
            while let Some(incoming) = server.accept().await {
                tokio::spawn(async move {
                    let connection = incoming.await.unwrap();
                    let mut stream = connection.open_uni().await.unwrap();
                    for line in 0..LINES {
                        stream.write_all(&line.to_be_bytes()).await.unwrap();
                        sleep(Duration::from_millis(20)).await;
                    }
                    stream.finish().unwrap();
                    connection.closed().await;
                });
            }
        });
        let start = Instant::now();
        let follow = async || {
            let connection = client.connect_with(identity.client(), SocketAddr::new(SERVER, 443), "server").unwrap();
            let connection = connection.await.unwrap();
            let mut stream = connection.accept_uni().await.unwrap();
            let (mut lines, mut line) = (Vec::new(), [0; 4]);
            while stream.read_exact(&mut line).await.is_ok() {
                lines.push((u32::from_be_bytes(line), start.elapsed()));
            }
            lines
        };
        let all = async { tokio::join!(follow(), follow(), follow()) };
        let (one, two, three) = timeout(Duration::from_secs(120), all).await.expect("virtual minutes are enough");
        for lines in [&one, &two, &three] {
            let numbers: Vec<_> = lines.iter().map(|(number, _)| *number).collect();
            assert_eq!(numbers, (0..LINES).collect::<Vec<_>>(), "every line once, in order");
        }
        serving.abort();
        (written(), [one, two, three].concat())
    })
}

#[test]
fn the_same_seed_replays() {
    let identity = Identity::new();
    for seed in [1, 2] {
        let (record, lines) = run(&identity, seed);
        for what in ["delivered", "burst", "blackout", "copy"] {
            assert!(record.contains(what), "nothing of {what} in seed {seed}");
        }
        assert!(record.contains("9.9.9.10"), "the address changed");
        let (again, lines_again) = run(&identity, seed);
        if let Some((one, other)) = record.lines().zip(again.lines()).find(|(one, other)| one != other) {
            panic!("seed {seed}: `{one}` became `{other}`");
        }
        assert!(record == again && lines == lines_again, "seed {seed}: one run is longer");
    }
    assert_ne!(run(&identity, 1).0, run(&identity, 2).0);
}
