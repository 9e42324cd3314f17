//! Heartbeats that come together are renewed together: a thousand idle workers are a few transactions a second, not
//! hundreds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::store::{self, Beat, Renewal, Store};
use crate::tasks::Tasks;

/// Heartbeats waiting for the next transaction. When full, sessions wait, and their workers say the next one later.
const WAITING: usize = 1024;
/// Most heartbeats of one transaction: it holds the rows of all their tasks.
const BATCH: usize = 128;

type Waiting = (Beat, oneshot::Sender<store::Result<Option<Renewal>>>);

/// Renews leases, many workers' in one transaction. Clones share it.
#[derive(Clone)]
pub(super) struct Renewer {
    beats: mpsc::Sender<Waiting>,
}

impl Renewer {
    /// Starts the loop. It ends with `tasks`, or when the last clone is dropped. A heartbeat extends leases by `lease`.
    pub(super) fn start(store: Arc<dyn Store>, lease: Duration, tasks: &Tasks) -> Self {
        let (beats, mut waiting) = mpsc::channel::<Waiting>(WAITING);
        tasks.spawn_until_stop("renewals", async move {
            let mut batch = Vec::new();
            while waiting.recv_many(&mut batch, BATCH).await > 0 {
                // Nobody waits for an answer any longer, nor knows then that it was renewed.
                batch.retain(|(_, answer)| !answer.is_closed());
                if batch.is_empty() {
                    continue;
                }
                let (beats, answers): (Vec<_>, Vec<_>) = batch.drain(..).unzip();
                match store.renew(beats, lease).await {
                    Ok(renewals) => {
                        for (answer, renewal) in answers.into_iter().zip(renewals) {
                            let _ = answer.send(Ok(renewal));
                        }
                    }
                    Err(error) => {
                        for answer in answers {
                            let _ = answer.send(Err(error.clone()));
                        }
                    }
                }
            }
        });
        Self { beats }
    }

    /// One heartbeat. `None`: the worker's registered start is another.
    pub(super) async fn renew(&self, beat: Beat) -> store::Result<Option<Renewal>> {
        let (answer, result) = oneshot::channel();
        let stopped = || store::Error::Unavailable("the controller is stopping".into());
        self.beats.send((beat, answer)).await.map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())?
    }
}
