//! The workers connected to this controller, and what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use ado_proto::session::{ToWorker, Want};
use ado_proto::{TaskId, WorkerId};
use tokio::sync::{Notify, mpsc};

use crate::scheduler::Candidate;
use crate::store::{Row, Worker};
use crate::task::Task;

/// Messages waiting for one worker. When full, the message is dropped: all of them are state, and the next heartbeat's
/// answer says it again.
pub(super) const TO_WORKER: usize = 1024;

/// Everybody who is connected.
#[derive(Default)]
pub(super) struct Fleet {
    inner: Mutex<Inner>,
    /// Something may be placeable now: a slot was freed, a worker came, a task was queued.
    chance: Notify,
}

#[derive(Default)]
struct Inner {
    members: BTreeMap<WorkerId, Member>,
    /// Who holds what, whether connected or not.
    holders: BTreeMap<TaskId, WorkerId>,
}

struct Member {
    worker: Worker,
    holds: BTreeSet<TaskId>,
    messages: mpsc::Sender<ToWorker>,
}

impl Fleet {
    /// A worker's session begins. It replaces an older session of the same worker.
    pub(super) fn join(&self, worker: Worker, held: &[Row], messages: mpsc::Sender<ToWorker>) {
        let mut inner = self.lock();
        let holds: BTreeSet<_> = held.iter().filter(|row| row.task.is_held()).map(|row| row.task.id).collect();
        inner.holders.extend(holds.iter().map(|task| (*task, worker.id)));
        inner.members.insert(worker.id, Member { worker, holds, messages });
        drop(inner);
        self.chance.notify_one();
    }

    /// A session ends, unless a newer one has replaced it.
    pub(super) fn leave(&self, id: WorkerId, messages: &mpsc::Sender<ToWorker>) {
        let members = &mut self.lock().members;
        if members.get(&id).is_some_and(|member| member.messages.same_channel(messages)) {
            members.remove(&id);
        }
    }

    /// A worker takes no more work.
    pub(super) fn drain(&self, id: WorkerId) {
        if let Some(member) = self.lock().members.get_mut(&id) {
            member.worker.draining = true;
        }
    }

    /// A task's row has changed.
    pub(super) fn observe(&self, row: &Row) {
        let task = &row.task;
        let holder = row.lease.as_ref().filter(|_| task.is_held()).map(|lease| lease.worker);
        let mut inner = self.lock();
        let inner = &mut *inner;
        let former = match holder {
            Some(id) => inner.holders.insert(task.id, id),
            None => inner.holders.remove(&task.id),
        };
        if former != holder {
            if let Some(member) = former.and_then(|id| inner.members.get_mut(&id)) {
                member.holds.remove(&task.id);
            }
            if let Some(member) = holder.and_then(|id| inner.members.get_mut(&id)) {
                member.holds.insert(task.id);
            }
        }
        if holder.is_none() {
            self.chance.notify_one();
        }
    }

    /// Says something to a worker. Lost if it is not connected or does not keep up; see [`TO_WORKER`].
    pub(super) fn tell(&self, id: WorkerId, message: impl Into<ToWorker>) {
        if let Some(member) = self.lock().members.get(&id) {
            let _ = member.messages.try_send(message.into());
        }
    }

    /// What placement knows of everybody.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let inner = self.lock();
        let candidate = |member: &Member| Candidate {
            id: member.worker.id,
            name: member.worker.name.clone(),
            namespace: member.worker.namespace.clone(),
            pool: member.worker.pool.clone(),
            agents: member.worker.agents.clone(),
            labels: member.worker.labels.clone(),
            slots: member.worker.slots,
            busy: u32::try_from(member.holds.len()).unwrap_or(u32::MAX),
            draining: member.worker.draining,
        };
        inner.members.values().map(candidate).collect()
    }

    /// Attempts a worker holds; `None` when it is not connected.
    pub(super) fn busy(&self, id: WorkerId) -> Option<u32> {
        self.lock().members.get(&id).map(|member| u32::try_from(member.holds.len()).unwrap_or(u32::MAX))
    }

    /// Resolves when something may be placeable.
    pub(super) async fn chance(&self) {
        self.chance.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wanted of the attempt that holds a task.
pub(super) fn want(task: &Task) -> Want {
    Want { task: task.id, epoch: task.epoch, desired: task.desired, generation: task.generation, force: task.force }
}
