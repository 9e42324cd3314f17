//! Networks that let no UDP pass: nothing changes but the path.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use ado_netsim::proxy::{Config, Proxy, RelayConfig};
use nix::sys::signal::Signal;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::remote::token;
use crate::support::{Running, Service, TestEnv};

/// Far above what a step takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A network between the mesh and its controller.
struct Between {
    _runtime: Runtime,
    proxy: Proxy,
}

impl Between {
    /// From one port to another, UDP and TCP.
    fn new(near: u16, far: u16) -> Self {
        let at = |port| (Ipv4Addr::LOCALHOST, port).into();
        let relays = [RelayConfig::udp("link", at(far)), RelayConfig::tcp("link", at(far))];
        let relays = relays.map(|relay| RelayConfig { listen: Some(at(near)), ..relay });
        let runtime = Runtime::new().expect("threads");
        let proxy = runtime.block_on(Proxy::start(Config { relays: relays.into(), ..Config::default() }));
        Self { _runtime: runtime, proxy: proxy.expect("a free port") }
    }

    fn tell(&self, command: &str) {
        let answer = self.proxy.tell(command, &|_| Err("no files here".into())).expect("a command");
        assert_eq!(answer, "ok");
    }
}

/// A port number that is free for UDP and for TCP.
fn free_port() -> u16 {
    for _ in 0..100 {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = udp.local_addr().expect("bound").port();
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// Numbers in order and without a gap, until `done` is content.
fn read_on(running: &mut Running, next: &mut u32, mut done: impl FnMut(u32) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert_eq!(running.line().trim_end(), next.to_string());
        *next += 1;
        if done(*next) {
            return;
        }
        assert!(Instant::now() < deadline, "still at {next}");
    }
}

#[test]
fn a_task_is_followed_whatever_becomes_of_udp() {
    let (near, far) = (free_port(), free_port());
    let between = Between::new(near, far);
    let (server, laptop, builder) = (TestEnv::new(), TestEnv::new(), TestEnv::new());
    let (listen, advertise) = (format!("127.0.0.1:{far}"), format!("127.0.0.1:{near}"));
    let args = ["controller", "--listen", &listen, "--advertise", &advertise, "--http", "127.0.0.1:0", "-o", "json"];
    let mut controller = Service::start(&server, args.iter().chain(&["--log-level", "error"]));
    let said = controller.json();
    between.tell("block udp");

    // Where it was blocked from the start, even a stranger gets in.
    laptop.ado(["join", said["join"].as_str().expect("a join string")]).assert_code(0);
    let join = token(&laptop, &["--role", "worker"]);
    let worker = Service::start(&builder, ["worker", "--join", &join, "--log-level", "error"]);
    let ran = laptop.ado(["run", "--remote", "echo through; exit 3"]);
    ran.assert_code(3);
    assert_eq!(ran.stdout(), "through\n");
    let known = std::fs::read_to_string(laptop.home().join("networks.json")).expect("what was found is kept");
    assert!(known.contains("127.0.0.1"), "{known}");

    let doctor = laptop.ado(["net", "doctor", "--remote", "--count", "3"]);
    doctor.assert_code(0);
    let said = doctor.stdout();
    assert!(said.contains("warning  udp        127.0.0.1:"), "{said}");
    assert!(said.contains("is blocked, by this network or the controller's firewall"), "{said}");
    assert!(said.contains("ok       websocket  127.0.0.1:"), "{said}");
    assert!(said.contains("ok       latency    an answer takes"), "{said}");

    let mut watching = laptop.start(["run", "--remote", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"]);
    let mut next = 0;
    read_on(&mut watching, &mut next, |next| next > 20);
    for (command, lines) in [("heal udp", 150), ("block tcp", 100), ("heal tcp", 10), ("block udp", 100)] {
        between.tell(command);
        let enough = next + lines;
        read_on(&mut watching, &mut next, |next| next > enough);
    }
    watching.signal(Signal::SIGINT);
    let (code, ..) = watching.end();
    assert_eq!(code, Some(0), "detached");
    worker.stop();
    controller.stop();
}

#[test]
fn who_wants_no_websocket_gets_none() {
    let (near, far) = (free_port(), free_port());
    let between = Between::new(near, far);
    let (server, laptop) = (TestEnv::new(), TestEnv::new());
    let (listen, advertise) = (format!("127.0.0.1:{far}"), format!("127.0.0.1:{near}"));
    let args = ["controller", "--listen", &listen, "--advertise", &advertise, "--http", "127.0.0.1:0", "-o", "json"];
    let mut controller = Service::start(&server, args.iter().chain(&["--log-level", "error"]));
    let said = controller.json();
    laptop.ado(["join", said["join"].as_str().expect("a join string")]).assert_code(0);
    between.tell("block udp");
    let mut command = laptop.command(["--remote", "list"]);
    command.env("ADO_WEBSOCKET", "false");
    let ran = crate::support::Ran::of(&mut command);
    ran.assert_code(125);
    assert!(ran.stderr().contains("no answer within"), "{}", ran.stderr());
    assert!(!ran.stderr().contains("WebSocket"), "{}", ran.stderr());
    // Nothing works: the doctor says so, and what to do.
    between.tell("block tcp");
    let doctor = laptop.ado(["net", "doctor", "--remote", "-o", "json"]);
    doctor.assert_code(1);
    let said = doctor.json();
    let bad = said["checks"].as_array().expect("checks").iter().filter(|check| check["grade"] == "bad");
    assert_eq!(bad.map(|check| check["check"].as_str().expect("a word")).collect::<Vec<_>>(), ["udp", "websocket"]);
    controller.stop();
}
