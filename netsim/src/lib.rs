//! A network in memory, behind quinn's socket and runtime traits: hosts, links with delay and loss, blackouts.
//!
//! Time is tokio's, which a test can pause: hours then pass in no time. What happens to a packet is a function of the
//! seed, its link and its place on that link, so a change on one link disturbs no other.
//!
//! Must never know: what the packets say.

mod network;
mod runtime;
mod socket;

pub use network::{Conditions, Host, Network};
pub use runtime::Runtime;
