//! `docker logs -f` of a container on this machine.

use std::io;
use std::process::{Command, Stdio};

use crate::lines::monotonic_ns;
use crate::peer::{Peer, Running, own};

/// Names an image in which this program runs when `/usr` and its own folder are mounted. `DOCKER_HOST` says where.
pub(crate) const IMAGE: &str = "ADO_PEERS_DOCKER_IMAGE";

pub(crate) struct Docker {
    image: String,
    /// The folder this program is in.
    folder: String,
    /// A container that only waits.
    idle: String,
}

impl Docker {
    pub(crate) fn start() -> io::Result<Option<Self>> {
        let Ok(image) = std::env::var(IMAGE) else { return Ok(None) };
        let program = own(&[]).remove(0);
        let folder = std::path::Path::new(&program).parent().expect("a program is in a folder");
        let folder = folder.to_str().expect("cargo's folders are UTF-8").to_owned();
        let mut docker = Self { image, folder, idle: String::new() };
        docker.idle = docker.background(&["/usr/bin/sleep".into(), "infinity".into()])?;
        Ok(Some(docker))
    }

    fn run(&self, how: &[&str], argv: &[String]) -> Command {
        let mut command = Command::new("docker");
        let own = format!("{0}:{0}:ro", self.folder);
        command.arg("run").args(how).args(["--network", "none", "-v", "/usr:/usr:ro", "-v", &own, &self.image]);
        command.args(argv);
        command
    }

    /// Starts a container; its id.
    fn background(&self, argv: &[String]) -> io::Result<String> {
        let started = self.run(&["-d"], argv).stderr(Stdio::inherit()).output()?;
        let id = String::from_utf8_lossy(&started.stdout).trim().to_owned();
        if started.status.success() { Ok(id) } else { Err(io::Error::other("docker cannot run a container")) }
    }

    fn remove(id: &str) -> Command {
        let mut remove = Command::new("docker");
        remove.args(["rm", "-f", id]);
        remove
    }
}

impl Peer for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn start(&self, argv: &[String]) -> io::Result<Running> {
        let id = self.background(argv)?;
        let mut logs = Command::new("docker");
        logs.args(["logs", "-f", &id]);
        Ok(Running::start(logs)?.then(Self::remove(&id)))
    }

    /// 50 containers are not what it is for.
    fn start_many(&self, _argv: &[String], _times: usize) -> io::Result<Option<Vec<Running>>> {
        Ok(None)
    }

    fn spawn(&self) -> io::Result<(u64, u64)> {
        let begun = monotonic_ns();
        Ok((begun, Running::start(self.run(&["--rm"], &own(&["stamp"])))?.stamp()?))
    }

    fn spawn_warm(&self) -> io::Result<Option<(u64, u64)>> {
        let begun = monotonic_ns();
        let mut exec = Command::new("docker");
        exec.args(["exec", &self.idle]).args(own(&["stamp"]));
        Ok(Some((begun, Running::start(exec)?.stamp()?)))
    }

    fn list(&self) -> Option<Command> {
        let mut list = Command::new("docker");
        list.args(["ps", "-a"]);
        Some(list)
    }

    /// Its log files are JSON text.
    fn is_binary(&self) -> bool {
        false
    }

    /// A container takes half a second.
    fn starts(&self, wished: usize) -> usize {
        wished.div_ceil(5)
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = Self::remove(&self.idle).stdout(Stdio::null()).status();
    }
}
