//! Requests about tasks.

use std::collections::BTreeSet;

use ado_proto::ids::{Reference, ReferenceError};
use ado_proto::record::{self, Member};
use ado_proto::request::{
    DesiredSet, ErrorCode, ErrorReply, GetTasks, SetDesired, Submit, Submitted, TaskInfo, encode_response,
};
use ado_proto::spec::{Input, Resources, TaskSpec};
use ado_proto::{Audience, GroupId, TaskId};

use super::{Asked, info, unavailable};
use crate::controller::dispatch;
use crate::controller::fleet::want;
use crate::controller::secrets;
use crate::controller::session::event_of;
use crate::queue::Word;
use crate::scheduler::{Candidate, Demand, Unfit};
use crate::store::{Change, Find, NewEvent, Outcome, Row, Unit, Write};
use crate::task::{self, Command, Settled};

/// Most tasks of one group.
const MAX_GROUP: usize = 1000;
/// Most bytes of input and environment that the tasks of one request have, copies included: they are one transaction, and
/// lie in memory several times until it is durable.
const MAX_SUBMIT: usize = 16 * 1024 * 1024;

impl Asked<'_> {
    /// Finds the task, or the tasks of the group, that people mean: an id, the beginning of one, or a label. What fits
    /// several is refused, so that nobody cancels the wrong one. "Not found" and "not permitted" answer alike.
    /// A task that the request may not be about is "denied" if the caller may see it.
    pub(super) async fn find(&self, text: &str) -> Result<Vec<Row>, ErrorReply> {
        self.about(text);
        let reference = text.parse::<Reference>();
        let by_id = match &reference {
            Ok(Reference::Full(id)) => self.look_for_uuid(*id).await?,
            Ok(Reference::Task(tail)) => self.look(&Find::Prefix(tail.clone())).await?,
            Ok(Reference::Group(tail)) => self.look(&Find::GroupPrefix(tail.clone())).await?,
            Err(_) => Vec::new(),
        };
        let is_name = by_id.is_empty();
        let rows = if is_name { self.called(text).await? } else { by_id };
        let rows = self.access.permitted(rows)?;
        // The members of a group are one thing, but a task's short id means one task.
        let mut different: Vec<_> = match &reference {
            Ok(Reference::Task(_)) if !is_name => rows.iter().map(|row| row.task.id.short()).collect(),
            _ => rows.iter().map(name_of).collect(),
        };
        different.dedup();
        match (different.len(), reference) {
            (0, Err(error @ ReferenceError::TooShort(_))) => {
                Err(ErrorReply::new(ErrorCode::Invalid, error.to_string()).hint("ado list --all"))
            }
            (0, reference) => {
                self.look_elsewhere(&reference.ok()).await;
                Err(ErrorReply::new(ErrorCode::NotFound, format!("there is no task `{text}`")).hint("ado list --all"))
            }
            (1, _) => Ok(rows),
            (count, _) => {
                let some = different[..count.min(5)].join(", ");
                let hint = if is_name { "give the id of one" } else { "give more characters" };
                Err(ErrorReply::new(ErrorCode::Ambiguous, format!("`{text}` fits {count} of them: {some}")).hint(hint))
            }
        }
    }

    /// Tasks with this label. One that is done again hands its name on.
    async fn called(&self, name: &str) -> Result<Vec<Row>, ErrorReply> {
        let mut rows = self.look(&Find::Name(name.into())).await?;
        let handed_on = |row: &Row| matches!(row.settled, Some(Settled::Retried(_)));
        if !rows.iter().all(handed_on) {
            rows.retain(|row| !handed_on(row));
        }
        Ok(rows)
    }

    /// A UUID may be a task's or a group's.
    async fn look_for_uuid(&self, id: uuid::Uuid) -> Result<Vec<Row>, ErrorReply> {
        let task = self.look(&Find::Id(TaskId(id))).await?;
        if task.is_empty() { self.look(&Find::Group(GroupId(id))).await } else { Ok(task) }
    }

    pub(super) async fn look(&self, find: &Find) -> Result<Vec<Row>, ErrorReply> {
        self.shared.store.find(&self.access.audience, find, MAX_GROUP + 1).await.map_err(unavailable)
    }

    /// Checks that the caller may see a task.
    pub(super) async fn visible(&self, id: TaskId) -> Result<(), ErrorReply> {
        self.about(&id.short());
        let rows = self.access.permitted(self.look(&Find::Id(id)).await?)?;
        if rows.is_empty() {
            self.look_elsewhere(&Some(Reference::Full(id.0))).await;
            return Err(ErrorReply::new(ErrorCode::NotFound, format!("there is no task `{}`", id.short())));
        }
        Ok(())
    }

    /// Nothing was found. An id that is of another namespace came from somewhere: that belongs into the audit log, whatever
    /// is answered. A name says nothing: everybody has a `nightly`.
    async fn look_elsewhere(&self, reference: &Option<Reference>) {
        if self.access.audience == Audience::Everywhere {
            return;
        }
        let find = match reference {
            Some(Reference::Full(id)) => Find::Id(TaskId(*id)),
            Some(Reference::Task(tail)) => Find::Prefix(tail.clone()),
            Some(Reference::Group(tail)) => Find::GroupPrefix(tail.clone()),
            None => return,
        };
        match self.shared.store.find(&Audience::Everywhere, &find, 1).await {
            Ok(rows) if rows.is_empty() => {}
            Ok(_) => self.refused("it is of another namespace").await,
            Err(error) => tracing::warn!(%error, "not in the audit log"),
        }
    }

    pub(super) async fn infos(&self, rows: &[Row]) -> Result<Vec<TaskInfo>, ErrorReply> {
        let now = self.shared.store.now().await.map_err(unavailable)?;
        let fleet = self.shared.everyone().await;
        let info = |row: &Row| {
            let away = self.shared.breakers.of_task(&row.task);
            info::task(row, &fleet, away.as_ref(), now)
        };
        Ok(info::shorten(rows.iter().map(info).collect()))
    }

    pub(super) async fn get_tasks(&self, request: GetTasks) -> Result<Vec<TaskInfo>, ErrorReply> {
        let rows = self.find(&request.reference).await?;
        self.infos(&rows).await
    }

    pub(super) async fn submit(&self, request: Submit) -> Result<Vec<u8>, ErrorReply> {
        check_submit(&request)?;
        let named: BTreeSet<_> = request.specs.iter().flat_map(|spec| spec.secrets.values()).collect();
        if !named.is_empty() {
            // A secret may be gone when the request comes again.
            if let Some(answer) = self.replayed::<Submit>().await? {
                return Ok(answer);
            }
            secrets::check(self.shared, &self.access.namespace, named).await?;
        }
        let copies = request.copies as usize;
        let count = request.specs.len() * copies;
        let group = (count > 1).then(|| GroupId(self.shared.env.uuid()));
        let fleet = self.shared.everyone().await;
        let fits = |worker: &&Candidate| {
            request.specs.iter().any(|spec| worker.unfit(&Demand::of(&self.access.namespace, spec)).is_none())
        };
        for spec in &request.specs {
            let demand = Demand::of(&self.access.namespace, spec);
            offered(&fleet, &demand)?;
            enforceable(&fleet, &demand)?;
        }
        let eligible = u32::try_from(fleet.iter().filter(fits).count()).unwrap_or(u32::MAX);
        let mut tasks: Vec<_> = (0..count).map(|_| TaskId(self.shared.env.uuid())).collect();
        // Ids of one millisecond are in order by chance only, and lists go by id.
        tasks.sort_unstable();
        let mut changes = Vec::with_capacity(count);
        let specs = request.specs.into_iter().flat_map(|spec| std::iter::repeat_n(spec, copies));
        for (index, (spec, id)) in specs.zip(&tasks).enumerate() {
            let number = |n: usize| u32::try_from(n).expect("checked against MAX_GROUP");
            let submitted = record::Submitted {
                namespace: self.access.namespace.clone(),
                owner: self.access.owner.clone(),
                name: request.name.clone(),
                group: group.map(|id| Member { id, index: number(index), count: number(count) }),
                spec,
            };
            changes.push(create(*id, submitted));
        }
        let target = group.map_or_else(|| tasks[0].short(), GroupId::short);
        let answer = Submitted { tasks, group, eligible_workers: eligible };
        let kept = answer.clone();
        let once = self.once::<Submit>(move |_| kept).await?;
        let unit = Unit { changes, once, audit: Some(self.audit("Submit", target)) };
        let (outcomes, kept) = self.commit(unit).await?;
        let rows: Vec<_> = outcomes.into_iter().filter_map(applied).collect();
        dispatch::give_hints(self.shared, &rows).await;
        Ok(kept.unwrap_or_else(|| encode_response(&Ok(answer))))
    }

    pub(super) async fn set_desired(&self, request: SetDesired) -> Result<Vec<u8>, ErrorReply> {
        if let Some(answer) = self.replayed::<SetDesired>().await? {
            return Ok(answer);
        }
        let rows = self.find(&request.reference).await?;
        let ids: Vec<_> = rows.iter().map(|row| row.task.id).collect();
        let changes = ids.iter().map(|id| self.desire(*id, &request)).collect();
        let answer = {
            let ids = ids.clone();
            move |outcomes: &[Outcome]| {
                ids.iter().zip(outcomes).map(|(id, outcome)| desired_set(*id, outcome)).collect()
            }
        };
        let once = self.once::<SetDesired>(answer.clone()).await?;
        let audit = self.audit("SetDesired", format!("{} {:?}", request.reference, request.desired));
        let (outcomes, kept) = self.commit(Unit { changes, once, audit: Some(audit) }).await?;
        let kept = kept.unwrap_or_else(|| {
            let answer: Vec<DesiredSet> = answer(&outcomes);
            encode_response(&Ok(answer))
        });
        let (held, free): (Vec<_>, Vec<_>) =
            outcomes.into_iter().filter_map(applied).partition(|row| row.lease.is_some());
        for row in &held {
            if let Some(lease) = &row.lease {
                if self.shared.fleet.is_connected(lease.worker) {
                    self.shared.fleet.tell(lease.worker, lease.incarnation, want(&row.task));
                } else {
                    self.shared.say(Word::Wanted { task: row.task.id, worker: lease.worker });
                }
            }
        }
        dispatch::give_hints(self.shared, &free).await;
        Ok(kept)
    }

    fn desire(&self, id: TaskId, request: &SetDesired) -> Change {
        let (desired, force, by) = (request.desired, request.force, self.access.owner.clone());
        let policy = self.shared.policy;
        let decide = move |row: &Row, now| {
            let decision = task::decide(&row.task, Command::Desire { desired, by, force }, now, &policy, 0.0)?;
            let events = decision.records.iter().filter_map(|record| event_of(id, &decision.task, record)).collect();
            Ok(Write { row: Row::new(decision.task, row.lease.clone()), records: decision.records, events })
        };
        Change::Update { id, decide: Box::new(decide) }
    }
}

/// The short id of the group that a row belongs to, or of the task if it is on its own.
fn name_of(row: &Row) -> String {
    row.task.group.map_or_else(|| row.task.id.short(), |member| member.id.short())
}

pub(super) fn applied(outcome: Outcome) -> Option<Row> {
    match outcome {
        Outcome::Applied(write) => Some(write.row),
        _ => None,
    }
}

fn create(id: TaskId, submitted: record::Submitted) -> Change {
    let make = move |now| {
        let event = NewEvent {
            audience: Audience::Namespace(submitted.namespace.clone()),
            kind: "task.submitted",
            task: Some(id),
            worker: None,
            text: format!("{} by {}", id.short(), submitted.owner),
        };
        let decision = task::submit(id, submitted, now);
        Some(Write { row: Row::new(decision.task, None), records: decision.records, events: vec![event] })
    };
    Change::Create { id, make: Box::new(make) }
}

fn desired_set(task: TaskId, outcome: &Outcome) -> DesiredSet {
    let (state, unchanged) = match outcome {
        Outcome::Applied(write) => (write.row.task.state_word(), None),
        Outcome::Refused(refusal, row) => (row.task.state_word(), Some(refusal.to_string())),
        Outcome::Missing => ("unknown", Some("gone".into())),
        Outcome::Locked => ("unknown", Some("busy: try again".into())),
    };
    DesiredSet { task, state: state.into(), unchanged }
}

/// Refuses an AI agent that is installed on none of the workers that there are. With nobody there the task waits: who comes
/// may have it.
fn offered(fleet: &[Candidate], demand: &Demand<'_>) -> Result<(), ErrorReply> {
    let Some(real) = crate::agents::real(demand.agent) else { return Ok(()) };
    let ours = |worker: &&Candidate| worker.namespace == *demand.namespace && worker.pool == demand.pool;
    let mut there = fleet.iter().filter(ours).peekable();
    if there.peek().is_none() || there.any(|worker| worker.agents.iter().any(|agent| agent == real.name)) {
        return Ok(());
    }
    let (name, program, pool) = (real.name, real.program, demand.pool);
    let message = format!("no worker of pool {pool} can run {name}: none has the program `{program}`");
    Err(ErrorReply::new(ErrorCode::Invalid, message)
        .hint(format!("sh deploy/agents/install.sh {name}, on the worker's machine; then start the worker again"))
        .hint("ado workers list"))
}

/// Refuses a limit that nobody can enforce who could run the task otherwise. With nobody there the task waits: who comes
/// may be able to.
fn enforceable(fleet: &[Candidate], demand: &Demand<'_>) -> Result<(), ErrorReply> {
    let without = Demand { resources: Resources::default(), ..*demand };
    let able: Vec<_> = fleet.iter().filter(|worker| worker.unfit(&without).is_none()).collect();
    let cannot = |worker: &&&Candidate| match worker.unfit(demand) {
        Some(Unfit::Unlimited(kind)) => Some(kind),
        _ => None,
    };
    let kinds: Vec<_> = able.iter().filter_map(|worker| cannot(&worker)).collect();
    match kinds.first() {
        Some(kind) if kinds.len() == able.len() => {
            let who = match able.as_slice() {
                [only] => format!("the only worker that could run it, {}, cannot", only.name),
                all => format!("none of {} workers that could run it can", all.len()),
            };
            let message = format!("{who} limit {}: that takes control groups that it may make", kind.as_str());
            Err(ErrorReply::new(ErrorCode::Invalid, message)
                .hint(format!("leave out --{}", kind.as_str()))
                .hint("run the worker as root, or by systemd with Delegate=yes"))
        }
        _ => Ok(()),
    }
}

/// Bytes of a task's texts.
fn weight(spec: &TaskSpec) -> usize {
    let input = match &spec.input {
        Input::Text(text) => text.len(),
        Input::Argv(argv) => argv.iter().map(String::len).sum(),
    };
    let pairs = spec.env.iter().chain(&spec.labels).chain(&spec.secrets);
    input + pairs.map(|(key, value)| key.len() + value.len()).sum::<usize>() + spec.cwd.as_ref().map_or(0, String::len)
}

fn check_submit(request: &Submit) -> Result<(), ErrorReply> {
    let invalid = |message: String| Err(ErrorReply::new(ErrorCode::Invalid, message));
    let count = request.specs.len().saturating_mul(request.copies as usize);
    if !(1..=MAX_GROUP).contains(&count) {
        return invalid(format!("a request submits 1 to {MAX_GROUP} tasks, not {count}"));
    }
    let each: usize = request.specs.iter().map(weight).sum();
    let total = each.saturating_mul(request.copies as usize);
    if total > MAX_SUBMIT {
        let message = format!(
            "{count} tasks with {total} bytes of input in all are more than the {MAX_SUBMIT} a request may submit"
        );
        return Err(ErrorReply::new(ErrorCode::Invalid, message)
            .hint("put long input into a file on the workers")
            .hint("submit fewer tasks at once"));
    }
    if let Some(name) = request.name.as_ref().filter(|name| !ado_proto::ids::is_name(name)) {
        return invalid(format!("`{name}` is not a name: 1 to 63 of a-z A-Z 0-9 . _ @ -"));
    }
    for spec in &request.specs {
        if let Err(error) = crate::agents::plan(spec) {
            return invalid(error.to_string());
        }
    }
    Ok(())
}
