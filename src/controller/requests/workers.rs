//! The list of workers.

use ado_proto::Audience;
use ado_proto::request::{ErrorReply, ListWorkers, WorkerInfo};

use super::{Asked, info, unavailable};
use crate::scheduler::{self, Demand};
use crate::store::{Row, Worker};

impl Asked<'_> {
    pub(super) async fn list_workers(&self, request: ListWorkers) -> Result<Vec<WorkerInfo>, ErrorReply> {
        let asked = match &request.task {
            Some(reference) => self.find(reference).await?,
            None => Vec::new(),
        };
        let now = self.shared.store.now().await.map_err(unavailable)?;
        let mut seen = self.shared.fleet.seen();
        let mut all = Vec::new();
        for worker in self.shared.store.workers().await.map_err(unavailable)? {
            if !self.sees(&worker) {
                continue;
            }
            let seen = seen.remove(&worker.id);
            let holds = match &seen {
                Some(seen) => seen.holds.clone(),
                None => {
                    let held = self.shared.store.held_by(worker.id).await.map_err(unavailable)?;
                    held.iter().map(|row| row.task.id).collect()
                }
            };
            let worker = info::Member { worker, seen, holds };
            let presence = worker.presence(self.shared.timing.lost_after, now);
            let ineligible = if asked.iter().any(|row| worker.holds.contains(&row.task.id)) {
                None
            } else {
                why_not(&worker, presence, &asked)
            };
            let breaker = self.shared.breakers.of_worker(worker.worker.id);
            all.push(WorkerInfo { ineligible, breaker, ..info::worker(worker, presence, now) });
        }
        Ok(info::shorten_workers(all))
    }

    fn sees(&self, worker: &Worker) -> bool {
        match &self.access.audience {
            Audience::Everywhere => true,
            Audience::Namespace(own) => worker.namespace == *own,
        }
    }
}

/// Why it could take none of the tasks, or no task at all if none is asked about.
fn why_not(worker: &info::Member, presence: scheduler::Presence, asked: &[Row]) -> Option<String> {
    let candidate = worker.candidate();
    let why = |demand: Option<&Demand<'_>>| scheduler::ineligible(&candidate, presence, demand);
    let [first, others @ ..] = asked else { return why(None) };
    let of = |row: &Row| why(Some(&Demand::of(&row.task.namespace, &row.task.spec)));
    let reason = of(first)?;
    if others.iter().any(|row| of(row).is_none()) { None } else { Some(reason) }
}
