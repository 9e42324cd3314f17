//! Wakes viewers and readers of events, and lets viewers that keep up read from memory.
//!
//! A task has a tail only while somebody follows it. The tail holds the newest committed records, at most
//! [`TAIL_BYTES`]; a viewer that falls behind it reads the store and costs nobody else anything.
//!
//! What other controllers commit is not in the tail: a tail that has missed something is emptied, and its viewers read
//! the store.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ado_proto::record::Record;
use ado_proto::{Offset, TaskId};
use tokio::sync::watch;

use crate::queue::Wakes;

/// Most bytes of records one tail holds.
const TAIL_BYTES: usize = 2 * 1024 * 1024;

/// All tails.
#[derive(Default)]
pub(super) struct Hub {
    tails: Mutex<BTreeMap<TaskId, Weak<Tail>>>,
    /// Changes whenever there may be new system events.
    news: watch::Sender<()>,
    /// The other controllers, if there may be any.
    others: Option<Arc<dyn Wakes>>,
}

impl Hub {
    /// Nobody follows anything. The other controllers, if there may be any, are told what is committed here.
    pub(super) fn new(others: Option<Arc<dyn Wakes>>) -> Self {
        Self { others, ..Self::default() }
    }

    /// Whether there is nobody else who would be told.
    pub(super) fn is_alone(&self) -> bool {
        self.others.is_none()
    }

    /// The tail of a task, made if nobody follows it yet. It sees what is committed from now on.
    pub(super) fn follow(self: &Arc<Self>, task: TaskId) -> Arc<Tail> {
        let mut tails = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tail) = tails.get(&task).and_then(Weak::upgrade) {
            return tail;
        }
        let tail = Arc::new(Tail {
            task,
            hub: self.clone(),
            recent: Mutex::default(),
            committed: watch::Sender::default(),
            told: AtomicBool::new(false),
        });
        tails.insert(task, Arc::downgrade(&tail));
        tail
    }

    /// Records have been committed. They come in offset order.
    pub(super) fn publish(&self, task: TaskId, records: &[Record], ended: bool) {
        let tail = self.tails.lock().unwrap_or_else(PoisonError::into_inner).get(&task).and_then(Weak::upgrade);
        let Some(next) = records.last().map(|last| last.offset.next()) else { return };
        if let Some(tail) = tail {
            tail.push(records);
            tail.told.store(true, Ordering::Relaxed);
            tail.committed.send_replace(Committed { next, ended });
        }
        if let Some(others) = &self.others {
            others.tell(task, next);
        }
    }

    /// A log is at least this long. A tail that has not heard of it has missed something.
    pub(super) fn reached(&self, task: TaskId, next: Offset) {
        let tail = self.tails.lock().unwrap_or_else(PoisonError::into_inner).get(&task).and_then(Weak::upgrade);
        if let Some(tail) = tail.filter(|tail| tail.committed.borrow().next < next) {
            tail.reset();
        }
    }

    /// Something may have been committed that nobody was told of: all viewers ask the store.
    pub(super) fn doubt(&self) {
        self.live().iter().for_each(|tail| tail.reset());
        self.news();
    }

    /// Viewers of whom nothing was heard since the last poll ask the store. The others need not: had something else been
    /// committed before what was committed here, its offsets would be missing.
    pub(super) fn poll(&self) {
        let quiet = |tail: &&Arc<Tail>| !tail.told.swap(false, Ordering::Relaxed);
        self.live().iter().filter(quiet).for_each(|tail| tail.reset());
        self.news();
    }

    /// All tails that somebody follows. A tail's last owner takes it out of the map: none is dropped under the lock.
    fn live(&self) -> Vec<Arc<Tail>> {
        let tails = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        tails.values().filter_map(Weak::upgrade).collect()
    }

    /// There may be new system events.
    pub(super) fn news(&self) {
        self.news.send_replace(());
    }

    /// Told whenever there may be new system events.
    pub(super) fn watch_news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    fn forget(&self, task: TaskId) {
        let mut tails = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        if tails.get(&task).is_some_and(|tail| tail.strong_count() == 0) {
            tails.remove(&task);
        }
    }
}

/// How far a log has got, as far as its followers know.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Committed {
    pub(super) next: Offset,
    pub(super) ended: bool,
}

/// The newest records of one task.
pub(super) struct Tail {
    task: TaskId,
    hub: Arc<Hub>,
    recent: Mutex<Recent>,
    committed: watch::Sender<Committed>,
    /// Something was committed here since the last poll.
    told: AtomicBool,
}

#[derive(Default)]
struct Recent {
    records: VecDeque<Record>,
    bytes: usize,
}

impl Tail {
    /// Told whenever something is committed.
    pub(super) fn watch(&self) -> watch::Receiver<Committed> {
        self.committed.subscribe()
    }

    /// Records from `cursor` on, at most about `max_bytes` (at least one); `None` when the tail does not reach back to it.
    pub(super) fn read(&self, cursor: Offset, max_bytes: usize) -> Option<Vec<Record>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let first = recent.records.front()?.offset;
        let skip = usize::try_from(cursor.0.checked_sub(first.0)?).ok()?;
        let mut bytes = 0;
        let fits = |record: &&Record| {
            let first = bytes == 0;
            bytes += record.weight();
            first || bytes <= max_bytes
        };
        let records: Vec<_> = recent.records.iter().skip(skip).take_while(fits).cloned().collect();
        (!records.is_empty()).then_some(records)
    }

    /// Knows nothing again.
    fn reset(&self) {
        *self.recent.lock().unwrap_or_else(PoisonError::into_inner) = Recent::default();
        self.committed.send_replace(Committed::default());
    }

    fn push(&self, records: &[Record]) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            // Commits of one task are published in order; a gap would mean that one was missed.
            if recent.records.back().is_some_and(|last| last.offset.next() != record.offset) {
                recent.records.clear();
                recent.bytes = 0;
            }
            recent.bytes += record.weight();
            recent.records.push_back(record.clone());
        }
        while recent.bytes > TAIL_BYTES {
            let Some(oldest) = recent.records.pop_front() else { break };
            recent.bytes -= oldest.weight();
        }
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.hub.forget(self.task);
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Note, Output, Stream};
    use ado_proto::{Origin, Timestamp};
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;

    fn record(offset: u64, len: usize) -> Record {
        let body = if len == 0 {
            Note { text: String::new() }.into()
        } else {
            Output { stream: Stream::Stdout, position: 0, data: Bytes::from(vec![b'x'; len]) }.into()
        };
        Record { offset: Offset(offset), origin: Origin::Controller, time: Timestamp(0), body }
    }

    fn offsets(records: Option<Vec<Record>>) -> Option<Vec<u64>> {
        records.map(|records| records.iter().map(|record| record.offset.0).collect())
    }

    #[test]
    fn reads_from_the_cursor_or_says_that_it_cannot() {
        let hub = Arc::new(Hub::default());
        let task = TaskId(Uuid::from_u128(1));
        let tail = hub.follow(task);
        assert_eq!(offsets(tail.read(Offset(0), 1000)), None);
        hub.publish(task, &[record(5, 10), record(6, 10), record(7, 10)], false);
        assert_eq!(offsets(tail.read(Offset(4), 1000)), None, "before the tail");
        assert_eq!(offsets(tail.read(Offset(6), 1000)), Some(vec![6, 7]));
        assert_eq!(offsets(tail.read(Offset(5), 1)), Some(vec![5]), "at least one");
        assert_eq!(offsets(tail.read(Offset(8), 1000)), None, "nothing yet");
    }

    #[test]
    fn in_doubt_everybody_asks_the_store() {
        let hub = Arc::new(Hub::default());
        let task = TaskId(Uuid::from_u128(1));
        let tail = hub.follow(task);
        let mut watch = tail.watch();
        let asks = |watch: &mut watch::Receiver<Committed>| {
            let told = watch.has_changed().unwrap() && watch.borrow_and_update().next == Offset(0);
            told && tail.read(Offset(0), 1).is_none()
        };
        hub.publish(task, &[record(0, 1)], false);
        hub.reached(task, Offset(1));
        assert!(!asks(&mut watch), "it knows that");
        hub.doubt();
        assert!(asks(&mut watch));
        hub.publish(task, &[record(1, 1)], false);
        assert!(!asks(&mut watch));
        hub.reached(task, Offset(3));
        assert!(asks(&mut watch), "a commit was missed");
    }

    #[test]
    fn a_poll_asks_for_those_of_whom_nothing_is_heard() {
        let hub = Arc::new(Hub::default());
        let tails = [1, 2].map(|n| hub.follow(TaskId(Uuid::from_u128(n))));
        for n in [1, 2] {
            hub.publish(TaskId(Uuid::from_u128(n)), &[record(0, 1)], false);
        }
        let known = || tails.each_ref().map(|tail| tail.committed.borrow().next.0);
        hub.poll();
        assert_eq!(known(), [1, 1]);
        hub.publish(tails[0].task, &[record(1, 1)], false);
        hub.poll();
        assert_eq!(known(), [2, 0], "the second one asks the store");
        hub.poll();
        assert_eq!(known(), [0, 0]);
    }

    #[test]
    fn what_it_missed_it_does_not_make_up() {
        let hub = Arc::new(Hub::default());
        let task = TaskId(Uuid::from_u128(1));
        let tail = hub.follow(task);
        hub.publish(task, &[record(5, 10), record(6, 10)], false);
        hub.publish(task, &[record(9, 10)], false);
        assert_eq!(offsets(tail.read(Offset(5), 1000)), None, "the store has 7 and 8");
        assert_eq!(offsets(tail.read(Offset(9), 1000)), Some(vec![9]));
    }

    #[test]
    fn holds_no_more_than_its_bound_and_nothing_without_followers() {
        let hub = Arc::new(Hub::default());
        let task = TaskId(Uuid::from_u128(1));
        let tail = hub.follow(task);
        for offset in 0..1000 {
            hub.publish(task, &[record(offset, 32 * 1024)], false);
        }
        let held = tail.recent.lock().unwrap().bytes;
        assert!(held <= TAIL_BYTES && held > TAIL_BYTES / 2, "{held}");
        drop(tail);
        assert!(hub.tails.lock().unwrap().is_empty());
    }
}
