//! A private redis-server: on a Unix socket in a folder of its own, without persistence, ended with this process however
//! that ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Starts the server, says its pid, waits for the pipe that ends with whoever holds its other end, and clears up. What the
/// kernel offers for this (a signal at the parent's death) is sent when the starting thread ends, and each test is a thread.
const KEEPER: &str = r#"
folder=$1; shift
"$@" >"$folder/log" 2>&1 </dev/null &
echo $!
cat >/dev/null
kill -KILL $! 2>/dev/null
wait
rm -rf -- "$folder"
"#;

pub struct Redis {
    folder: PathBuf,
    keeper: Child,
    pid: Pid,
}

/// The program. `None` (said loudly) when it is not installed; with `ADO_TEST=full` it is installed.
fn program() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join("redis-server")).find(|file| file.is_file())
    };
    let found = FOUND.get_or_init(|| {
        if let Some(found) = find() {
            return Some(found);
        }
        if std::env::var("ADO_TEST").is_ok_and(|tier| tier == "full") {
            install();
            return Some(find().expect("redis-server was installed"));
        }
        None
    });
    if found.is_none() {
        eprintln!(
            "SKIPPED: there is no redis-server here; install it, or set ADO_TEST=full (root) to have it installed"
        );
    }
    found.clone()
}

fn install() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/servers/install.sh");
    let status = Command::new("sh").arg(script).arg("redis-server").status().expect("a shell");
    assert!(status.success(), "redis-server cannot be installed");
}

/// The server that the tests of this process share, each with a prefix of its own. `None`: skip the test.
pub fn shared() -> Option<&'static Redis> {
    static SHARED: OnceLock<Option<Redis>> = OnceLock::new();
    SHARED.get_or_init(Redis::start).as_ref()
}

impl Redis {
    /// A server of one's own, to be mistreated. `None`: skip the test.
    pub fn start() -> Option<Self> {
        let program = program()?;
        let folder = tempfile::tempdir().expect("a temporary folder").keep();
        let (keeper, pid) = launch(&program, &folder);
        Some(Self { folder, keeper, pid })
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Stands still: connections stay, nothing is answered.
    pub fn freeze(&self) {
        kill(self.pid, Signal::SIGSTOP).expect("it runs");
    }

    /// Goes on.
    pub fn thaw(&self) {
        kill(self.pid, Signal::SIGCONT).expect("it runs");
    }

    /// Dies at once, with everything it held.
    pub fn kill(&mut self) {
        drop(self.keeper.stdin.take());
        self.keeper.wait().expect("its keeper ends");
    }

    /// Another one in its place, empty.
    pub fn restart(&mut self) {
        self.kill();
        (self.keeper, self.pid) = launch(&program().expect("it was there before"), &self.folder);
    }

    /// Asks it something, as another client.
    pub fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut connection = connect(&self.socket()).expect("it answers");
        let (name, arguments) = command.split_first().expect("a command");
        redis::cmd(name).arg(arguments).query(&mut connection).expect("it answers")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn launch(program: &Path, folder: &Path) -> (Child, Pid) {
    std::fs::create_dir_all(folder).expect("a folder");
    let mut keeper = Command::new("sh")
        .args(["-c", KEEPER, "keeper"])
        .arg(folder)
        .arg(program)
        .args(["--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no", "--unixsocket"])
        .arg(folder.join("socket"))
        .arg("--dir")
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut pid = String::new();
    BufReader::new(keeper.stdout.take().expect("it is piped")).read_line(&mut pid).expect("its pid");
    let pid = Pid::from_raw(pid.trim().parse().expect("a pid"));
    for _ in 0..600 {
        if connect(&folder.join("socket")).is_some() {
            return (keeper, pid);
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    panic!("redis-server does not answer: {}", std::fs::read_to_string(folder.join("log")).unwrap_or_default());
}

fn connect(socket: &Path) -> Option<redis::Connection> {
    let client = redis::Client::open(format!("unix://{}", socket.display())).expect("a URL");
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(30)).ok()?;
    redis::cmd("PING").query::<String>(&mut connection).ok()?;
    Some(connection)
}
