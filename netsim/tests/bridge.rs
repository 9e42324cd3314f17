//! Namespaces over a link, with the kernel's own UDP and TCP: `ADO_TEST=full`, root, Linux.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace of this test; gone with it.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("netsim-{}-{name}", std::process::id());
        assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
        Self(name)
    }

    /// Does something in it.
    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let namespace = File::open(format!("/run/netns/{}", self.0)).unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_crosses_a_bridge_is_delayed_lost_and_readdressed() {
    if std::env::var("ADO_TEST").is_ok_and(|tier| tier == "full") {
        crosses();
    } else {
        eprintln!("SKIPPED: needs root and ADO_TEST=full, to make network namespaces");
    }
}

fn crosses() {
    let (near, far) = (Namespace::new("near"), Namespace::new("far"));
    let ends = [format!("{}=10.99.0.1/24", near.0), format!("{}=10.99.0.200/24", far.0)];
    let mut child = Command::new(env!("CARGO_BIN_EXE_netsim"))
        .args(["bridge", &ends[0], &ends[1]])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let _ended = Ended(child);
    let mut line = || {
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        line.trim().to_owned()
    };
    assert_eq!(line(), "{\"bridge\":\"up\"}");
    let mut tell = |command: &str| {
        writeln!(to, "{command}").unwrap();
        line()
    };
    assert_eq!(tell("set delay 20ms"), "ok");

    let far_address: SocketAddr = "10.99.0.200:7000".parse().unwrap();
    let server = far.inside(move || UdpSocket::bind(far_address).unwrap()).join().unwrap();
    let client = near.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap()).join().unwrap();
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let ask = || {
        let start = Instant::now();
        client.send_to(b"question", far_address).unwrap();
        let mut buffer = [0; 100];
        let (_, from) = server.recv_from(&mut buffer).unwrap();
        server.send_to(b"answer", from).unwrap();
        client.recv(&mut buffer).unwrap();
        (from, start.elapsed())
    };
    let (seen, took) = ask();
    assert_eq!(seen.ip().to_string(), "10.99.0.1");
    assert!(took >= Duration::from_millis(40), "{took:?}");
    assert_eq!(tell("rebind address"), "ok");
    assert_eq!(ask().0.ip().to_string(), "10.99.0.2");

    assert_eq!(tell("set loss 2% rate 100mbit"), "ok");
    let listener = far.inside(|| TcpListener::bind("10.99.0.200:7001").unwrap()).join().unwrap();
    let sent: Vec<u8> = (0..500_000u32).map(|at| (at.wrapping_mul(at) >> 5) as u8).collect();
    let copy = sent.clone();
    let sending = near.inside(move || TcpStream::connect("10.99.0.200:7001").unwrap().write_all(&copy).unwrap());
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    sending.join().unwrap();
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
    let stats: serde_json::Value = serde_json::from_str(&tell("stats")).unwrap();
    assert!(stats["bridge"]["up"]["dropped"]["loss"].as_u64() > Some(0), "{stats}");

    assert_eq!(tell("block udp"), "ok");
    client.send_to(b"lost", far_address).unwrap();
    assert_eq!(tell("nat none"), "error: a bridge has no NAT of its own; give the near namespace one with nft");
    while serde_json::from_str::<serde_json::Value>(&tell("stats")).unwrap()["bridge"]["up"]["dropped"]["blackout"] == 0
    {
        std::thread::yield_now();
    }
}
