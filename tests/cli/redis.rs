//! A controller whose queue is in Redis: it comes and goes, and what users see stays the same.

use serde_json::Value;

use crate::servers::redis::{Redis, shared};
use crate::support::{Ran, Service, TestEnv};

const CONTROLLER: [&str; 9] =
    ["controller", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "-o", "json", "--log-level", "error"];

/// A controller with its queue there, a worker of it, and its administrator's home.
fn mesh(server: &TestEnv, builder: &TestEnv, laptop: &TestEnv, more: &[&str]) -> (Service, Service) {
    let controller = Service::start(server, CONTROLLER.iter().chain(more));
    mesh_of(controller, builder, laptop)
}

fn mesh_of(mut controller: Service, builder: &TestEnv, laptop: &TestEnv) -> (Service, Service) {
    let said = controller.json();
    laptop.ado(["join", said["join"].as_str().expect("a join string")]).assert_code(0);
    let token = laptop.ado(["--remote", "token", "create", "--role", "worker"]);
    token.assert_code(0);
    let join = token.stdout().trim();
    let worker = Service::start(builder, ["worker", "--join", join, "--name", "builder", "--log-level", "error"]);
    (controller, worker)
}

#[track_caller]
fn works(laptop: &TestEnv) {
    let ran = laptop.ado(["run", "--remote", "echo over there; exit 3"]);
    ran.assert_code(3);
    assert_eq!(ran.stdout(), "over there\n");
}

#[test]
fn redis_may_come_and_go() {
    let Some(mut redis) = Redis::start() else { return };
    let (server, laptop, builder) = (TestEnv::new(), TestEnv::new(), TestEnv::new());
    let url = redis.url();
    let (controller, worker) = mesh(&server, &builder, &laptop, &["--redis-url", &url]);
    works(&laptop);
    let intact = |redis: &Redis| redis.ask::<Vec<String>>(&["KEYS", "ado:????????????????:intact"]);
    assert_eq!(intact(&redis).len(), 1, "{:?}", redis.ask::<Vec<String>>(&["KEYS", "*"]));
    redis.freeze();
    works(&laptop);
    redis.thaw();
    redis.kill();
    works(&laptop);
    redis.restart();
    works(&laptop);
    for _ in 0..600 {
        if intact(&redis).len() == 1 {
            break;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(100));
    }
    assert_eq!(intact(&redis).len(), 1, "it is rebuilt");
    worker.stop();
    controller.stop();
}

#[test]
fn a_controller_starts_without_its_redis() {
    let Some(mut redis) = Redis::start() else { return };
    redis.kill();
    let (server, laptop, builder) = (TestEnv::new(), TestEnv::new(), TestEnv::new());
    let url = redis.url();
    let (controller, worker) = mesh(&server, &builder, &laptop, &["--redis-url", &url]);
    works(&laptop);
    worker.stop();
    controller.stop();
}

#[test]
fn its_url_is_a_secret_and_must_be_one() {
    let env = TestEnv::new();
    let with = |url: &str, args: &[&str]| Ran::of(env.command(args).env("ADO_REDIS_URL", url));
    let url = "redis://:hunter2@localhost";
    let shown = with(url, &["config", "show", "-o", "json"]);
    shown.assert_code(0);
    assert!(!shown.stdout().contains("hunter2"));
    let keys = shown.json();
    let key = keys.as_array().expect("keys").iter().find(|key| key["key"] == "controller.redis.url");
    assert_eq!(key.expect("the key")["from"], Value::from("ADO_REDIS_URL"));

    let refused = with("http://:hunter2@localhost", &CONTROLLER);
    refused.assert_code(125);
    let stderr = refused.stderr();
    assert!(stderr.contains("redis://host:port") && stderr.contains("ado config show"), "{stderr}");
    assert!(!stderr.contains("hunter2"), "{stderr}");
}

#[test]
fn the_embedded_controller_of_a_user_keeps_its_queue_to_itself() {
    let Some(redis) = shared() else { return };
    let env = TestEnv::new();
    let before = redis.ask::<Vec<String>>(&["KEYS", "mine:*"]);
    let ran =
        Ran::of(env.command(["run", "echo hi"]).env("ADO_REDIS_URL", redis.url()).env("ADO_REDIS_PREFIX", "mine:"));
    ran.assert_code(0);
    assert_eq!(before, redis.ask::<Vec<String>>(&["KEYS", "mine:*"]));
}

/// A CA, and a server's certificate and key under it, as files in `folder`.
fn certificates(folder: &std::path::Path) {
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).expect("a certificate").pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().expect("a key");
    let leaf = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let leaf = leaf.signed_by(&key, &issuer).expect("a certificate").pem();
    for (name, text) in [("ca.pem", ca_pem), ("redis.pem", leaf), ("redis.key", key.serialize_pem())] {
        std::fs::write(folder.join(name), text).expect("it is written");
    }
}

#[test]
fn redis_may_speak_tls() {
    let (server, laptop, builder) = (TestEnv::new(), TestEnv::new(), TestEnv::new());
    let folder = server.work();
    certificates(folder);
    let path = |name: &str| folder.join(name).display().to_string();
    let (cert, key, ca) = (path("redis.pem"), path("redis.key"), path("ca.pem"));
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port();
    let port = free.to_string();
    let files = ["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let asks = ["--tls-port", &port, "--bind", "127.0.0.1", "--tls-auth-clients", "no"];
    let Some(redis) = Redis::start_with(&[&files[..], &asks].concat()) else { return };
    let with = |trusted: &str| {
        let mut command = server.command(CONTROLLER);
        command.env("ADO_REDIS_URL", format!("rediss://localhost:{port}")).env("SSL_CERT_FILE", trusted);
        Service::of(&mut command)
    };
    let (controller, worker) = mesh_of(with(&ca), &builder, &laptop);
    works(&laptop);
    let keys = redis.ask::<Vec<String>>(&["KEYS", "ado:*:intact"]);
    assert_eq!(keys.len(), 1);
    worker.stop();
    controller.stop();

    // Somebody else's certificate: it is not talked to, and nothing else suffers.
    redis.ask::<()>(&["FLUSHALL"]);
    let other = TestEnv::new();
    certificates(other.work());
    let mut controller = with(&other.work().join("ca.pem").display().to_string());
    controller.json();
    assert_eq!(redis.ask::<Vec<String>>(&["KEYS", "*"]), [""; 0]);
    controller.stop();
}
