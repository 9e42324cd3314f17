//! Hints: ids worth trying to claim, in order of score. And wake-ups: which logs have grown. Losing all of them costs
//! delay, never truth.
//!
//! Must never know: what a task is.

#[cfg(test)]
mod conformance;
mod local;
mod pushes;
mod redis;
mod wakes;

use ado_proto::{Namespace, TaskId};
use async_trait::async_trait;

pub use local::Local;
pub use redis::{Redis, RedisConfig};
pub use wakes::{News, Wakes, Word};

/// What may be claimed together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class {
    /// Where the tasks live.
    pub namespace: Namespace,
    /// Which workers may take them.
    pub pool: String,
    /// Which agent they need.
    pub agent: String,
}

/// A task worth trying to claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hint {
    /// Lower is earlier; see [`crate::store::score`].
    pub score: i64,
    /// Which.
    pub task: TaskId,
}

/// What a queue can fail with: it is not to be had. Callers claim from the store instead.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the queue is unavailable: {0}")]
pub struct Error(pub String);

/// Where hints are kept.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Adds hints; one that is there already keeps its lower score.
    async fn push(&self, class: &Class, hints: &[Hint]) -> Result<(), Error>;

    /// Takes up to `limit` hints, lowest score first, lowest id among equals.
    async fn pop(&self, class: &Class, limit: usize) -> Result<Vec<Hint>, Error>;

    /// Classes that have hints.
    async fn classes(&self) -> Result<Vec<Class>, Error>;

    /// Hints of a class.
    async fn len(&self, class: &Class) -> Result<usize, Error>;

    /// Whether the queue still holds what it was given: `false` once after a restart or flush, until
    /// [`Queue::mark_rebuilt`].
    async fn is_intact(&self) -> Result<bool, Error>;

    /// All hints have been given again.
    async fn mark_rebuilt(&self) -> Result<(), Error>;

    /// Resolves when something may have been pushed, by this or another process.
    async fn pushed(&self);
}
