//! Two network namespaces with a simulated link between them: whatever speaks IP crosses it, with the kernel's own TCP.
//!
//! Each namespace gets a TUN device with an address; the process in between moves the packets. Needs root, and the
//! namespaces (`ip netns add NAME`). The devices are gone when it ends. Linux only. Offloads do not reach a TUN device, so
//! what crosses are single packets; ECN stays as it is, and a queue that would mark drops instead.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path as FilePath, PathBuf};
use std::process::Command as Process;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::command::{Command, CommandError, Edge, ReadFile, Way};
use crate::link::{Packet, Protocol, What};
use crate::path::{Output, Path};
use crate::record::Record;
use crate::scenario::Scenario;
use crate::timer;

/// The devices' name.
const DEVICE: &str = "netsim0";
/// Packets read at a time, so that timers have their turn.
const BATCH: usize = 64;

/// What to connect.
#[derive(Debug, Clone)]
pub struct Config {
    /// Whose packets go up, and whose address `rebind address` changes.
    pub near: End,
    /// The other.
    pub far: End,
    /// What the link does over time.
    pub scenario: Scenario,
    /// Where to write what happened to every packet.
    pub record: Option<PathBuf>,
}

/// One end: `NAMESPACE=ADDRESS/PREFIX`, as `laptop=10.99.0.1/24`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// As `ip netns` names it.
    pub namespace: String,
    /// The device's address.
    pub address: Ipv4Addr,
    /// How many of its bits are the network's.
    pub prefix: u8,
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(name, rest)| Some((name, rest.split_once('/')?)));
        let end = parts.and_then(|(name, (address, prefix))| {
            let (address, prefix) = (address.parse().ok()?, prefix.parse().ok().filter(|prefix| *prefix <= 32)?);
            (!name.is_empty()).then(|| Self { namespace: name.to_owned(), address, prefix })
        });
        end.ok_or_else(|| format!("`{text}` is not NAMESPACE=ADDRESS/PREFIX, as laptop=10.99.0.1/24"))
    }
}

/// Why a bridge does not start, or does not obey.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A namespace that cannot be entered.
    #[error("enter the network namespace {name}; `ip netns add {name}` makes it, as root")]
    Namespace {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A device that cannot be made.
    #[error("make a TUN device in {name}")]
    Device {
        /// In which namespace.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A command of the system that failed.
    #[error("`{command}`: {message}")]
    Ip {
        /// Which.
        command: String,
        /// What it said.
        message: String,
    },
    /// A record that cannot be written.
    #[error("write {}", path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line that is no command.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A command the namespaces have something better for.
    #[error("a bridge has no NAT of its own; give the near namespace one with nft")]
    NoNat,
}

/// A link between namespaces, until it is dropped.
#[derive(Debug)]
pub struct Bridge {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    started_at: Instant,
    changed: Notify,
    devices: [AsyncFd<File>; 2],
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    path: Path<Box<[u8]>>,
    near: End,
    record: Option<Record>,
    armed_for: Option<Duration>,
}

impl Bridge {
    /// Makes the devices and connects them.
    ///
    /// # Errors
    /// When a namespace is not there, or may not be changed.
    pub fn start(config: Config) -> Result<Self, Error> {
        let record = match config.record {
            Some(path) => Some(Record::create(&path).map_err(|source| Error::Record { path, source })?),
            None => None,
        };
        let devices = [device(&config.near)?, device(&config.far)?];
        let path = Path::new("bridge", &config.scenario);
        let state = State { path, near: config.near, record, armed_for: None };
        let (started_at, changed) = (Instant::now(), Notify::new());
        let shared = Arc::new(Shared { started_at, changed, devices, state: Mutex::new(state) });
        let mut tasks = JoinSet::new();
        for way in Way::BOTH {
            tasks.spawn(read(shared.clone(), way));
        }
        tasks.spawn(run(shared.clone()));
        Ok(Self { shared, _tasks: tasks })
    }

    /// Does what a line says, now: a [`Command`], or `stats`, which is answered with JSON.
    ///
    /// # Errors
    /// When the line is no command, or none a bridge can carry out.
    pub fn tell(&self, line: &str, read_file: ReadFile<'_>) -> Result<String, Error> {
        if line.trim() == "stats" {
            let mut state = self.shared.lock();
            state.carry(&self.shared);
            if let Some(record) = &state.record {
                record.flush();
            }
            let (up, down) = (state.path.link(Way::Up).totals(), state.path.link(Way::Down).totals());
            return Ok(serde_json::json!({ "bridge": { "up": up.json(), "down": down.json() } }).to_string());
        }
        let command = Command::parse(line, read_file)?;
        let mut state = self.shared.lock();
        match command {
            Command::Edge(Edge::RebindAddress) => state.near.readdress()?,
            Command::Edge(_) => return Err(Error::NoNat),
            command => state.path.apply(self.shared.started_at.elapsed(), &command),
        }
        drop(state);
        self.shared.changed.notify_one();
        Ok("ok".to_owned())
    }
}

async fn run(shared: Arc<Shared>) {
    loop {
        let next = {
            let mut state = shared.lock();
            state.carry(&shared);
            state.armed_for = state.path.next_at();
            state.armed_for.map(|next| shared.started_at + next)
        };
        timer::changed_or(next, &shared.changed).await;
    }
}

/// Reads what is sent from the end at which `way` begins.
async fn read(shared: Arc<Shared>, way: Way) {
    let mut buffer = vec![0; 65536];
    let device = &shared.devices[way as usize];
    loop {
        let Ok(mut ready) = device.readable().await else { return };
        for _ in 0..BATCH {
            match ready.try_io(|device| device.get_ref().read(&mut buffer)) {
                Ok(Ok(len)) => {
                    let mut state = shared.lock();
                    let now = shared.started_at.elapsed();
                    state.path.send(now, way, packet(&buffer[..len]), buffer[..len].into());
                    state.carry(&shared);
                    let next = state.path.next_at();
                    if next.is_some_and(|next| state.armed_for.is_none_or(|armed| next < armed)) {
                        state.armed_for = next;
                        shared.changed.notify_one();
                    }
                }
                // The device is gone with its namespace.
                Ok(Err(_)) => return,
                Err(_) => break,
            }
        }
        tokio::task::yield_now().await;
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn carry(&mut self, shared: &Shared) {
        let now = shared.started_at.elapsed();
        while let Some(output) = self.path.poll(now) {
            match output {
                Output::Packet(way, event) => {
                    if let Some(record) = &self.record {
                        record.add("bridge", way, &event);
                    }
                    if let What::Delivered { payload, .. } = event.what {
                        let device = &shared.devices[1 - way as usize];
                        // A full device drops, as a network card does.
                        let _ = device.try_io(Interest::WRITABLE, |mut device| device.write(&payload));
                    }
                }
                Output::Edge(_, Edge::RebindAddress) => {
                    if let Err(error) = self.near.readdress() {
                        eprintln!("netsim: {error}");
                    }
                }
                Output::Edge(..) => eprintln!("netsim: {}", Error::NoNat),
            }
        }
    }
}

/// What a link sees of an IP packet.
fn packet(bytes: &[u8]) -> Packet {
    let number = match bytes.first().map(|first| first >> 4) {
        Some(4) => bytes.get(9),
        Some(6) => bytes.get(6),
        _ => None,
    };
    let protocol = match number {
        Some(6) => Protocol::Tcp,
        Some(17) => Protocol::Udp,
        _ => Protocol::Other,
    };
    Packet { protocol, size: bytes.len(), markable: false }
}

impl End {
    /// The next address of its network instead of this one.
    fn readdress(&mut self) -> Result<(), Error> {
        let next = Ipv4Addr::from(u32::from(self.address).wrapping_add(1));
        let (old, new) = (format!("{}/{}", self.address, self.prefix), format!("{next}/{}", self.prefix));
        ip(&self.namespace, &["addr", "add", &new, "dev", DEVICE])?;
        ip(&self.namespace, &["addr", "del", &old, "dev", DEVICE])?;
        // Where the old one was the first, its removal takes the new one along.
        ip(&self.namespace, &["addr", "replace", &new, "dev", DEVICE])?;
        self.address = next;
        Ok(())
    }
}

fn device(end: &End) -> Result<AsyncFd<File>, Error> {
    let name = end.namespace.clone();
    let failed = |source| Error::Namespace { name: name.clone(), source };
    let namespace = File::open(FilePath::new("/run/netns").join(&end.namespace)).map_err(failed)?;
    // A thread of its own: it does not come back from the namespace.
    let made = std::thread::spawn(move || -> io::Result<File> {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        tun()
    });
    let made = made.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes it failed")));
    let file = made.map_err(|source| Error::Device { name: name.clone(), source })?;
    ip(&name, &["addr", "add", &format!("{}/{}", end.address, end.prefix), "dev", DEVICE])?;
    ip(&name, &["link", "set", DEVICE, "up"])?;
    registered(file).map_err(|source| Error::Device { name, source })
}

#[expect(unsafe_code, reason = "registering a descriptor is safe only for who keeps it open")]
fn registered(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a file keeps its descriptor open, and the registration owns the file.
    Ok(unsafe { AsyncFd::register(file) }?)
}

#[expect(unsafe_code, reason = "no wrapper has this call")]
fn tun() -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(DEVICE.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    let request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: TUNSETIFF reads an ifreq, which lives until the call is over.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw const request) };
    if result == 0 { Ok(file) } else { Err(io::Error::last_os_error()) }
}

fn ip(namespace: &str, arguments: &[&str]) -> Result<(), Error> {
    let command = format!("ip -n {namespace} {}", arguments.join(" "));
    let failed = |message| Error::Ip { command: command.clone(), message };
    let output = Process::new("ip").args(["-n", namespace]).args(arguments).output();
    let output = output.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_read() {
        let end: End = "laptop=10.99.0.1/24".parse().unwrap();
        assert_eq!((end.namespace.as_str(), end.address, end.prefix), ("laptop", Ipv4Addr::new(10, 99, 0, 1), 24));
        for wrong in ["laptop", "laptop=10.99.0.1", "laptop=10.99.0.1/33", "=10.99.0.1/24", "laptop=::1/64"] {
            assert!(wrong.parse::<End>().unwrap_err().contains("is not NAMESPACE=ADDRESS/PREFIX"), "{wrong}");
        }
    }

    #[test]
    fn protocols_are_told_apart() {
        let v4 = |number| {
            let mut bytes = [0; 28];
            bytes[0] = 0x45;
            bytes[9] = number;
            packet(&bytes).protocol
        };
        assert_eq!([v4(6), v4(17), v4(1)], [Protocol::Tcp, Protocol::Udp, Protocol::Other]);
        let mut v6 = [0; 48];
        (v6[0], v6[6]) = (0x60, 17);
        assert_eq!(packet(&v6), Packet { protocol: Protocol::Udp, size: 48, markable: false });
    }
}
