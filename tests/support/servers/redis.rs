//! A private redis-server: on a Unix socket in a folder of its own, without persistence.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Keep, Kept};

/// How often a server that starts is looked at, and for how long.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 3000;

/// A server of one's own. It ends with this value, or with the process.
pub struct Redis {
    folder: PathBuf,
    more: Vec<String>,
    server: Option<Kept>,
}

/// `None`: skip the test.
fn program() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let on_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join("redis-server")).find(|file| file.is_file())
    };
    FOUND.get_or_init(|| super::program("redis-server", "redis-server", on_path)).as_deref()
}

/// The server that the tests of this process share, each with a prefix of its own. `None`: skip the test.
pub fn shared() -> Option<&'static Redis> {
    static SHARED: OnceLock<Option<Redis>> = OnceLock::new();
    SHARED.get_or_init(Redis::start).as_ref()
}

impl Redis {
    /// A server to be mistreated. `None`: skip the test.
    pub fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// The same with more settings.
    pub fn start_with(more: &[&str]) -> Option<Self> {
        let program = program()?;
        let folder = tempfile::tempdir().expect("a temporary folder").keep();
        let more: Vec<_> = more.iter().map(ToString::to_string).collect();
        let server = Some(launch(program, &folder, &more));
        Some(Self { folder, more, server })
    }

    /// Where it is.
    pub fn url(&self) -> String {
        url(&self.folder)
    }

    /// Stands still: connections stay, nothing is answered.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Goes on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(server) = &self.server {
            kill(Pid::from_raw(server.pid), signal).expect("it runs");
        }
    }

    /// Dies at once, with everything it held.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Answers again, whatever was done to it: empty, if it had died.
    pub fn revive(&mut self) {
        match &self.server {
            Some(_) => self.thaw(),
            None => self.restart(),
        }
    }

    /// Forgets everything. `false`: it does not answer.
    pub fn flush(&self) -> bool {
        let Ok(client) = redis::Client::open(self.url()) else { return false };
        let answer = client.get_connection_with_timeout(LOOK).and_then(|mut connection| {
            connection.set_read_timeout(Some(Duration::from_secs(1)))?;
            redis::cmd("FLUSHALL").query::<String>(&mut connection)
        });
        answer.is_ok()
    }

    /// Another one in its place, empty.
    pub fn restart(&mut self) {
        self.kill();
        std::fs::create_dir_all(&self.folder).expect("a folder");
        self.server = Some(launch(program().expect("it was there before"), &self.folder, &self.more));
    }

    /// Asks it something, as another client.
    pub fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut connection = connect(&self.folder).expect("it answers");
        let (name, arguments) = command.split_first().expect("a command");
        redis::cmd(name).arg(arguments).query(&mut connection).expect("it answers")
    }
}

fn url(folder: &Path) -> String {
    format!("unix://{}", folder.join("socket").display())
}

fn launch(program: &Path, folder: &Path, more: &[String]) -> Kept {
    let fixed = ["--save", "", "--appendonly", "no", "--daemonize", "no", "--unixsocket", "socket"];
    let port = ["--port", "0"];
    let arguments: Vec<_> = fixed.into_iter().chain(port).chain(more.iter().map(String::as_str)).collect();
    let server = Kept::start(&Keep { folder, signal: "KILL", user: None }, program, &arguments);
    for _ in 0..LOOKS {
        if connect(folder).is_some() {
            return server;
        }
        std::thread::park_timeout(LOOK);
    }
    panic!("redis-server does not answer: {}", std::fs::read_to_string(folder.join("log")).unwrap_or_default());
}

fn connect(folder: &Path) -> Option<redis::Connection> {
    let client = redis::Client::open(url(folder)).expect("a URL");
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(30)).ok()?;
    redis::cmd("PING").query::<String>(&mut connection).ok()?;
    Some(connection)
}
