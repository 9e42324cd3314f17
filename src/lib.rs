//! ado runs AI coding agents on machines that are not your laptop.
//!
//! **A task is a log.** Everything that happens to a task is a record in one ordered, append-only log; its state is the
//! fold of it; `attach` is reading it from an offset and staying for more; recovery is appending under a newer epoch.

pub mod agents;
pub mod blobs;
pub mod cli;
pub mod client;
pub mod config;
pub mod controller;
pub mod env;
pub mod gateway;
pub mod json;
pub mod local;
pub mod net;
pub mod queue;
pub mod scheduler;
#[cfg(all(test, unix))]
#[path = "../tests/support/servers/mod.rs"]
mod servers;
pub mod store;
pub mod task;
pub mod tasks;
pub mod telemetry;
#[cfg(unix)]
pub mod worker;

/// This build, for people.
pub const BUILD: &str = concat!("ado ", env!("CARGO_PKG_VERSION"));
