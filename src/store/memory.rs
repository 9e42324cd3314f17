//! A store that forgets when its process ends: for simulations and tests, where virtual time and a database do not mix.
//!
//! Every question is a walk over all there is: simple to check, fast enough for some thousands of tasks.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ado_proto::record::{Desired, Record, Truncated};
use ado_proto::request::{AuditLine, Events, EventsFrom, ListAudit, SecretInfo, SystemEvent, WorkerBounds};
use ado_proto::{
    Audience, ControllerId, GroupId, Incarnation, Namespace, Offset, Origin, RequestId, TaskId, Timestamp, WorkerId,
};
use async_trait::async_trait;
use bytes::Bytes;

use super::batch::{self, Batch};
use super::clock::Clock;
use super::{
    AUDIT_RETENTION, Audit, Backlog, Beat, Certificate, ChangeBreaker, ClosedSecret, Committed, Controller,
    EVENT_RETENTION, Find, HeldLoop, KEY_RETENTION, Key, ListFilter, NewEvent, NewWish, Page, Renewal, Report, Result,
    Row, Store, Token, TokenRefusal, Unit, Waiting, Wish, Worker, WorkerEvent, log, rules, score,
};
use crate::env::Env;
use crate::task::{Breaker, Scope, State};

/// A store in memory.
pub struct Memory {
    clock: Clock,
    generation: u64,
    held: Mutex<Held>,
}

/// All it holds.
#[derive(Default)]
struct Held {
    rows: BTreeMap<TaskId, Row>,
    logs: BTreeMap<TaskId, Vec<Record>>,
    dropped: BTreeMap<TaskId, Dropped>,
    requests: BTreeMap<(String, u16, RequestId), Answered>,
    workers: BTreeMap<WorkerId, Worker>,
    lost: BTreeSet<WorkerId>,
    breakers: BTreeMap<Scope, (Breaker, Timestamp)>,
    loops: BTreeMap<String, Loop>,
    controllers: BTreeMap<ControllerId, Controller>,
    reports: BTreeMap<WorkerId, (Report, Timestamp)>,
    wishes: BTreeMap<WorkerId, Wish>,
    items: BTreeMap<String, Vec<u8>>,
    tokens: BTreeMap<String, Token>,
    bounds: BTreeMap<String, WorkerBounds>,
    secrets: BTreeMap<(Namespace, String), (SecretInfo, Vec<u8>)>,
    certificates: BTreeMap<String, Certificate>,
    revoked: BTreeSet<String>,
    events: BTreeMap<u64, (Audience, SystemEvent)>,
    last_cursor: u64,
    audit: Vec<(Timestamp, Audit)>,
}

/// Which of a log's bulk records are no longer kept: those of these offsets.
struct Dropped {
    from: Offset,
    to: Offset,
    bytes: u64,
}

struct Answered {
    body: [u8; 32],
    answer: Bytes,
    at: Timestamp,
}

struct Loop {
    holder: Option<Incarnation>,
    term: u64,
    expires_at: Timestamp,
}

impl Memory {
    /// An empty store.
    pub fn new(env: Env) -> Self {
        let generation = rules::generation(&env);
        Self { clock: Clock::new(env, Timestamp(0)), generation, held: Mutex::default() }
    }

    /// Nothing is changed before it is complete, so what a panic leaves behind is whole.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn unit(&mut self, batch: &mut Batch, unit: Unit, now: Timestamp) -> Committed {
        if let Some(seen) = unit.once.as_ref().and_then(|once| self.answered(&once.key)) {
            return seen;
        }
        let outcomes = batch.run(unit.changes);
        let answer = unit.once.map(|once| {
            let answer = (once.answer)(&outcomes);
            self.keep(once.key, answer.clone(), now);
            answer
        });
        self.audit.extend(unit.audit.map(|audit| (now, batch::audited(audit, &outcomes))));
        Committed::Done(outcomes, answer)
    }

    fn answered(&self, key: &Key) -> Option<Committed> {
        let seen = self.requests.get(&(key.principal.clone(), key.kind, key.id))?;
        let same = seen.body == key.body;
        Some(if same { Committed::Replayed(seen.answer.clone()) } else { Committed::KeyConflict })
    }

    fn keep(&mut self, key: Key, answer: Bytes, at: Timestamp) {
        self.requests.insert((key.principal, key.kind, key.id), Answered { body: key.body, answer, at });
    }

    fn add_events(&mut self, events: Vec<NewEvent>, now: Timestamp) {
        for event in events {
            self.last_cursor += 1;
            let cursor = self.last_cursor;
            let NewEvent { audience, kind, task, worker, text } = event;
            let event = SystemEvent { cursor, time: now, kind: kind.into(), task, worker, text };
            self.events.insert(cursor, (audience, event));
        }
    }

    /// Rows that fit, in order of `key`.
    fn pick<K: Ord>(&self, fits: impl Fn(&Row) -> bool, key: impl Fn(&Row) -> K, limit: usize) -> Vec<Row> {
        let mut picked: Vec<_> = self.rows.values().filter(|row| fits(row)).collect();
        picked.sort_by_cached_key(|row| key(row));
        picked.into_iter().take(limit).cloned().collect()
    }

    fn held_by(&self, worker: WorkerId) -> Vec<Row> {
        let holds = |row: &Row| row.lease.as_ref().is_some_and(|lease| lease.worker == worker);
        self.pick(holds, |row| row.task.id, usize::MAX)
    }

    fn renew(&mut self, beat: &Beat, now: Timestamp, lease: Duration) -> Option<Renewal> {
        let is_registered = |worker: &&mut Worker| worker.incarnation == beat.incarnation;
        let registered = self.workers.get_mut(&beat.worker).filter(is_registered)?;
        registered.seen_at = now;
        registered.draining = beat.draining;
        registered.via = Some(beat.via);
        self.lost.remove(&beat.worker);
        let renewal = rules::renewal(self.held_by(beat.worker), beat, now.after(lease));
        self.rows.extend(renewal.renewed.iter().map(|row| (row.task.id, row.clone())));
        Some(renewal)
    }

    fn page(&self, task: TaskId, records: impl FnOnce(Vec<Record>) -> Vec<Record>) -> Option<Page> {
        let row = self.rows.get(&task)?;
        let log = self.logs.get(&task).map(Vec::as_slice).unwrap_or_default();
        let all = match self.dropped.get(&task) {
            Some(dropped) => log::with_gaps(dropped.without(log), Offset(0)),
            None => log.to_vec(),
        };
        Some(Page { records: records(all), next_offset: row.task.next_offset, ended: row.task.ended_at.is_some() })
    }
}

impl Dropped {
    /// A log without what was dropped, and with one record in its place.
    fn without(&self, log: &[Record]) -> Vec<Record> {
        let kept = |record: &&Record| !log::is_bulk(record) || record.offset >= self.to;
        let mut records: Vec<_> = log.iter().filter(kept).cloned().collect();
        let offset = Offset(self.to.0 - 1);
        let body = Truncated { from: self.from, to: self.to, bytes: self.bytes }.into();
        let time = log[usize::try_from(offset.0).unwrap_or(0)].time;
        records.push(Record { offset, origin: Origin::Controller, time, body });
        records.sort_by_key(|record| record.offset);
        records
    }
}

fn in_group(row: &Row, fits: impl Fn(GroupId) -> bool) -> bool {
    row.task.group.is_some_and(|member| fits(member.id))
}

#[async_trait]
impl Store for Memory {
    async fn now(&self) -> Result<Timestamp> {
        Ok(self.clock.now())
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    async fn commit(&self, units: Vec<Unit>) -> Result<Vec<Committed>> {
        let ids = batch::ids(units.iter().flat_map(|unit| &unit.changes));
        let mut held = self.held();
        let now = self.clock.now();
        let mut batch = Batch::new(now, ids.iter().filter_map(|id| held.rows.get(id).cloned()));
        let committed = units.into_iter().map(|unit| held.unit(&mut batch, unit, now)).collect();
        let (changed, events) = batch.finish();
        for staged in changed {
            let id = staged.row.task.id;
            held.logs.entry(id).or_default().extend(staged.records);
            held.rows.insert(id, staged.row);
        }
        held.add_events(events, now);
        Ok(committed)
    }

    async fn answered(&self, key: &Key) -> Result<Option<Committed>> {
        Ok(self.held().answered(key))
    }

    async fn row(&self, id: TaskId) -> Result<Option<Row>> {
        Ok(self.held().rows.get(&id).cloned())
    }

    async fn find(&self, audience: &Audience, what: &Find, limit: usize) -> Result<Vec<Row>> {
        let seen = |row: &Row| rules::sees(audience, &row.task.namespace);
        let newest = |row: &Row| Reverse(row.task.id);
        let by_index = |row: &Row| row.task.group.map(|member| (member.id, member.index));
        let held = self.held();
        Ok(match what {
            Find::Id(id) => held.rows.get(id).filter(|row| seen(row)).into_iter().take(limit).cloned().collect(),
            Find::Prefix(prefix) => {
                let prefix = format!("task-{prefix}");
                held.pick(|row| seen(row) && row.task.id.short().starts_with(&prefix), newest, limit)
            }
            Find::Group(group) => held.pick(|row| seen(row) && in_group(row, |id| id == *group), by_index, limit),
            Find::GroupPrefix(prefix) => {
                let prefix = format!("group-{prefix}");
                let fits = |row: &Row| seen(row) && in_group(row, |id| id.short().starts_with(&prefix));
                held.pick(fits, by_index, limit)
            }
            Find::Name(name) => held.pick(|row| seen(row) && row.task.name.as_ref() == Some(name), newest, limit),
        })
    }

    async fn list(&self, filter: &ListFilter) -> Result<Vec<Row>> {
        let fits = |row: &Row| {
            rules::sees(&filter.audience, &row.task.namespace)
                && filter.before.is_none_or(|before| row.task.id < before)
                && filter.group.is_none_or(|group| in_group(row, |id| id == group))
                && filter.name.as_ref().is_none_or(|name| row.task.name.as_ref() == Some(name))
                && match filter.dead {
                    true => rules::is_dead(row),
                    false => {
                        filter.states.is_empty() || filter.states.iter().any(|state| state == row.task.state_word())
                    }
                }
        };
        Ok(self.held().pick(fits, |row| Reverse(row.task.id), filter.limit))
    }

    async fn read(&self, task: TaskId, from: Offset, max_bytes: usize) -> Result<Option<Page>> {
        Ok(self.held().page(task, |log| {
            let rest = log.into_iter().filter(|record| record.span().end > from);
            let mut rest: Vec<_> = rest.map(|record| log::after(record, from)).collect();
            rest.truncate(log::fitting(&rest, max_bytes));
            rest
        }))
    }

    async fn read_back(&self, task: TaskId, before: Offset, max_bytes: usize) -> Result<Option<Page>> {
        Ok(self.held().page(task, |log| {
            let rest = log.into_iter().filter_map(|record| log::before(record, before));
            let mut rest: Vec<_> = rest.collect();
            rest.drain(..rest.len() - log::fitting(rest.iter().rev(), max_bytes));
            rest
        }))
    }

    async fn offset_since(&self, task: TaskId, since: Timestamp) -> Result<Option<Offset>> {
        let held = self.held();
        let Some(row) = held.rows.get(&task) else { return Ok(None) };
        let first = held.logs.get(&task).and_then(|log| log.iter().find(|record| record.time >= since));
        Ok(Some(first.map_or(row.task.next_offset, |record| record.offset)))
    }

    async fn waiting(&self, after: Option<(i64, TaskId)>, limit: usize) -> Result<Vec<Waiting>> {
        let waiting = |row: &Row| match row.task.state {
            State::Queued { not_before } if row.task.desired == Desired::Running => Some(Waiting {
                score: score(not_before, row.task.spec.priority),
                id: row.task.id,
                namespace: row.task.namespace.clone(),
                pool: row.task.spec.pool.clone(),
                agent: row.task.spec.agent.clone(),
            }),
            _ => None,
        };
        let place = |waiting: &Waiting| (waiting.score, waiting.id);
        let mut all: Vec<_> = self.held().rows.values().filter_map(waiting).collect();
        all.retain(|waiting| after.is_none_or(|after| place(waiting) > after));
        all.sort_by_key(place);
        all.truncate(limit);
        Ok(all)
    }

    async fn backlog(&self) -> Result<Vec<Backlog>> {
        let mut all: BTreeMap<_, (u64, TaskId)> = BTreeMap::new();
        for waiting in self.waiting(None, usize::MAX).await? {
            let class = (waiting.namespace, waiting.pool, waiting.agent);
            let (tasks, oldest) = all.entry(class).or_insert((0, waiting.id));
            *tasks += 1;
            *oldest = waiting.id.min(*oldest);
        }
        let backlog = |((namespace, pool, agent), (tasks, oldest))| Backlog { namespace, pool, agent, tasks, oldest };
        Ok(all.into_iter().map(backlog).collect())
    }

    async fn expired(&self, before: Timestamp, limit: usize) -> Result<Vec<Row>> {
        let end = |row: &Row| row.lease.as_ref().map(|lease| lease.expires_at);
        let held = self.held();
        Ok(held.pick(|row| end(row).is_some_and(|end| end < before), |row| (end(row), row.task.id), limit))
    }

    async fn overdue(&self, now: Timestamp, limit: usize) -> Result<Vec<Row>> {
        let due = |row: &Row| row.task.due_at();
        let held = self.held();
        Ok(held.pick(|row| due(row).is_some_and(|at| at <= now), |row| (due(row), row.task.id), limit))
    }

    async fn held_by(&self, worker: WorkerId) -> Result<Vec<Row>> {
        Ok(self.held().held_by(worker))
    }

    async fn register(&self, mut worker: Worker) -> Result<Option<Worker>> {
        let mut held = self.held();
        worker.seen_at = self.clock.now();
        let former = held.workers.get(&worker.id);
        worker.draining |= rules::still_drains(former, &worker);
        worker.via = former.and_then(|former| former.via);
        held.lost.remove(&worker.id);
        Ok(held.workers.insert(worker.id, worker))
    }

    async fn renew(&self, beats: Vec<Beat>, lease: Duration) -> Result<Vec<Option<Renewal>>> {
        let mut held = self.held();
        let now = self.clock.now();
        Ok(beats.iter().map(|beat| held.renew(beat, now, lease)).collect())
    }

    async fn workers(&self) -> Result<Vec<Worker>> {
        Ok(self.held().workers.values().cloned().collect())
    }

    async fn lose_workers(&self, before: Timestamp, event: WorkerEvent<'_>) -> Result<Vec<Worker>> {
        let mut held = self.held();
        let now = self.clock.now();
        let silent = held.workers.values().filter(|worker| worker.seen_at < before && !held.lost.contains(&worker.id));
        let silent: Vec<_> = silent.cloned().collect();
        held.lost.extend(silent.iter().map(|worker| worker.id));
        held.add_events(silent.iter().map(event).collect(), now);
        Ok(silent)
    }

    async fn remove_worker(&self, id: WorkerId) -> Result<()> {
        let mut held = self.held();
        held.workers.remove(&id);
        held.lost.remove(&id);
        Ok(())
    }

    async fn breakers(&self) -> Result<BTreeMap<Scope, Breaker>> {
        Ok(self.held().breakers.iter().map(|(scope, (breaker, _))| (scope.clone(), breaker.clone())).collect())
    }

    async fn change_breaker(&self, scope: &Scope, change: ChangeBreaker) -> Result<Breaker> {
        let mut held = self.held();
        let now = self.clock.now();
        let before = held.breakers.get(scope).map(|(breaker, _)| breaker.clone()).unwrap_or_default();
        let (after, events) = change(&before, now);
        if after.is_new() {
            held.breakers.remove(scope);
        } else {
            held.breakers.insert(scope.clone(), (after.clone(), now));
        }
        held.add_events(events, now);
        Ok(after)
    }

    async fn hold_loop(&self, name: &str, holder: Incarnation, ttl: Duration) -> Result<Option<u64>> {
        let mut held = self.held();
        let now = self.clock.now();
        let lease = held.loops.entry(name.into()).or_insert(Loop { holder: None, term: 0, expires_at: now });
        if lease.holder != Some(holder) {
            if lease.holder.is_some() && lease.expires_at > now {
                return Ok(None);
            }
            lease.holder = Some(holder);
            lease.term += 1;
        }
        lease.expires_at = now.after(ttl);
        Ok(Some(lease.term))
    }

    async fn release_loop(&self, name: &str, holder: Incarnation) -> Result<()> {
        if let Some(lease) = self.held().loops.get_mut(name)
            && lease.holder == Some(holder)
        {
            lease.holder = None;
        }
        Ok(())
    }

    async fn loops(&self) -> Result<Vec<HeldLoop>> {
        let held = self.held();
        let now = self.clock.now();
        let live = held.loops.iter().filter(|(_, lease)| lease.expires_at > now);
        let each = live
            .filter_map(|(name, lease)| Some(HeldLoop { name: name.clone(), holder: lease.holder?, term: lease.term }));
        Ok(each.collect())
    }

    async fn report(&self, mut controller: Controller, workers: Vec<Report>) -> Result<Timestamp> {
        let mut held = self.held();
        let now = self.clock.now();
        let former = held.controllers.get(&controller.id);
        let known = former.filter(|former| former.incarnation == controller.incarnation);
        controller.since = known.map_or(now, |known| known.since);
        controller.seen_at = now;
        held.controllers.insert(controller.id, controller);
        held.reports.extend(workers.into_iter().map(|report| (report.worker, (report, now))));
        Ok(now)
    }

    async fn controllers(&self) -> Result<Vec<Controller>> {
        Ok(self.held().controllers.values().cloned().collect())
    }

    async fn remove_controller(&self, id: ControllerId, incarnation: Incarnation) -> Result<()> {
        let mut held = self.held();
        if held.controllers.get(&id).is_some_and(|known| known.incarnation == incarnation) {
            held.controllers.remove(&id);
        }
        Ok(())
    }

    async fn reports(&self) -> Result<Vec<Report>> {
        Ok(self.held().reports.values().map(|(report, _)| report.clone()).collect())
    }

    async fn wishes(&self) -> Result<BTreeMap<WorkerId, Wish>> {
        Ok(self.held().wishes.clone())
    }

    async fn wish(
        &self,
        worker: WorkerId,
        wish: NewWish,
        kept: Option<(Key, Bytes)>,
        audit: Audit,
        event: Option<NewEvent>,
    ) -> Result<Wish> {
        let mut held = self.held();
        let now = self.clock.now();
        let wish = rules::next_wish(held.wishes.get(&worker), wish, now);
        held.wishes.insert(worker, wish.clone());
        held.audit.push((now, audit));
        held.add_events(event.into_iter().collect(), now);
        if let Some((key, answer)) = kept {
            held.keep(key, answer, now);
        }
        Ok(wish)
    }

    async fn item(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.held().items.get(name).cloned())
    }

    async fn put_item(&self, name: &str, item: &[u8]) -> Result<Vec<u8>> {
        Ok(self.held().items.entry(name.into()).or_insert_with(|| item.to_vec()).clone())
    }

    async fn put_token(&self, token: Token, audit: Audit) -> Result<()> {
        let mut held = self.held();
        let now = self.clock.now();
        held.tokens.retain(|_, other| other.hash != token.hash);
        held.tokens.insert(token.id.clone(), token);
        held.audit.push((now, audit));
        Ok(())
    }

    async fn take_token(&self, hash: &[u8; 32]) -> Result<std::result::Result<Token, TokenRefusal>> {
        let mut held = self.held();
        let now = self.clock.now();
        let Some(token) = held.tokens.values_mut().find(|token| token.hash == *hash) else {
            return Ok(Err(TokenRefusal::Unknown));
        };
        let used = rules::use_once(token.clone(), now);
        if let Ok(used) = &used {
            token.clone_from(used);
        }
        Ok(used)
    }

    async fn tokens(&self, audience: &Audience) -> Result<Vec<Token>> {
        let held = self.held();
        let mut tokens: Vec<_> =
            held.tokens.values().filter(|token| rules::sees(audience, &token.namespace)).cloned().collect();
        tokens.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        Ok(tokens)
    }

    async fn revoke_token(
        &self,
        audience: &Audience,
        id: &str,
        kept: Option<(Key, Bytes)>,
        audit: Audit,
    ) -> Result<bool> {
        let mut held = self.held();
        let now = self.clock.now();
        if !held.tokens.get(id).is_some_and(|token| rules::sees(audience, &token.namespace)) {
            return Ok(false);
        }
        held.tokens.remove(id);
        held.audit.push((now, audit));
        if let Some((key, answer)) = kept {
            held.keep(key, answer, now);
        }
        Ok(true)
    }

    async fn bind(&self, identity: &str, bounds: &WorkerBounds) -> Result<()> {
        let mut held = self.held();
        match *bounds == WorkerBounds::default() {
            true => held.bounds.remove(identity),
            false => held.bounds.insert(identity.into(), bounds.clone()),
        };
        Ok(())
    }

    async fn bounds(&self, identity: &str) -> Result<WorkerBounds> {
        Ok(self.held().bounds.get(identity).cloned().unwrap_or_default())
    }

    async fn put_secret(
        &self,
        secret: ClosedSecret,
        only: Option<&str>,
        audit: Audit,
    ) -> Result<std::result::Result<SecretInfo, SecretInfo>> {
        let mut held = self.held();
        let now = self.clock.now();
        let ClosedSecret { name, namespace, owner, closed } = secret;
        let former = held.secrets.get(&(namespace.clone(), name.clone())).map(|(former, _)| former.clone());
        if let Some(former) = former.clone().filter(|former| only.is_some_and(|only| only != former.owner)) {
            return Ok(Err(former));
        }
        let version = former.as_ref().map_or(1, |former| former.version + 1);
        let created_at = former.map_or(now, |former| former.created_at);
        let kept = SecretInfo { name, namespace, version, owner, created_at, updated_at: now };
        held.secrets.insert((kept.namespace.clone(), kept.name.clone()), (kept.clone(), closed));
        held.audit.push((now, audit));
        Ok(Ok(kept))
    }

    async fn secrets(&self, audience: &Audience) -> Result<Vec<SecretInfo>> {
        let held = self.held();
        let infos = held.secrets.values().map(|(info, _)| info);
        Ok(infos.filter(|info| rules::sees(audience, &info.namespace)).cloned().collect())
    }

    async fn secret(&self, namespace: &Namespace, name: &str) -> Result<Option<(SecretInfo, Vec<u8>)>> {
        Ok(self.held().secrets.get(&(namespace.clone(), name.to_owned())).cloned())
    }

    async fn remove_secret(&self, namespace: &Namespace, name: &str, audit: Audit) -> Result<bool> {
        let mut held = self.held();
        let now = self.clock.now();
        if held.secrets.remove(&(namespace.clone(), name.to_owned())).is_none() {
            return Ok(false);
        }
        held.audit.push((now, audit));
        Ok(true)
    }

    async fn put_certificate(&self, certificate: Certificate) -> Result<bool> {
        let mut held = self.held();
        let revoked = held.revoked.contains(&certificate.identity);
        held.certificates.insert(certificate.serial.clone(), certificate);
        Ok(!revoked)
    }

    async fn revoke_identity(&self, identity: &str, audit: Audit) -> Result<Vec<String>> {
        let mut held = self.held();
        let now = self.clock.now();
        let live = held.certificates.values().filter(|one| one.identity == identity && one.not_after > now);
        let live: Vec<_> = live.map(|one| one.serial.clone()).collect();
        if !live.is_empty() {
            held.revoked.insert(identity.into());
            held.audit.push((now, audit));
        }
        Ok(live)
    }

    async fn denied(&self) -> Result<Vec<String>> {
        let held = self.held();
        let now = self.clock.now();
        let denied = held.certificates.values().filter(|one| held.revoked.contains(&one.identity));
        Ok(denied.filter(|one| one.not_after > now).map(|one| one.serial.clone()).collect())
    }

    async fn events(&self, audience: &Audience, from: EventsFrom, limit: usize) -> Result<Events> {
        let held = self.held();
        let all: Vec<_> = held.events.values().filter(|(event, _)| rules::may_read(audience, event)).collect();
        let first = match from {
            EventsFrom::After(after) => all.partition_point(|(_, event)| event.cursor <= after),
            EventsFrom::Tail(count) => all.len().saturating_sub(limit.min(count as usize)),
            EventsFrom::Since(since) => all.partition_point(|(_, event)| event.time < since),
        };
        let events: Vec<_> = all[first..].iter().take(limit).map(|(_, event)| event.clone()).collect();
        Ok(rules::events_page(events, from, held.last_cursor, limit))
    }

    async fn add_events(&self, events: Vec<NewEvent>) -> Result<()> {
        let mut held = self.held();
        let now = self.clock.now();
        held.add_events(events, now);
        Ok(())
    }

    async fn audit(&self, audience: &Audience, wanted: &ListAudit) -> Result<Vec<AuditLine>> {
        let contains = |text: &str, part: &Option<String>| part.as_ref().is_none_or(|part| text.contains(part));
        let fits = |line: &AuditLine| {
            rules::sees(audience, &line.namespace)
                && wanted.before.is_none_or(|before| line.no < before)
                && wanted.since.is_none_or(|since| line.time >= since)
                && contains(&line.principal, &wanted.principal)
                && wanted.action.as_ref().is_none_or(|action| line.action == *action)
                && (contains(&line.target, &wanted.about) || contains(&line.result, &wanted.about))
                && (!wanted.refused || line.result != "ok")
        };
        let held = self.held();
        let lines = held.audit.iter().enumerate().map(|(place, (at, line))| AuditLine {
            no: place as u64 + 1,
            time: *at,
            namespace: line.namespace.clone(),
            principal: line.principal.clone(),
            action: line.action.into(),
            target: line.target.clone(),
            result: line.result.clone(),
            count: line.count,
        });
        Ok(lines.rev().filter(fits).take(wanted.limit as usize).collect())
    }

    async fn sweep(&self) -> Result<()> {
        let mut held = self.held();
        let now = self.clock.now();
        let (keys, events) = (rules::cutoff(now, KEY_RETENTION), rules::cutoff(now, EVENT_RETENTION));
        held.requests.retain(|_, answered| answered.at >= keys);
        let lines = rules::cutoff(now, AUDIT_RETENTION);
        held.audit.retain(|(at, _)| *at >= lines);
        held.events.retain(|_, (_, event)| event.time >= events);
        held.breakers.retain(|_, (_, at)| *at >= events);
        held.tokens.retain(|_, token| token.expires_at > now);
        held.certificates.retain(|_, certificate| certificate.not_after > now);
        held.controllers.retain(|_, controller| controller.seen_at >= events);
        held.reports.retain(|_, (_, at)| *at >= events);
        let members: BTreeSet<_> = held.certificates.values().map(|one| one.identity.clone()).collect();
        held.bounds.retain(|identity, _| members.contains(identity));
        let gone = |worker: &&Worker| {
            worker.seen_at < events && held.lost.contains(&worker.id) && held.held_by(worker.id).is_empty()
        };
        let gone: Vec<_> = held.workers.values().filter(gone).map(|worker| worker.id).collect();
        for id in gone {
            held.workers.remove(&id);
            held.lost.remove(&id);
        }
        Ok(())
    }

    async fn cap_log(&self, task: TaskId, most: u64) -> Result<u64> {
        let mut held = self.held();
        let to = held.dropped.get(&task).map_or(Offset(0), |dropped| dropped.to);
        let kept = held.logs.get(&task).map(Vec::as_slice).unwrap_or_default().iter();
        let kept: Vec<_> = kept.filter(|record| log::is_bulk(record) && record.offset >= to).collect();
        let outline = |record: &&Record| log::Outline {
            first: record.offset,
            last: record.offset,
            first_time: record.time,
            last_time: record.time,
            bytes: record.weight() as u64,
            dropped: false,
        };
        let outlines: Vec<_> = kept.iter().map(outline).collect();
        let total = outlines.iter().map(|outline| outline.bytes).sum();
        let Some((chunk, left)) = log::shorten(&outlines, total, most) else { return Ok(total) };
        let bytes = log::dropped_bytes(chunk.data)?;
        let dropped = held.dropped.entry(task).or_insert(Dropped { from: chunk.first, to: Offset(0), bytes: 0 });
        dropped.to = chunk.last.next();
        dropped.bytes += bytes;
        Ok(left)
    }

    async fn forget_tasks(&self, ended_for: Duration) -> Result<u64> {
        let mut held = self.held();
        let before = rules::cutoff(self.clock.now(), ended_for);
        let old = held.rows.values().filter(|row| row.task.ended_at.is_some_and(|at| at < before));
        let old: Vec<_> = old.map(|row| row.task.id).collect();
        for id in &old {
            held.rows.remove(id);
            held.logs.remove(id);
            held.dropped.remove(id);
        }
        Ok(old.len() as u64)
    }

    async fn ping(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) {}
}
