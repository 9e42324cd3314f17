//! Which logs have grown: what controllers tell each other, so that a viewer at one sees what another commits.
//!
//! Lossy, and says so: who missed something asks the store.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use ado_proto::{Offset, TaskId, WorkerId};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use uuid::Uuid;

/// Logs that one piece of news names. With more, it says only that there were.
const MAX_LOGS: usize = 4096;
/// The same for words, by their weight.
const MAX_WORDS: usize = 2048;

/// Says and hears which logs have grown.
#[async_trait]
pub trait Wakes: Send + Sync + 'static {
    /// The other controllers should know that a log has grown up to `next`. Never waits; what is told while the last
    /// telling is under way is told together.
    fn tell(&self, task: TaskId, next: Offset);

    /// The other controllers should hear this. Never waits, and may get lost.
    fn say(&self, word: Word);

    /// What others told since the last call, once there is something.
    async fn heard(&self) -> News;

    /// Whether what others tell gets here. While it does not, only the store knows.
    fn flows(&self) -> bool;
}

/// What controllers tell each other beside what the store knows: it makes what the store says happen sooner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Word {
    /// Something else is wanted of a task that a worker holds.
    Wanted {
        /// The task.
        task: TaskId,
        /// The worker.
        worker: WorkerId,
    },
    /// Something else is wanted of workers.
    Wishes,
    /// A task waits that nobody connected here could take.
    Unplaced,
    /// Viewers are to leave, and to be counted.
    Leave {
        /// Tells this question from others.
        asked: Uuid,
        /// What they follow.
        tasks: Vec<TaskId>,
        /// Whose they are; `None`: everybody's.
        principal: Option<String>,
        /// Who wants it, as `role/name`.
        by: String,
    },
    /// So many were told to leave.
    Left {
        /// The question.
        asked: Uuid,
        /// How many.
        viewers: u32,
    },
}

impl Word {
    /// About how much of a message it takes, in logs.
    fn weight(&self) -> usize {
        match self {
            Self::Leave { tasks, .. } => 8 + tasks.len(),
            _ => 2,
        }
    }
}

/// Logs that have grown, and words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct News {
    /// How far each is known to reach.
    pub grown: BTreeMap<TaskId, Offset>,
    /// Others may have grown too, and words may have been lost.
    pub missed: bool,
    /// In the order in which they were said.
    pub words: Vec<Word>,
}

impl News {
    fn is_empty(&self) -> bool {
        self.grown.is_empty() && !self.missed && self.words.is_empty()
    }

    fn add(&mut self, task: TaskId, next: Offset) {
        let known = self.grown.entry(task).or_default();
        *known = next.max(*known);
        if self.grown.len() > MAX_LOGS {
            self.grown.clear();
            self.missed = true;
        }
    }

    fn say(&mut self, word: Word) {
        // Said twice, once is enough.
        if !self.words.contains(&word) {
            self.words.push(word);
        }
        if self.words.iter().map(Word::weight).sum::<usize>() > MAX_WORDS {
            self.words.clear();
            self.missed = true;
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

    pub(super) fn say(&self, word: Word) {
        self.with(|news| news.say(word));
    }

    pub(super) fn merge(&self, other: News) {
        self.with(|news| {
            other.grown.into_iter().for_each(|(task, next)| news.add(task, next));
            news.missed |= other.missed;
            other.words.into_iter().for_each(|word| news.say(word));
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
        assert_eq!(news, News { grown: BTreeMap::from([(task(1), Offset(6))]), missed: true, ..News::default() });
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
        let leave =
            |n| Word::Leave { asked: Uuid::from_u128(n), tasks: vec![task(1); 1000], principal: None, by: "b".into() };
        for n in 0..9 {
            gathered.say(leave(n));
            gathered.say(Word::Unplaced);
        }
        let news = gathered.take().await;
        assert!(news.missed && news.words.len() < 5, "{} words", news.words.len());
        (0..9).for_each(|_| gathered.say(Word::Unplaced));
        assert_eq!(gathered.take().await, News { words: vec![Word::Unplaced], ..News::default() });
    }
}
