//! A private PostgreSQL cluster: on a Unix socket in a folder of its own, durable as in production.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, raw_sql};

use super::{Keep, Kept};

/// How often a server that starts is looked at, and for how long.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 3000;

/// A cluster of one's own. It ends with this value, or with the process.
pub struct Cluster {
    folder: PathBuf,
    user: Option<(u32, u32)>,
    server: Option<Kept>,
}

/// A database of one's own in the shared cluster. It stays until the cluster ends.
pub struct Database {
    cluster: &'static Cluster,
    name: String,
}

/// The folder of the programs. `None`: skip the test.
fn programs() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let newest = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).filter(|folder| folder.join("initdb").is_file());
        let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut installed: Vec<_> = installed.map(|entry| entry.path().join("bin")).collect();
        installed.sort();
        on_path.chain(installed.into_iter().rev()).find(|folder| folder.join("postgres").is_file())
    };
    // The link on the path may be the only one: the real folder has all of them.
    let real = || fs::canonicalize(newest()?.join("postgres")).ok()?.parent().map(Path::to_owned);
    FOUND.get_or_init(|| super::program("PostgreSQL", "postgresql", real)).as_deref()
}

/// A server refuses to run as root: somebody else it is then.
fn somebody() -> Option<(u32, u32)> {
    if !Uid::effective().is_root() {
        return None;
    }
    let known = |name| User::from_name(name).ok().flatten();
    let user = known("postgres").or_else(|| known("nobody")).expect("`nobody` is somebody");
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

/// The cluster that the tests of this process share. `None`: skip the test.
pub fn shared() -> Option<&'static Cluster> {
    static SHARED: OnceLock<Option<Cluster>> = OnceLock::new();
    SHARED.get_or_init(Cluster::start).as_ref()
}

/// A new, empty database in the shared cluster. `None`: skip the test.
pub async fn database() -> Option<Database> {
    let cluster = shared()?;
    Some(Database { cluster, name: cluster.create("template1").await })
}

/// A copy of a database that `prepare` fills, once for all of this process. `None`: skip the test.
pub async fn copy_of<F: Future<Output = ()>>(prepare: impl FnOnce(String) -> F) -> Option<Database> {
    static TEMPLATE: tokio::sync::OnceCell<String> = tokio::sync::OnceCell::const_new();
    let cluster = shared()?;
    let template = TEMPLATE
        .get_or_init(|| async {
            let name = cluster.create("template1").await;
            prepare(cluster.url(&name)).await;
            name
        })
        .await;
    Some(Database { cluster, name: cluster.create(template).await })
}

impl Database {
    pub fn url(&self) -> String {
        self.cluster.url(&self.name)
    }

    /// A connection as another program's.
    pub async fn connect(&self) -> PgConnection {
        connect(&self.url()).await.expect("it answers")
    }

    /// Runs SQL as another program would.
    pub async fn meddle(&self, sql: &'static str) {
        raw_sql(sql).execute(&mut self.connect().await).await.expect("it is done");
    }
}

async fn connect(url: &str) -> sqlx::Result<PgConnection> {
    url.parse::<PgConnectOptions>().expect("a URL").disable_statement_logging().connect().await
}

impl Cluster {
    /// A new cluster. `None`: skip the test.
    pub fn start() -> Option<Self> {
        programs()?;
        let folder = tempfile::Builder::new().prefix("ado-pg-").tempdir().expect("a temporary folder").keep();
        Self::start_in(folder)
    }

    /// A new cluster in this empty folder, which goes with it. `None`: skip the test.
    pub fn start_in(folder: PathBuf) -> Option<Self> {
        let programs = programs()?;
        let user = somebody();
        if let Some((user, group)) = user {
            chown(&folder, Some(user), Some(group)).expect("it is given away");
        }
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o711)).expect("it is ours");
        let mut cluster = Self { folder, user, server: None };
        let data = cluster.data();
        let arguments = ["-D", &data, "-U", "ado", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"];
        let mut initdb = Command::new(programs.join("initdb"));
        initdb.args(arguments).current_dir(&cluster.folder).stdout(Stdio::null());
        if let Some((user, group)) = user {
            std::os::unix::process::CommandExt::uid(&mut initdb, user);
            std::os::unix::process::CommandExt::gid(&mut initdb, group);
        }
        assert!(initdb.status().expect("initdb runs").success(), "initdb failed");
        cluster.launch();
        Some(cluster)
    }

    fn data(&self) -> String {
        self.folder.join("data").display().to_string()
    }

    /// Starts the server and waits until it takes connections.
    pub fn launch(&mut self) {
        let postgres = programs().expect("it was there before").join("postgres");
        let (data, sockets) = (self.data(), self.folder.display().to_string());
        let settings = ["max_connections=300", "shared_buffers=64MB", "max_wal_size=128MB"];
        let place = ["-D", &data, "-k", &sockets, "-h", ""];
        let arguments: Vec<_> = place.into_iter().chain(settings.into_iter().flat_map(|one| ["-c", one])).collect();
        let keep = Keep { folder: &self.folder, signal: "QUIT", user: self.user };
        for look in 0..LOOKS {
            // After a kill the old processes may hold its memory for a moment: then it ends at once, and is started again.
            if look == 0 || !self.runs() {
                if let Some(dead) = self.server.take() {
                    dead.forget();
                }
                self.server = Some(Kept::start(&keep, &postgres, &arguments));
            }
            // The last line says what it does.
            let pid = fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap_or_default();
            if pid.starts_with(&format!("{}\n", self.pid()))
                && pid.lines().nth(7).is_some_and(|line| line.trim() == "ready")
            {
                return;
            }
            std::thread::park_timeout(LOOK);
        }
        panic!("PostgreSQL does not start: {}", fs::read_to_string(self.folder.join("log")).unwrap_or_default());
    }

    fn pid(&self) -> i32 {
        self.server.as_ref().expect("it was started").pid
    }

    /// Whether the server is there.
    pub fn runs(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    /// Kills the server as a power cut would; its sessions are cut with it.
    pub fn crash(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGKILL).expect("it runs");
    }

    /// Asks the server to end at once and in order, and waits for that.
    pub fn shut_down(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGINT).expect("it runs");
        for _ in 0..LOOKS {
            if !self.runs() {
                return;
            }
            std::thread::park_timeout(LOOK);
        }
        panic!("PostgreSQL does not end");
    }

    /// Where a database is.
    pub fn url(&self, name: &str) -> String {
        let host: String = self.folder.display().to_string().replace('/', "%2F");
        format!("postgres://ado@{host}/{name}")
    }

    async fn create(&self, template: &str) -> String {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", LAST.fetch_add(1, Ordering::Relaxed));
        let mut connection = connect(&self.url("postgres")).await.expect("it answers");
        let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
        raw_sql(AssertSqlSafe(create)).execute(&mut connection).await.expect("a database");
        connection.close().await.expect("it ends");
        name
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server = None;
    }
}
