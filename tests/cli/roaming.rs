//! A laptop whose address, interface and route change under it: `ADO_TEST=full`, root, Linux.
//!
//! `ADO_ROAM_SECONDS` says for how long (10 unless given); every five seconds the network is another. What is measured is
//! printed: `ADO_TEST=full ADO_ROAM_SECONDS=120 cargo test --test cli roaming:: -- --nocapture`.

#![cfg(target_os = "linux")]

use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::support::{Ran, Running, Service, TestEnv};

/// Where the controller is, whatever leads there.
const CONTROLLER: &str = "10.99.0.1:4433";
const EVERY: Duration = Duration::from_secs(5);
/// Far above what a change costs: a test must not fail because its machine is busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A network namespace of this test; gone with it.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let name = format!("ado-{}-{name}", std::process::id());
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Self(name)
    }

    /// The command, in it.
    fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", &self.0]).arg(command.get_program()).args(command.get_args()).env_clear();
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside.current_dir(command.get_current_dir().expect("a test's own"));
        inside.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        inside
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(args: &[&str]) {
    let ran = Command::new("ip").args(args).output().expect("iproute2 is there");
    assert!(ran.status.success(), "ip {}: {}", args.join(" "), String::from_utf8_lossy(&ran.stderr));
}

/// Networks that come one after the other between a laptop and a server.
struct Networks<'a> {
    laptop: &'a Namespace,
    server: &'a Namespace,
    number: u8,
}

impl Networks<'_> {
    /// The old interface goes with its address and its routes, another comes. Returns once its route can be used.
    fn next(&mut self) {
        if self.number > 0 {
            ip(&["-n", &self.laptop.0, "link", "del", &format!("near{}", self.number)]);
        }
        self.number += 1;
        let number = self.number;
        let (near, far) = (format!("near{number}"), format!("far{number}"));
        let (laptop, server) = (self.laptop.0.as_str(), self.server.0.as_str());
        ip(&["link", "add", &near, "netns", laptop, "type", "veth", "peer", "name", &far, "netns", server]);
        ip(&["-n", server, "addr", "add", &format!("10.77.{number}.1/24"), "dev", &far]);
        ip(&["-n", server, "link", "set", &far, "up"]);
        ip(&["-n", laptop, "addr", "add", &format!("10.77.{number}.2/24"), "dev", &near]);
        ip(&["-n", laptop, "link", "set", &near, "up"]);
        ip(&["-n", laptop, "route", "add", "default", "via", &format!("10.77.{number}.1")]);
    }
}

/// The lines of a command and when they came.
fn lines(mut running: Running) -> (Receiver<(String, Instant)>, impl FnOnce()) {
    let (tx, rx) = channel();
    let pid = running.id();
    let reader = std::thread::spawn(move || {
        while let Some(line) = running.next_line() {
            if tx.send((line, Instant::now())).is_err() {
                break;
            }
        }
        let _ = running.end();
    });
    let stop = move || {
        let _ = nix::sys::signal::kill(pid, Signal::SIGINT);
        reader.join().expect("the reader ends");
    };
    (rx, stop)
}

#[test]
fn the_network_changes_again_and_again_under_a_viewer() {
    if !std::env::var("ADO_TEST").is_ok_and(|tier| tier == "full") {
        eprintln!("SKIPPED: needs root and ADO_TEST=full, to make network namespaces");
        return;
    }
    let seconds =
        std::env::var("ADO_ROAM_SECONDS").map_or(10, |text| text.parse().expect("ADO_ROAM_SECONDS: a number"));
    let (here, there) = (Namespace::new("laptop"), Namespace::new("server"));
    ip(&["-n", &there.0, "addr", "add", "10.99.0.1/32", "dev", "lo"]);
    let mut networks = Networks { laptop: &here, server: &there, number: 0 };
    networks.next();

    let (server, laptop, builder) = (TestEnv::new(), TestEnv::new(), TestEnv::new());
    let args = ["controller", "--listen", CONTROLLER, "--http", "127.0.0.1:0", "-o", "json", "--log-level", "error"];
    let mut controller = Service::of(&mut there.inside(&server.command(args)));
    let said = controller.json();
    let ado = |args: &[&str]| {
        let ran = Ran::of(&mut here.inside(&laptop.command(args)));
        ran.assert_code(0);
        ran.stdout().trim().to_owned()
    };
    ado(&["join", said["join"].as_str().expect("a join string")]);
    let join = ado(&["--remote", "token", "create", "--role", "worker"]);
    let worker = Service::of(&mut there.inside(&builder.command(["worker", "--join", &join, "--log-level", "error"])));

    // A hundred lines a second.
    let count = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";
    let watching = Running::start(here.inside(&laptop.command(["run", "--remote", count])));
    let (lines, stop) = lines(watching);
    let mut expected = 0u64;
    let mut next = |patience: Duration| match lines.recv_timeout(patience) {
        Ok((line, at)) => {
            assert_eq!(line.trim_end(), expected.to_string(), "every line once, in order");
            expected += 1;
            Some(at)
        }
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => panic!("it ended after {expected} lines"),
    };
    next(PATIENCE).expect("a first line");
    let mut pauses = Vec::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let change_at = Instant::now() + EVERY;
        while Instant::now() < change_at {
            next(change_at.saturating_duration_since(Instant::now()));
        }
        networks.next();
        let usable_at = Instant::now();
        loop {
            let at =
                next(PATIENCE).unwrap_or_else(|| panic!("nothing for {PATIENCE:?} after change {}", networks.number));
            if at > usable_at {
                pauses.push(at.duration_since(usable_at));
                break;
            }
        }
    }
    pauses.sort_unstable();
    let longest = pauses.last().expect("a change");
    eprintln!(
        "{} changes, first line after each: median {:?}, longest {longest:?}",
        pauses.len(),
        pauses[pauses.len() / 2]
    );
    assert!(expected > seconds * 20, "{expected} lines");
    stop();
    worker.stop();
    controller.stop();
}
