//! What other controllers commit: their wake-ups, and looks at the store for those that do not come. And what else they
//! say: it makes happen sooner here what the store says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ado_proto::TaskId;
use ado_proto::request::{ErrorCode, ErrorReply};
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::fleet::want;
use super::hub::Hub;
use super::{Shared, mesh};
use crate::queue::{Wakes, Word};
use crate::store;

/// How often viewers ask the store while wake-ups flow. It bounds what a controller costs them that is cut off from the
/// queue alone: it commits, and cannot tell.
const QUIET: Duration = Duration::from_secs(1);
/// The same while they do not.
const POLL: Duration = Duration::from_millis(50);

/// How long others may take to count viewers.
const COUNT_FOR: Duration = Duration::from_secs(1);

/// Runs until it is dropped. `hear` is given what others say.
pub(super) async fn run(hub: Arc<Hub>, wakes: Arc<dyn Wakes>, hear: impl Fn(Vec<Word>)) {
    let mut poll_at = Instant::now();
    loop {
        let pause = if wakes.flows() { QUIET } else { POLL };
        poll_at = poll_at.min(Instant::now() + pause);
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(poll_at) => {
                hub.poll();
                poll_at = Instant::now() + pause;
            }
            news = wakes.heard() => {
                if news.missed {
                    hub.doubt();
                }
                news.grown.into_iter().for_each(|(task, next)| hub.reached(task, next));
                // What is done to a task is a system event, too.
                hub.news();
                if !news.words.is_empty() {
                    hear(news.words);
                }
            }
        }
    }
}

/// Questions that others are answering.
#[derive(Default)]
pub(super) struct Asked(Mutex<BTreeMap<Uuid, mpsc::Sender<u32>>>);

impl Asked {
    fn ask(&self, question: Uuid, answers: usize) -> mpsc::Receiver<u32> {
        let (answer, answered) = mpsc::channel(answers.max(1));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(question, answer);
        answered
    }

    fn answer(&self, question: Uuid, viewers: u32) {
        if let Some(answer) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&question) {
            // More than were expected: one that has just come.
            let _ = answer.try_send(viewers);
        }
    }

    fn forget(&self, question: Uuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&question);
    }
}

/// Does what others say.
pub(super) async fn hear(shared: &Shared, words: Vec<Word>) {
    for word in words {
        let done = match word {
            Word::Wanted { task, worker } if shared.fleet.is_connected(worker) => tell_want(shared, task).await,
            Word::Wanted { .. } => Ok(()),
            Word::Wishes => mesh::look_for_wishes(shared).await,
            Word::Unplaced => {
                shared.unplaced.notify_one();
                Ok(())
            }
            Word::Leave { asked, tasks, principal, by } => {
                let leaving = shared.viewers.take(&tasks, principal.as_deref());
                shared.say(Word::Left { asked, viewers: leaving.count() });
                leaving.tell(&by);
                Ok(())
            }
            Word::Left { asked, viewers } => {
                shared.asked.answer(asked, viewers);
                Ok(())
            }
        };
        if let Err(error) = done {
            // The next heartbeat's answer says it, or the next look.
            tracing::debug!(%error, "what another controller said waits");
        }
    }
}

async fn tell_want(shared: &Shared, task: TaskId) -> store::Result<()> {
    if let Some(row) = shared.store.row(task).await?
        && let Some(lease) = &row.lease
    {
        shared.fleet.tell(lease.worker, lease.incarnation, want(&row.task));
        shared.tell_answers(&row);
    }
    Ok(())
}

impl Shared {
    /// Says something to the other controllers, if there are any.
    pub(super) fn say(&self, word: Word) {
        if let Some(others) = &self.others {
            others.say(word);
        }
    }

    /// Has the viewers of tasks at other controllers leave: of one principal, or everybody's. How many they were.
    ///
    /// # Errors
    /// There are other controllers, and they cannot be told.
    pub(super) async fn detach_elsewhere(
        &self,
        tasks: &[TaskId],
        principal: Option<&str>,
        by: &str,
    ) -> Result<u32, ErrorReply> {
        let expected = self.mesh.others();
        if expected == 0 {
            return Ok(0);
        }
        let Some(others) = self.others.as_ref().filter(|others| others.flows()) else {
            let message = "the controllers cannot hear each other now: their Redis is not there";
            return Err(ErrorReply::new(ErrorCode::Unavailable, message).hint("try again in a moment"));
        };
        let asked = self.env.uuid();
        let mut answers = self.asked.ask(asked, expected);
        others.say(Word::Leave { asked, tasks: tasks.to_vec(), principal: principal.map(Into::into), by: by.into() });
        let until = Instant::now() + COUNT_FOR;
        let mut viewers = 0;
        for _ in 0..expected {
            // One that has died says nothing.
            let Ok(Some(count)) = tokio::time::timeout_at(until, answers.recv()).await else { break };
            viewers += count;
        }
        self.asked.forget(asked);
        Ok(viewers)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use ado_proto::record::{Note, Record};
    use ado_proto::{Offset, Origin, Timestamp};
    use async_trait::async_trait;

    use super::*;
    use crate::queue::News;

    /// What one controller is told by the test, and what it tells.
    struct Played {
        news: tokio::sync::Mutex<mpsc::Receiver<News>>,
        told: Mutex<Vec<(TaskId, Offset)>>,
        flows: AtomicBool,
    }

    #[async_trait]
    impl Wakes for Played {
        fn tell(&self, task: TaskId, next: Offset) {
            self.told.lock().unwrap().push((task, next));
        }

        fn say(&self, _: Word) {}

        async fn heard(&self) -> News {
            self.news.lock().await.recv().await.expect("the test goes on")
        }

        fn flows(&self) -> bool {
            self.flows.load(Ordering::Relaxed)
        }
    }

    fn played(flows: bool) -> (Arc<Played>, mpsc::Sender<News>) {
        let (says, news) = mpsc::channel(9);
        let played = Played { news: news.into(), told: Mutex::default(), flows: flows.into() };
        (Arc::new(played), says)
    }

    fn task(n: u128) -> TaskId {
        TaskId(Uuid::from_u128(n))
    }

    fn record(offset: u64) -> Record {
        let body = Note { text: String::new() }.into();
        Record { offset: Offset(offset), origin: Origin::Controller, time: Timestamp(0), body }
    }

    #[tokio::test(start_paused = true)]
    async fn viewers_ask_at_once_when_others_say_so_and_now_and_then_when_they_are_silent() {
        let (wakes, says) = played(true);
        let hub = Arc::new(Hub::new(Some(wakes.clone())));
        let loops = tokio::spawn(run(hub.clone(), wakes, |_| ()));
        let tails = [1, 2].map(|n| hub.follow(task(n)));
        let mut watch = tails.each_ref().map(|tail| tail.watch());
        tokio::time::sleep(Duration::from_millis(10)).await;
        watch.iter_mut().for_each(|watch| drop(watch.borrow_and_update()));
        let begun = Instant::now();
        says.send(News { grown: BTreeMap::from([(task(1), Offset(5))]), ..News::default() }).await.unwrap();
        watch[0].changed().await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(!watch[1].has_changed().unwrap(), "nothing was said of it");
        says.send(News { missed: true, ..News::default() }).await.unwrap();
        watch[1].changed().await.unwrap();
        assert_eq!(begun.elapsed(), Duration::ZERO);
        watch[1].changed().await.unwrap();
        assert_eq!(begun.elapsed(), QUIET - Duration::from_millis(10), "nobody said anything");
        loops.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn while_wake_ups_do_not_flow_viewers_ask_often() {
        let (wakes, says) = played(true);
        let hub = Arc::new(Hub::new(Some(wakes.clone())));
        let loops = tokio::spawn(run(hub.clone(), wakes.clone(), |_| ()));
        let tail = hub.follow(task(1));
        tokio::time::sleep(Duration::from_millis(10)).await;
        wakes.flows.store(false, Ordering::Relaxed);
        says.send(News { missed: true, ..News::default() }).await.unwrap();
        let (mut watch, begun) = (tail.watch(), Instant::now());
        for _ in 0..10 {
            watch.changed().await.unwrap();
        }
        assert!(begun.elapsed() <= POLL * 10, "{:?}", begun.elapsed());
        loops.abort();
    }

    #[tokio::test]
    async fn others_are_told_of_every_commit_here_and_of_nothing_else() {
        let (wakes, _says) = played(true);
        let hub = Arc::new(Hub::new(Some(wakes.clone())));
        hub.publish(task(1), &[record(3), record(4)], false);
        // A lease was renewed; somebody asks for what is not new; a commit is in doubt.
        hub.publish(task(1), &[], false);
        hub.reached(task(2), Offset(9));
        hub.doubt();
        assert_eq!(*wakes.told.lock().unwrap(), [(task(1), Offset(5))]);
    }
}
