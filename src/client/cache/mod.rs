//! What this machine has seen of a mesh, kept so that known tasks can be shown while the mesh does not answer.
//!
//! Owns: files below one folder, one subfolder a mesh and caller. [`Recorder`] writes them in a thread of its own that never
//! makes a session wait: when it does not keep up, or cannot write, it skips. [`Memory`] reads them.
//!
//! A log is claimed only as the ranges of offsets that were really received, under the generation they were received
//! under, so that what is shown is always part of the true log. Every entry of a file is framed and checksummed: what a
//! killed process left half written is cut. Must never know: the network, printing, when it is right to use it.

mod frames;
mod journal;
mod logs;
mod memory;
mod ranges;
mod recorder;
mod tasks;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use ado_certs::Identity;
use ado_proto::Namespace;

pub use logs::{Known as KnownRecord, KnownLog};
pub use memory::Memory;
pub use recorder::Recorder;
pub use tasks::KnownTask;

/// Most tasks kept of one mesh and caller.
pub const MAX_TASKS: usize = 1000;
/// Most bytes kept of one log, as stored.
pub const MAX_LOG: u64 = 16 * 1024 * 1024;

/// Where, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The folder of all meshes.
    root: PathBuf,
    /// The subfolder of one mesh and caller.
    dir: PathBuf,
    /// Most bytes of all logs of all meshes, about.
    max_bytes: u64,
}

impl Place {
    /// The place below `root` for what `identity` sees of its mesh in `namespace`. Another CA, another caller or another
    /// namespace is another place, whatever the context is called.
    pub fn of(root: &Path, identity: &Identity, namespace: Option<&Namespace>, max_bytes: u64) -> Self {
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        let namespace = namespace.map(ToString::to_string).unwrap_or_default();
        for part in [identity.pin().to_string(), identity.principal().to_string(), namespace] {
            digest.update(part.as_bytes());
            digest.update(&[0]);
        }
        let digest = digest.finish();
        let name: String = digest.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { root: root.into(), dir: root.join(name), max_bytes }
    }

    fn tasks(&self) -> PathBuf {
        self.dir.join("tasks.seen")
    }
}
