//! The in-process queue of the embedded default and of simulations. Each [`Clone`] is one consumer's handle on the same
//! hints, as one controller's connection to a shared queue would be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ado_proto::TaskId;
use async_trait::async_trait;

use super::pushes::Pushes;
use super::{Class, Error, Hint, Queue};

/// A queue in memory.
///
/// It holds one hint a task and class, so no more than there are queued tasks: a bound of its own would only make it
/// forget tasks that the store has anyway.
#[derive(Clone)]
pub struct Local {
    held: Arc<Mutex<Held>>,
    pushes: Pushes,
}

#[derive(Default)]
struct Held {
    classes: BTreeMap<Class, Hints>,
    intact: bool,
}

/// The same hints by order and by task. Never empty.
#[derive(Default)]
struct Hints {
    order: BTreeSet<Hint>,
    scores: BTreeMap<TaskId, i64>,
}

impl Local {
    /// An empty queue, not intact: whoever starts with it gives it the hints of the tasks there are.
    #[expect(clippy::new_without_default, reason = "a queue is made on purpose")]
    pub fn new() -> Self {
        Self { held: Arc::default(), pushes: Pushes::default() }
    }

    /// Loses everything, as a queue in a process of its own does when that is restarted.
    pub fn flush(&self) {
        *self.held() = Held::default();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hints {
    fn push(&mut self, hint: Hint) {
        if let Some(score) = self.scores.get_mut(&hint.task) {
            if *score <= hint.score {
                return;
            }
            self.order.remove(&Hint { score: *score, task: hint.task });
        }
        self.scores.insert(hint.task, hint.score);
        self.order.insert(hint);
    }

    fn pop(&mut self) -> Option<Hint> {
        let hint = self.order.pop_first()?;
        self.scores.remove(&hint.task);
        Some(hint)
    }
}

#[async_trait]
impl Queue for Local {
    async fn push(&self, class: &Class, hints: &[Hint]) -> Result<(), Error> {
        if hints.is_empty() {
            return Ok(());
        }
        {
            let mut held = self.held();
            let of_class = held.classes.entry(class.clone()).or_default();
            hints.iter().for_each(|hint| of_class.push(*hint));
        }
        self.pushes.add();
        Ok(())
    }

    async fn pop(&self, class: &Class, limit: usize) -> Result<Vec<Hint>, Error> {
        let mut held = self.held();
        let Some(hints) = held.classes.get_mut(class) else { return Ok(Vec::new()) };
        let popped = std::iter::from_fn(|| hints.pop()).take(limit).collect();
        if hints.order.is_empty() {
            held.classes.remove(class);
        }
        Ok(popped)
    }

    async fn classes(&self) -> Result<Vec<Class>, Error> {
        Ok(self.held().classes.keys().cloned().collect())
    }

    async fn len(&self, class: &Class) -> Result<usize, Error> {
        Ok(self.held().classes.get(class).map_or(0, |hints| hints.order.len()))
    }

    async fn is_intact(&self) -> Result<bool, Error> {
        Ok(self.held().intact)
    }

    async fn mark_rebuilt(&self) -> Result<(), Error> {
        self.held().intact = true;
        Ok(())
    }

    /// One consumer a handle: of two that wait on the same one at different times, one may miss a push.
    async fn pushed(&self) {
        self.pushes.next().await;
    }
}
