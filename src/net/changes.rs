//! Notices that the network of this machine has changed.
//!
//! On Linux the kernel tells of links, addresses and routes (netlink). Everywhere else, and in case it does not tell, the
//! address that packets would leave from is asked for every now and then. A machine that slept is where it is now, whatever
//! was told: the clock that counts sleep shows it.

use std::time::Duration;

use tokio::time::sleep;

/// Changes come in bursts: link, address, route. The burst is over when nothing more comes for this long.
const SETTLED_AFTER: Duration = Duration::from_millis(50);
/// A burst that does not end is acted upon all the same.
const BURST: u32 = 4;
/// How often is looked when nothing is told.
const LOOK: Duration = Duration::from_millis(500);
/// A look that comes later than that by this much: the machine, or this process, did not run meanwhile.
const SLEPT: Duration = Duration::from_secs(1);

/// What may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// The kernel says that something has.
    Told,
    /// The machine was asleep.
    Woke,
    /// It is time to look.
    Look,
}

/// Tells of changes.
pub(super) struct Changes {
    told: Option<told::Told>,
    looked_at: Duration,
}

impl Changes {
    pub(super) fn watch() -> Self {
        let told = told::Told::listen();
        if let Err(error) = &told {
            tracing::debug!(%error, "the kernel does not tell of changes of the network");
        }
        Self { told: told.ok(), looked_at: clock_of_sleepers() }
    }

    /// The next change, or the time to look for one. Cancel safe.
    pub(super) async fn next(&mut self) -> Change {
        let told = match &mut self.told {
            Some(told) => tokio::select! {
                biased;
                () = settled(told) => true,
                () = sleep(LOOK) => false,
            },
            None => {
                sleep(LOOK).await;
                false
            }
        };
        let now = clock_of_sleepers();
        let since = now.saturating_sub(std::mem::replace(&mut self.looked_at, now));
        match told {
            _ if since > LOOK + SLEPT => Change::Woke,
            true => Change::Told,
            false => Change::Look,
        }
    }
}

async fn settled(told: &mut told::Told) {
    told.next().await;
    for _ in 0..BURST {
        if tokio::time::timeout(SETTLED_AFTER, told.next()).await.is_err() {
            return;
        }
    }
}

/// A clock that goes on while the machine sleeps, from any beginning.
#[cfg(unix)]
fn clock_of_sleepers() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    #[cfg(target_os = "linux")]
    const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;
    clock_gettime(CLOCK).map(Duration::from).unwrap_or_default()
}

/// Windows' timers count sleep.
#[cfg(not(unix))]
fn clock_of_sleepers() -> Duration {
    use std::sync::OnceLock;
    use tokio::time::Instant;
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

#[cfg(target_os = "linux")]
mod told {
    use std::io;
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
    use tokio::net::UdpSocket;

    /// Groups of `linux/rtnetlink.h`: links, and addresses and routes of both families.
    const GROUPS: i32 = libc::RTMGRP_LINK
        | libc::RTMGRP_IPV4_IFADDR
        | libc::RTMGRP_IPV6_IFADDR
        | libc::RTMGRP_IPV4_ROUTE
        | libc::RTMGRP_IPV6_ROUTE;

    /// A socket on which the kernel tells of changes. Not UDP; it is read like that.
    pub(super) struct Told(UdpSocket);

    impl Told {
        pub(super) fn listen() -> io::Result<Self> {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS.cast_unsigned()))?;
            Ok(Self(UdpSocket::from_std(fd.into())?))
        }

        /// Something has changed. What it is does not matter, so neither that a message is cut off nor that the socket
        /// overflowed. Cancel safe.
        pub(super) async fn next(&mut self) {
            match self.0.recv(&mut [0; 512]).await {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => {
                    tracing::debug!(%error, "the kernel does not tell of changes any more");
                    std::future::pending().await
                }
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod told {
    use std::io;

    pub(super) struct Told;

    impl Told {
        pub(super) fn listen() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(super) async fn next(&mut self) {
            std::future::pending().await
        }
    }
}
