//! A private server that speaks S3: moto, from PyPI, in memory, with one bucket.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::{Keep, Kept};

const PACKAGE: &str = "moto[server]==5.2.1";
/// How often a server that starts is looked at, and for how long.
const LOOK: Duration = Duration::from_millis(50);
const LOOKS: u32 = 1200;
/// The bucket that is there.
pub const BUCKET: &str = "snapshots";

/// A server of one's own. It ends with this value, or with the process.
pub struct S3 {
    address: SocketAddr,
    _server: Kept,
}

/// `None`: skip the test.
fn program() -> Option<&'static Path> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join("moto_server")).find(|file| file.is_file())
    };
    let install = || {
        let folder = std::env::temp_dir().join("ado-test-moto");
        let installed = folder.join("bin/moto_server");
        if !installed.is_file() {
            for (program, arguments) in [
                ("python3", vec!["-m".into(), "venv".into(), folder.clone().into_os_string()]),
                (folder.join("bin/pip").to_str()?, vec!["install".into(), "--quiet".into(), PACKAGE.into()]),
            ] {
                let done = Command::new(program).args(arguments).status();
                assert!(done.is_ok_and(|status| status.success()), "{PACKAGE} cannot be installed");
            }
        }
        Some(installed)
    };
    FOUND
        .get_or_init(|| {
            find().or_else(|| {
                if super::full() {
                    return install();
                }
                eprintln!("SKIPPED: there is no moto_server here; install {PACKAGE}, or set ADO_TEST=full to have it");
                None
            })
        })
        .as_deref()
}

impl S3 {
    /// Starts one. `None`: skip the test.
    pub fn start() -> Option<Self> {
        let program = program()?;
        let folder = tempfile::tempdir().expect("a temporary folder").keep();
        // It takes no port that the system chooses: one that was free a moment ago.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = free.expect("a port");
        let port = address.port().to_string();
        let keep = Keep { folder: &folder, signal: "KILL", user: None };
        let server = Kept::start(&keep, program, &["-H", "127.0.0.1", "-p", &port]);
        for _ in 0..LOOKS {
            if make_bucket(address).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return Some(Self { address, _server: server });
            }
            #[expect(clippy::disallowed_methods, reason = "a server tells nobody when it is there")]
            std::thread::sleep(LOOK);
        }
        let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        panic!("moto_server does not start: {log}");
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

fn make_bucket(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    let head = format!("PUT /{BUCKET} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
