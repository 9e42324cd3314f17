//! The binary as people run it.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

struct Netsim {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Netsim {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_netsim"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, to, from }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn tell(&mut self, command: &str) -> String {
        writeln!(self.to.as_mut().unwrap(), "{command}").unwrap();
        self.line()
    }
}

impl Drop for Netsim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_proxy_relays_obeys_and_ends() {
    let dir = std::env::temp_dir().join(format!("netsim-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (scenario, record) = (dir.join("scenario"), dir.join("record"));
    std::fs::write(&scenario, "seed 7\nset delay 5ms\nat 1h down\n").unwrap();
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    let relay = format!("laptop=udp:{}", far.local_addr().unwrap());
    let files = [scenario.to_str().unwrap(), record.to_str().unwrap()];
    let mut netsim = Netsim::start(&["proxy", &relay, "--until-eof", "--scenario", files[0], "--record", files[1]]);
    let started: serde_json::Value = serde_json::from_str(&netsim.line()).unwrap();
    assert_eq!(started["relays"][0]["link"], "laptop");
    let near = UdpSocket::bind("127.0.0.1:0").unwrap();
    near.set_read_timeout(Some(PATIENCE)).unwrap();
    near.connect(started["relays"][0]["listen"].as_str().unwrap()).unwrap();
    near.send(b"question").unwrap();
    let mut buffer = [0; 100];
    let (len, from) = far.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"question");
    far.send_to(b"answer", from).unwrap();
    let len = near.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"answer");
    assert_eq!(netsim.tell("on laptop set loss 2%"), "ok");
    assert_eq!(netsim.tell("set loss 200%"), "error: loss: `200%` is not a share from 0 to 1, as 2% or 0.02");
    let stats: serde_json::Value = serde_json::from_str(&netsim.tell("stats")).unwrap();
    assert_eq!(stats["laptop"]["down"]["delivered"], 1);
    drop(netsim.to.take());
    assert!(netsim.child.wait().unwrap().success());
    let record = std::fs::read_to_string(&record).unwrap();
    let lines: Vec<_> = record.lines().collect();
    assert_eq!(lines.len(), 3, "{record}");
    assert!(lines[1].starts_with("laptop,up,0,36,0.") && lines[1].ends_with(",delivered"), "{record}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[cfg(unix)]
#[test]
fn a_control_socket_takes_commands() {
    let path = std::env::temp_dir().join(format!("netsim-{}.sock", std::process::id()));
    let mut netsim = Netsim::start(&["proxy", "tcp:127.0.0.1:1", "--control", path.to_str().unwrap()]);
    netsim.line();
    let mut control = std::os::unix::net::UnixStream::connect(&path).unwrap();
    control.write_all(b"down 3s\nbogus\n").unwrap();
    let answers: Vec<_> = BufReader::new(&control).lines().take(2).map(Result::unwrap).collect();
    assert_eq!(answers[0], "ok");
    assert!(answers[1].starts_with("error: `bogus` is no command"), "{answers:?}");
    // SIGTERM is an orderly end.
    let killed = Command::new("kill").arg(netsim.child.id().to_string()).status().unwrap();
    assert!(killed.success() && netsim.child.wait().unwrap().success());
    assert!(!path.exists());
}

#[test]
fn bad_input_is_named() {
    let failed = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_netsim")).args(arguments).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(failed(&["proxy", "udp:4433"]).contains("`4433` is no address with a port"));
    assert!(
        failed(&["proxy", "udp:127.0.0.1:1", "--profile", "dialup"])
            .contains("there are wifi, wifi-flaky, lte and train")
    );
    let text = failed(&["proxy", "udp:127.0.0.1:1", "--scenario", "/nowhere"]);
    assert!(text.starts_with("netsim: /nowhere: No such file"), "{text}");
}
