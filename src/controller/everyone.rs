//! The workers of all controllers: what the others have said of theirs, for people who ask one controller.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ado_proto::{ControllerId, WorkerId};
use tokio::time::Instant;

use super::Shared;
use super::fleet::{self, Report, Seen};
use crate::scheduler::{Candidate, Taken};
use crate::store::{self, Worker};

/// How old what was read may be for reasons and numbers: reports come once a second.
const FRESH: Duration = Duration::from_secs(1);

/// What was read last, and when.
#[derive(Default)]
pub(super) struct Everyone(Mutex<Option<(Instant, Arc<[Candidate]>)>>);

impl Shared {
    /// What placement knows of everybody who is connected, here or elsewhere. Without the store: here.
    pub(super) async fn everyone(&self) -> Vec<Candidate> {
        let mut all = self.fleet.candidates();
        if self.mesh.others() > 0 {
            let elsewhere = self.cached_elsewhere().await;
            all.extend(elsewhere.iter().filter(|other| !self.fleet.is_connected(other.id)).cloned());
        }
        all
    }

    async fn cached_elsewhere(&self) -> Arc<[Candidate]> {
        let known = self.everyone.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, known)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return known.clone();
        }
        let read = async {
            let workers = self.store.workers().await?;
            self.elsewhere(&workers).await
        };
        match read.await {
            Ok(seen) => {
                let all: Arc<[_]> = seen.into_values().map(|(seen, _)| seen.candidate).collect();
                *self.everyone.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), all.clone()));
                all
            }
            Err(error) => {
                tracing::debug!(%error, "workers of other controllers are not known");
                known.map_or_else(|| Arc::from([]), |(_, known)| known)
            }
        }
    }

    /// Those of `workers` that are connected to other controllers, and to which.
    pub(super) async fn elsewhere(
        &self,
        workers: &[Worker],
    ) -> store::Result<BTreeMap<WorkerId, (Seen, ControllerId)>> {
        if self.mesh.others() == 0 {
            return Ok(BTreeMap::new());
        }
        let now = self.store.now().await?;
        let reports = self.store.reports().await?;
        let mut reports: BTreeMap<_, _> = reports.into_iter().map(|report| (report.worker, report)).collect();
        let mut found = BTreeMap::new();
        for worker in workers.iter().filter(|worker| !self.fleet.is_connected(worker.id)) {
            let Some(report) = reports.remove(&worker.id) else { continue };
            let Some(controller) = self.mesh.live(report.controller).filter(|controller| *controller != self.id) else {
                continue;
            };
            let age = now.since(worker.seen_at);
            // What those it holds may use is known where it is connected; for the reasons people are told it does not count.
            let (wish, holds) = (self.fleet.wish_of(worker.id), report.busy as usize);
            let candidate = fleet::candidate(worker, wish.as_ref(), holds, Taken::default());
            let candidate = Candidate { silent: age > self.timing.lease(), ..candidate };
            let report = Some(Report { load: report.load, rtt: report.rtt });
            found.insert(worker.id, (Seen { candidate, holds: Vec::new(), report }, controller));
        }
        Ok(found)
    }
}
