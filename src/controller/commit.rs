//! Group commit: while one transaction is being made durable, what comes in is gathered for the next one.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};
use tokio::time::Instant;

use super::fleet::Fleet;
use super::hub::Hub;
use super::metrics::Metrics;
use crate::store::{self, Committed, Outcome, Store, Unit, Write};
use crate::tasks::Tasks;

/// Units waiting for the next transaction. When full, callers wait, and through them the streams they read from.
const WAITING: usize = 1024;
/// Most units of one transaction.
const BATCH: usize = 512;

/// Commits units, many callers' in one transaction. Clones share it.
#[derive(Clone)]
pub(super) struct Committer {
    units: mpsc::Sender<(Unit, oneshot::Sender<store::Result<Committed>>)>,
    turn: Arc<Mutex<()>>,
}

impl Committer {
    /// Starts the loop. It ends when the last clone is dropped, after everything it was given is committed.
    pub(super) fn start(
        store: Arc<dyn Store>,
        hub: Arc<Hub>,
        fleet: Arc<Fleet>,
        metrics: Arc<Metrics>,
        tasks: &Tasks,
    ) -> Self {
        let (units, mut waiting) = mpsc::channel::<(Unit, oneshot::Sender<store::Result<Committed>>)>(WAITING);
        let turn = Arc::new(Mutex::new(()));
        let own = turn.clone();
        tasks.spawn("commit", async move {
            let mut batch = Vec::new();
            let mut in_doubt = false;
            while waiting.recv_many(&mut batch, BATCH).await > 0 {
                let (units, answers): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
                let _turn = own.lock().await;
                if in_doubt {
                    in_doubt = recount(&*store, &fleet).await.is_err();
                }
                let begun = Instant::now();
                match store.commit(units).await {
                    Ok(committed) => {
                        metrics.committed(&committed, begun.elapsed());
                        if committed.iter().any(has_events) {
                            hub.news();
                        }
                        for (committed, answer) in committed.into_iter().zip(answers) {
                            publish(&committed, &hub, &fleet);
                            // A caller that no longer waits does not need the answer: the effect is durable.
                            let _ = answer.send(Ok(committed));
                        }
                    }
                    Err(error) => {
                        // It may have happened all the same, and nobody was told: whoever goes by what he was told asks
                        // the store.
                        in_doubt = true;
                        metrics.commit_failed();
                        hub.doubt();
                        for answer in answers {
                            let _ = answer.send(Err(error.clone()));
                        }
                    }
                }
            }
        });
        Self { units, turn }
    }

    /// Nothing is committed while this is held: for what must not fall between a commit and the telling of it. Never held
    /// across a commit of one's own.
    pub(super) async fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// Commits one unit. Returns when it is durable.
    pub(super) async fn commit(&self, unit: Unit) -> store::Result<Committed> {
        let (answer, result) = oneshot::channel();
        let stopped = || store::Error::Unavailable("the controller is stopping".into());
        self.units.send((unit, answer)).await.map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())?
    }

    /// Commits one change of one task.
    pub(super) async fn update(&self, change: store::Change) -> store::Result<Outcome> {
        match self.commit(Unit { changes: vec![change], once: None, audit: None }).await? {
            Committed::Done(mut outcomes, _) if outcomes.len() == 1 => Ok(outcomes.remove(0)),
            other => Err(store::Error::Damaged(format!("one change was answered by {other:?}"))),
        }
    }
}

fn has_events(committed: &Committed) -> bool {
    let Committed::Done(outcomes, _) = committed else { return false };
    outcomes.iter().any(|outcome| matches!(outcome, Outcome::Applied(write) if !write.events.is_empty()))
}

fn publish(committed: &Committed, hub: &Hub, fleet: &Fleet) {
    let Committed::Done(outcomes, _) = committed else { return };
    for outcome in outcomes {
        match outcome {
            Outcome::Applied(write) => {
                let Write { row, records, .. } = &**write;
                hub.publish(row.task.id, records, row.task.is_ended());
                fleet.observe(row);
            }
            Outcome::Refused(_, row) => hub.reached(row.task.id, row.task.next_offset),
            Outcome::Missing | Outcome::Locked => {}
        }
    }
}

/// Reads anew what every connected worker holds.
async fn recount(store: &dyn Store, fleet: &Fleet) -> store::Result<()> {
    for worker in fleet.connected() {
        fleet.recount(worker, &store.held_by(worker).await?);
    }
    Ok(())
}
