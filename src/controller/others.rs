//! What other controllers commit: their wake-ups, and looks at the store for those that do not come.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::hub::Hub;
use crate::queue::Wakes;

/// How often viewers ask the store while wake-ups flow. It bounds what a controller costs them that is cut off from the
/// queue alone: it commits, and cannot tell.
const QUIET: Duration = Duration::from_secs(1);
/// The same while they do not.
const POLL: Duration = Duration::from_millis(50);

/// Runs until it is dropped.
pub(super) async fn run(hub: Arc<Hub>, wakes: Arc<dyn Wakes>) {
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
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use ado_proto::record::{Note, Record};
    use ado_proto::{Offset, Origin, TaskId, Timestamp};
    use async_trait::async_trait;
    use tokio::sync::mpsc;
    use uuid::Uuid;

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
        let loops = tokio::spawn(run(hub.clone(), wakes));
        let tails = [1, 2].map(|n| hub.follow(task(n)));
        let mut watch = tails.each_ref().map(|tail| tail.watch());
        tokio::time::sleep(Duration::from_millis(10)).await;
        watch.iter_mut().for_each(|watch| drop(watch.borrow_and_update()));
        let begun = Instant::now();
        says.send(News { grown: BTreeMap::from([(task(1), Offset(5))]), missed: false }).await.unwrap();
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
        let loops = tokio::spawn(run(hub.clone(), wakes.clone()));
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
