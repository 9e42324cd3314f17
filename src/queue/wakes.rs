//! Which logs have grown: what controllers tell each other, so that a viewer at one sees what another commits.
//!
//! Lossy, and says so: who missed something asks the store.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use ado_proto::{Offset, TaskId};
use async_trait::async_trait;
use tokio::sync::Notify;

/// Logs that one piece of news names. With more, it says only that there were.
const MAX_LOGS: usize = 4096;

/// Says and hears which logs have grown.
#[async_trait]
pub trait Wakes: Send + Sync + 'static {
    /// The other controllers should know that a log has grown up to `next`. Never waits; what is told while the last
    /// telling is under way is told together.
    fn tell(&self, task: TaskId, next: Offset);

    /// What others told since the last call, once there is something.
    async fn heard(&self) -> News;

    /// Whether what others tell gets here. While it does not, only the store knows.
    fn flows(&self) -> bool;
}

/// Logs that have grown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct News {
    /// How far each is known to reach.
    pub grown: BTreeMap<TaskId, Offset>,
    /// Others may have grown too.
    pub missed: bool,
}

impl News {
    fn is_empty(&self) -> bool {
        self.grown.is_empty() && !self.missed
    }

    fn add(&mut self, task: TaskId, next: Offset) {
        let known = self.grown.entry(task).or_default();
        *known = next.max(*known);
        if self.grown.len() > MAX_LOGS {
            *self = Self { grown: BTreeMap::new(), missed: true };
        }
    }
}

/// News on its way, gathered until it is taken: bounded however fast it comes.
#[derive(Default)]
pub(super) struct Gathered {
    news: Mutex<News>,
    more: Notify,
}

impl Gathered {
    pub(super) fn add(&self, task: TaskId, next: Offset) {
        self.with(|news| news.add(task, next));
    }

    pub(super) fn merge(&self, other: News) {
        self.with(|news| {
            other.grown.into_iter().for_each(|(task, next)| news.add(task, next));
            news.missed |= other.missed;
        });
    }

    /// Takes everything there is, once there is something. Nothing is lost when this is dropped before.
    pub(super) async fn take(&self) -> News {
        loop {
            // A permit is kept from `notify_one`: what is added from here on ends this wait.
            let more = self.more.notified();
            let news = std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner));
            if !news.is_empty() {
                return news;
            }
            more.await;
        }
    }

    fn with(&self, change: impl FnOnce(&mut News)) {
        change(&mut self.news.lock().unwrap_or_else(PoisonError::into_inner));
        self.more.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn task(n: usize) -> TaskId {
        TaskId(Uuid::from_u128(n as u128))
    }

    #[tokio::test]
    async fn gathers_the_furthest_of_each_log() {
        let gathered = Gathered::default();
        for (n, next) in [(1, 5), (2, 1), (1, 3), (2, 9)] {
            gathered.add(task(n), Offset(next));
        }
        let news = gathered.take().await;
        assert_eq!(news.grown, BTreeMap::from([(task(1), Offset(5)), (task(2), Offset(9))]));
        gathered.merge(News { missed: true, ..News::default() });
        gathered.add(task(1), Offset(6));
        let news = gathered.take().await;
        assert_eq!(news, News { grown: BTreeMap::from([(task(1), Offset(6))]), missed: true });
    }

    #[tokio::test]
    async fn is_bounded_and_says_that_it_forgot() {
        let gathered = Gathered::default();
        for n in 0..=MAX_LOGS {
            gathered.add(task(n), Offset(1));
        }
        gathered.add(task(0), Offset(2));
        let news = gathered.take().await;
        assert!(news.missed && news.grown.len() == 1, "{} logs", news.grown.len());
    }
}
