//! A real controller, spoken to over real QUIC by workers and callers that these tests play themselves: what happens when
//! they die, lie, repeat themselves or have no business here.

#[expect(unreachable_pub, reason = "shared by test binaries")]
#[path = "../support/mesh.rs"]
mod mesh;
#[path = "../support/metrics.rs"]
mod metrics_page;
#[path = "../support/servers/mod.rs"]
mod servers;

mod access;
mod attempts;
mod controllers;
mod detach;
mod events;
mod failures;
mod lists;
mod metrics;
mod queue;
mod secrets;
mod snapshots;
mod viewers;
mod workers;
