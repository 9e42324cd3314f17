//! What lies where in ado's own directory.

use std::io;
use std::path::{Path, PathBuf};

use ado_proto::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest path of a home, in bytes: SQLite takes 512, the names in it included.
const LONGEST: usize = 400;

/// The directory of one user's ado.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

/// One of the two background processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Keeps tasks and logs.
    Controller,
    /// Runs agents.
    Worker,
}

impl Role {
    /// The word people see; also the command that starts it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Worker => "worker",
        }
    }
}

/// Where the local controller is: written by it once it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its process.
    pub pid: u32,
    /// `host:port` of its QUIC endpoints.
    pub quic: Vec<String>,
    /// `host:port` of its HTTP endpoint, if it has one.
    pub http: Option<String>,
    /// Microseconds since the Unix epoch.
    pub started_at: Timestamp,
}

impl Home {
    /// A home at `path`. Relative paths are taken from the current directory, once.
    ///
    /// # Errors
    /// When the current directory cannot be read, or the path is longer than a store's may be.
    pub fn at(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let length = path.as_os_str().len();
        if length > LONGEST {
            let text = format!("its path has {length} bytes; {LONGEST} are the most");
            return Err(io::Error::new(io::ErrorKind::InvalidFilename, text));
        }
        Ok(Self(path))
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where a role keeps what is its own.
    pub fn dir(&self, role: Role) -> PathBuf {
        self.0.join(role.as_str())
    }

    /// Where a role that was started by hand keeps what is its own, unless it is told: never where the background
    /// process of this user does.
    pub fn by_hand(&self, role: Role) -> PathBuf {
        self.0.join("serve").join(role.as_str())
    }

    /// Held for life by a role's process, with its pid in it.
    pub fn lock(&self, role: Role) -> PathBuf {
        self.dir(role).join(format!("{}.lock", role.as_str()))
    }

    /// What a role's process prints and logs.
    pub fn log(&self, role: Role) -> PathBuf {
        self.0.join(format!("{}.log", role.as_str()))
    }

    /// Held while somebody starts a process.
    pub fn start_lock(&self) -> PathBuf {
        self.0.join("start.lock")
    }

    /// While it exists nobody restarts anything.
    pub fn down_marker(&self) -> PathBuf {
        self.0.join("down")
    }

    /// The administrator's identity of the local mesh.
    pub fn admin(&self) -> PathBuf {
        self.0.join("admin")
    }

    /// The local worker's identity.
    pub fn worker_identity(&self) -> PathBuf {
        self.dir(Role::Worker).join("identity")
    }

    /// Where the remote context of a name is kept.
    pub fn context(&self, name: &str) -> PathBuf {
        self.contexts().join(name)
    }

    /// Where is kept what was seen of meshes.
    pub fn cache(&self) -> PathBuf {
        self.0.join("cache")
    }

    /// Where remote contexts are kept.
    pub fn contexts(&self) -> PathBuf {
        self.0.join("contexts")
    }

    /// Networks that were found to block UDP.
    pub fn networks(&self) -> PathBuf {
        self.0.join("networks.json")
    }

    /// Names the current remote context.
    pub fn current_context(&self) -> PathBuf {
        self.0.join("current-context")
    }

    /// What the controller of this or a former life wrote about itself.
    pub fn endpoint(&self) -> Option<Endpoint> {
        read_json(&self.endpoint_path())
    }

    /// Says where the controller is.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_endpoint(&self, endpoint: &Endpoint) -> io::Result<()> {
        write_json(&self.endpoint_path(), endpoint)
    }

    fn endpoint_path(&self) -> PathBuf {
        self.dir(Role::Controller).join("endpoint.json")
    }
}

/// Reads a file one of ado's processes wrote. A missing or half-understood file is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Writes a file so that readers see the old or the new one, never a part.
///
/// # Errors
/// When it cannot be written.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(value)?;
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_read_as_written_and_nonsense_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        assert_eq!(home.endpoint(), None);
        std::fs::create_dir_all(home.dir(Role::Controller)).unwrap();
        let endpoint = Endpoint { pid: 7, quic: vec!["127.0.0.1:4433".into()], http: None, started_at: Timestamp(1) };
        home.write_endpoint(&endpoint).unwrap();
        assert_eq!(home.endpoint(), Some(endpoint));
        std::fs::write(home.endpoint_path(), "{").unwrap();
        assert_eq!(home.endpoint(), None);
    }

    #[test]
    fn a_path_that_no_store_takes_is_refused() {
        assert!(Home::at(format!("/{}", "x/".repeat(200))).is_err());
        assert!(Home::at(format!("/{}", "x/".repeat(199))).is_ok());
    }
}
