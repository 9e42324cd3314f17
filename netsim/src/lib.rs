//! Networks that misbehave: one engine, and forms in which programs meet it.
//!
//! The engine ([`Link`] for a direction, [`Path`] for both and a [`Scenario`] over time, [`nat::Table`] for addresses) is
//! pure: it takes packets with a time and says when which copies come out. What happens to a packet is a function of the
//! seed, its link and its place on that link, so a run replays, and a change on one link disturbs no other.
//!
//! - *Virtual*: [`Network`] and [`Runtime`] behind quinn's socket and runtime traits. Time is tokio's, which a test can
//!   pause: hours then pass in no time.
//! - *Proxy*: [`proxy::Proxy`], and `netsim proxy`: relays for real processes.
//! - *Bridge*: `bridge::Bridge`, and `netsim bridge`: TUN devices between two network namespaces, on Linux.
//!
//! Must never know: what the packets say.

#[cfg(target_os = "linux")]
pub mod bridge;
pub mod command;
pub mod link;
pub mod nat;
mod network;
pub mod path;
pub mod plot;
pub mod profile;
pub mod proxy;
mod random;
pub mod record;
mod runtime;
pub mod scenario;
mod socket;
mod timer;
mod units;

pub use command::{Command, Edge, Way};
pub use link::{Conditions, Link};
pub use network::{Host, NatHandle, Network};
pub use path::Path;
pub use profile::Profile;
pub use runtime::Runtime;
pub use scenario::Scenario;
