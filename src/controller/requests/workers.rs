//! The list of workers, and what is wanted of them.

use std::time::Duration;

use ado_proto::request::{
    ErrorCode, ErrorReply, ListWorkers, Request, SetWorker, WorkerDesired, WorkerInfo, WorkerSet, encode_response,
};
use ado_proto::{Audience, WorkerId};

use super::{Asked, info, unavailable};
use crate::controller::session::event;
use crate::queue::Word;
use crate::scheduler::{self, Demand};
use crate::store::{NewWish, Row, Unit, Wish, Worker};

/// How long what a worker holds may go on once it is to drain, unless somebody says.
const DRAIN_WITHIN: Duration = Duration::from_secs(300);
/// The longest that can be said.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// Fewest characters of an id.
const SHORTEST: usize = 4;

impl Asked<'_> {
    pub(super) async fn list_workers(&self, request: ListWorkers) -> Result<Vec<WorkerInfo>, ErrorReply> {
        let asked = match &request.task {
            Some(reference) => self.find(reference).await?,
            None => Vec::new(),
        };
        let mut workers = self.shared.store.workers().await.map_err(unavailable)?;
        workers.retain(|worker| self.sees(worker));
        let now = self.shared.store.now().await.map_err(unavailable)?;
        let mut all = Vec::new();
        for worker in self.members(workers).await? {
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

    /// What is known of workers, wherever they are connected.
    async fn members(&self, workers: Vec<Worker>) -> Result<Vec<info::Member>, ErrorReply> {
        let mut here = self.shared.fleet.seen();
        let mut elsewhere = self.shared.elsewhere(&workers).await.map_err(unavailable)?;
        let mut members = Vec::with_capacity(workers.len());
        for worker in workers {
            let (seen, controller, holds) = match (here.remove(&worker.id), elsewhere.remove(&worker.id)) {
                (Some(seen), _) => {
                    let holds = seen.holds.clone();
                    (Some(seen), Some(self.shared.id), holds)
                }
                (None, found) => {
                    let held = self.shared.store.held_by(worker.id).await.map_err(unavailable)?;
                    let (seen, controller) = found.unzip();
                    (seen, controller, held.iter().map(|row| row.task.id).collect())
                }
            };
            let wish = self.shared.fleet.wish_of(worker.id);
            members.push(info::Member { worker, seen, controller, wish, holds });
        }
        Ok(members)
    }

    /// Wants something of a worker. What the worker then does is its own to say.
    pub(super) async fn set_worker(&self, request: SetWorker) -> Result<Vec<u8>, ErrorReply> {
        if let Some(answer) = self.replayed::<SetWorker>().await? {
            return Ok(answer);
        }
        let within = within(&request)?;
        let worker = self.find_worker(&request.worker).await?;
        // Another controller may have been asked a moment ago.
        let wishes = self.shared.store.wishes().await.map_err(unavailable)?;
        let former = wishes.get(&worker.id).cloned().unwrap_or_default();
        let unchanged = unchanged(&former, &request);
        let now = self.shared.store.now().await.map_err(unavailable)?;
        let (id, name) = (worker.id, worker.name.clone());
        let member = self.members(vec![worker.clone()]).await?.remove(0);
        let presence = member.presence(self.shared.timing.lost_after, now);
        let known = info::worker(member, presence, now);
        let answer = WorkerSet {
            id,
            name: name.clone(),
            state: known.state,
            busy: known.busy,
            deadline: if unchanged.is_some() { former.deadline } else { within.map(|within| now.after(within)) },
            unchanged: unchanged.clone(),
        };
        let audit = self.audit(SetWorker::NAME, format!("{name} ({id}) {}", request.desired.as_str()));
        if unchanged.is_some() {
            let kept = answer.clone();
            let once = self.once::<SetWorker>(move |_| kept).await?;
            let (_, kept) = self.commit(Unit { changes: Vec::new(), once, audit: Some(audit) }).await?;
            return Ok(kept.unwrap_or_else(|| encode_response(&Ok(answer))));
        }
        let encoded = encode_response(&Ok(answer));
        let kept = self.key::<SetWorker>().await?.map(|key| (key, encoded.clone().into()));
        let wish = NewWish { desired: request.desired, within, by: self.access.owner.clone() };
        let text = format!("{name} by {}", self.access.owner);
        let event = event(kind(request.desired), &worker, text);
        let wish = self.shared.store.wish(id, wish, kept, audit, Some(event)).await.map_err(unavailable)?;
        self.shared.fleet.wished(id, &wish, now);
        self.shared.hub.news();
        self.shared.say(Word::Wishes);
        Ok(encoded)
    }

    /// The worker that people mean: its name, its id, or the beginning of that.
    async fn find_worker(&self, text: &str) -> Result<Worker, ErrorReply> {
        let mut workers = self.shared.store.workers().await.map_err(unavailable)?;
        workers.retain(|worker| self.sees(worker));
        let by_id = text.parse::<WorkerId>().ok();
        let begins = |worker: &Worker| text.len() >= SHORTEST && worker.id.to_string().starts_with(text);
        let named: Vec<_> = workers.iter().filter(|worker| worker.name == text).cloned().collect();
        let found = match named.is_empty() {
            true => workers.into_iter().filter(|worker| by_id == Some(worker.id) || begins(worker)).collect(),
            false => named,
        };
        match &found[..] {
            [one] => Ok(one.clone()),
            [] => {
                let message = format!("there is no worker `{text:.80}`");
                Err(ErrorReply::new(ErrorCode::NotFound, message).hint("ado workers list"))
            }
            several => {
                let some: Vec<_> = several.iter().take(5).map(|worker| worker.id.to_string()).collect();
                let message = format!("`{text:.80}` fits {} workers: {}", several.len(), some.join(", "));
                Err(ErrorReply::new(ErrorCode::Ambiguous, message)
                    .hint("give the id of one: ado workers list --columns name,id,state"))
            }
        }
    }

    fn sees(&self, worker: &Worker) -> bool {
        match &self.access.audience {
            Audience::Everywhere => true,
            Audience::Namespace(own) => worker.namespace == *own,
        }
    }
}

/// How long a worker may keep what it holds.
fn within(request: &SetWorker) -> Result<Option<Duration>, ErrorReply> {
    let invalid = |message: String| Err(ErrorReply::new(ErrorCode::Invalid, message));
    match (request.desired, request.within_ms.map(Duration::from_millis)) {
        (WorkerDesired::Drained, None) => Ok(Some(DRAIN_WITHIN)),
        (WorkerDesired::Drained, Some(within)) if within <= LONGEST => Ok(Some(within)),
        (WorkerDesired::Drained, Some(within)) => {
            invalid(format!("a worker is drained within 7 days at most, not {} s", within.as_secs()))
        }
        (_, None) => Ok(None),
        (_, Some(_)) => invalid("only a drain has a deadline".into()),
    }
}

/// Why nothing changes, if so. A drain that is under way keeps its deadline unless another one is given.
fn unchanged(former: &Wish, request: &SetWorker) -> Option<String> {
    if former.desired != request.desired || request.within_ms.is_some() {
        return None;
    }
    Some(match former.desired {
        WorkerDesired::Active => "neither cordoned nor drained".into(),
        WorkerDesired::Cordoned => format!("cordoned already by {}", former.by),
        WorkerDesired::Drained => format!("drained already by {}", former.by),
    })
}

fn kind(desired: WorkerDesired) -> &'static str {
    match desired {
        WorkerDesired::Active => "worker.uncordoned",
        WorkerDesired::Cordoned => "worker.cordoned",
        WorkerDesired::Drained => "worker.draining",
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
