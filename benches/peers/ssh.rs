//! ssh to this machine.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::generator::sleep_until;
use crate::lines::monotonic_ns;
use crate::peer::{Peer, Running, own};

/// Names a client configuration in which the host `peer` is an sshd on this machine.
pub(crate) const CONFIG: &str = "ADO_PEERS_SSH_CONFIG";
/// How long the shared session may take to be there, nanoseconds.
const PATIENCE: u64 = 10_000_000_000;

pub(crate) struct Ssh {
    config: String,
    /// The session others are multiplexed on.
    master: Child,
    socket: PathBuf,
}

impl Ssh {
    pub(crate) fn start() -> io::Result<Option<Self>> {
        let Ok(config) = std::env::var(CONFIG) else { return Ok(None) };
        let socket = std::env::temp_dir().join(format!("ado-peers-{}.ssh", std::process::id()));
        let mut master = Command::new("ssh");
        master.args(["-F", &config, "-M", "-N", "-S"]).arg(&socket).arg("peer").stdin(Stdio::null());
        let peer = Self { master: master.spawn()?, config, socket };
        let late = monotonic_ns() + PATIENCE;
        while !peer.socket.exists() {
            if monotonic_ns() > late {
                return Err(io::Error::other("sshd does not answer"));
            }
            sleep_until(monotonic_ns() + 5_000_000);
        }
        Ok(Some(peer))
    }

    fn command(&self, share: bool, argv: &[String]) -> Command {
        let mut command = Command::new("ssh");
        command.args(["-F", &self.config]);
        if share {
            command.arg("-S").arg(&self.socket);
        }
        // Its shell splits the line again; our arguments are words without spaces.
        command.arg("peer").arg(argv.join(" "));
        command
    }
}

impl Peer for Ssh {
    fn name(&self) -> &'static str {
        "ssh"
    }

    fn start(&self, argv: &[String]) -> io::Result<Running> {
        Running::start(self.command(false, argv))
    }

    fn spawn_warm(&self) -> io::Result<Option<(u64, u64)>> {
        let begun = monotonic_ns();
        Ok(Some((begun, Running::start(self.command(true, &own(&["stamp"])))?.stamp()?)))
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        let _ = self.master.kill();
        let _ = self.master.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
