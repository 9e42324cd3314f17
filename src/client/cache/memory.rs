//! Reads what was kept. Waits for nobody, and changes nothing but the time of last use.

use ado_proto::{TaskId, Timestamp};

use super::Place;
use super::logs::KnownLog;
use super::tasks::{KnownTask, Table};

/// What this machine has seen of a mesh.
#[derive(Debug, Clone)]
pub struct Memory {
    place: Place,
}

impl Memory {
    /// What is kept at `place`.
    pub fn at(place: Place) -> Self {
        Self { place }
    }

    /// Whether there is anything.
    pub fn is_empty(&self) -> bool {
        !self.place.tasks().exists()
    }

    /// Every known task, newest first. Cheap enough for a completion: one file is read.
    pub fn tasks(&self) -> Vec<KnownTask> {
        Table::read(&self.place.tasks()).into_newest_first()
    }

    /// What is known of a task's log.
    pub fn log(&self, task: TaskId, now: Timestamp) -> Option<KnownLog> {
        KnownLog::read(&self.place.dir, task, now)
    }
}
