//! What every store must do, run over each of them.

mod access;
mod fleet;
mod logs;
mod mesh;
mod random;
mod tasks;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use ado_proto::record::{Body, Desired, Exited, Member, Output, Record, Started, Stream, Submitted};
use ado_proto::spec::{Containment, Exit, Input, Resources, TaskSpec};
use ado_proto::{
    Audience, Epoch, GroupId, Incarnation, Namespace, Offset, RequestId, Seq, TaskId, Timestamp, WorkerId,
};
use bytes::Bytes;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::env::{Env, Source};
#[cfg(unix)]
use crate::servers::postgres::Database;
use crate::task::{Command, Holder, Policy, decide, submit};

/// How long a claim's lease is.
pub(super) const LEASE: Duration = Duration::from_secs(20);
/// The controller through which workers renew.
const VIA: Incarnation = Incarnation(uuid::Uuid::from_u128(77));
/// Where tests begin, so that there is a past.
const START: i64 = 1_800_000_000_000_000;

/// A clock that tests set and a generator that counts. Clones are the same.
#[derive(Clone)]
pub(super) struct Hand {
    now: Arc<AtomicI64>,
    drawn: Arc<AtomicU64>,
}

impl Hand {
    pub(super) fn new() -> Self {
        Self { now: Arc::new(AtomicI64::new(START)), drawn: Arc::default() }
    }

    pub(super) fn advance(&self, by: Duration) {
        self.now.fetch_add(by.as_micros() as i64, Ordering::SeqCst);
    }

    pub(super) fn set(&self, now: Timestamp) {
        self.now.store(now.0, Ordering::SeqCst);
    }

    pub(super) fn time(&self) -> Timestamp {
        Timestamp(self.now.load(Ordering::SeqCst))
    }
}

impl Source for Hand {
    fn now(&self) -> Timestamp {
        self.time()
    }

    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let drawn = self.drawn.fetch_add(1, Ordering::SeqCst).wrapping_add(1);
            chunk.copy_from_slice(&drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A store and its clock.
pub(super) struct Bed {
    pub(super) store: Arc<dyn Store>,
    pub(super) hand: Hand,
    _directory: Option<TempDir>,
}

impl Bed {
    fn memory() -> Self {
        let hand = Hand::new();
        Self { store: Arc::new(Memory::new(Env::new(hand.clone()))), hand, _directory: None }
    }

    async fn sqlite() -> Self {
        let hand = Hand::new();
        let directory = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&directory.path().join("ado.db"), Env::new(hand.clone())).await.unwrap();
        Self { store: Arc::new(store), hand, _directory: Some(directory) }
    }

    /// `None`: there is no server to be had, and the test is skipped.
    #[cfg(unix)]
    async fn postgres() -> Option<Self> {
        Some(Self::on(&postgres_database().await?.url()).await)
    }

    /// The same database whenever it is called, emptied.
    #[cfg(unix)]
    async fn postgres_again() -> Option<Self> {
        static DATABASE: tokio::sync::OnceCell<Option<Database>> = tokio::sync::OnceCell::const_new();
        let database = DATABASE.get_or_init(postgres_database).await.as_ref()?;
        database.meddle("TRUNCATE ado.task, ado.lifecycle, ado.chunk, ado.worker, ado.event").await;
        Some(Self::on(&database.url()).await)
    }

    #[cfg(unix)]
    async fn on(url: &str) -> Self {
        let hand = Hand::new();
        let store = Postgres::open_by_hand(url, Env::new(hand.clone())).await.unwrap();
        Self { store: Arc::new(store), hand, _directory: None }
    }

    #[cfg(not(unix))]
    async fn postgres() -> Option<Self> {
        None
    }

    #[cfg(not(unix))]
    async fn postgres_again() -> Option<Self> {
        None
    }

    /// The audit log, newest first.
    async fn audit(&self) -> Vec<AuditLine> {
        let all = ListAudit { limit: u32::MAX, ..ListAudit::default() };
        self.store.audit(&Audience::Everywhere, &all).await.unwrap()
    }

    /// System events, once `count` of them are seen: they may wait for other writers' transactions to end.
    async fn events(&self, count: usize) -> Vec<ado_proto::request::SystemEvent> {
        loop {
            let all = EventsFrom::After(0);
            let events = self.store.events(&Audience::Everywhere, all, usize::MAX).await.unwrap().events;
            if events.len() >= count {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Commits one unit of changes without a key.
    async fn commit(&self, changes: Vec<Change>) -> Vec<Outcome> {
        match self.store.commit(vec![unit(changes)]).await.unwrap().remove(0) {
            Committed::Done(outcomes, None) => outcomes,
            other => panic!("{other:?}"),
        }
    }

    async fn create(&self, id: TaskId) {
        self.create_as(id, new_task()).await;
    }

    async fn create_as(&self, id: TaskId, submitted: Submitted) {
        assert!(applied(&self.commit(vec![create(id, submitted)]).await[0]).records.len() == 1);
    }

    async fn run(&self, id: TaskId, command: Command) -> Outcome {
        self.commit(vec![update(id, command)]).await.remove(0)
    }

    async fn row(&self, id: TaskId) -> Row {
        self.store.row(id).await.unwrap().unwrap()
    }

    async fn log(&self, id: TaskId) -> Vec<Record> {
        let page = self.store.read(id, Offset(0), usize::MAX).await.unwrap().unwrap();
        assert_eq!(page.records.len() as u64, page.next_offset.0);
        page.records
    }

    /// One heartbeat alone.
    async fn renew(
        &self,
        worker: WorkerId,
        incarnation: Incarnation,
        holds: &[(TaskId, Epoch)],
        draining: bool,
    ) -> Option<Renewal> {
        let beat = Beat { worker, incarnation, via: VIA, holds: holds.to_vec(), draining };
        self.store.renew(vec![beat], LEASE).await.unwrap().remove(0)
    }

    /// Claims a task for a worker and starts its agent.
    async fn start(&self, id: TaskId, worker: WorkerId) -> Epoch {
        applied(&self.run(id, claim(worker)).await);
        let epoch = self.row(id).await.task.epoch;
        applied(&self.run(id, append(epoch, 0, vec![started()])).await);
        epoch
    }
}

/// A migrated database of one's own.
#[cfg(unix)]
pub(super) async fn postgres_database() -> Option<Database> {
    crate::servers::postgres::copy_of(async |url| {
        Postgres::open(&url, Env::system()).await.unwrap().close().await;
    })
    .await
}

/// The n-th id of a kind: they rise with n.
fn uuid(n: u64) -> Uuid {
    Uuid::from_u128((u128::from(n) << 80) | (7 << 76) | (2 << 62) | u128::from(n))
}

pub(super) fn task(n: u64) -> TaskId {
    TaskId(uuid(n))
}

pub(super) fn worker(n: u64) -> WorkerId {
    WorkerId(uuid(n))
}

fn incarnation(n: u64) -> Incarnation {
    Incarnation(uuid(n))
}

fn namespace(name: &str) -> Namespace {
    Namespace(name.into())
}

fn only(name: &str) -> Audience {
    Audience::Namespace(namespace(name))
}

pub(super) fn new_task() -> Submitted {
    Submitted {
        namespace: Namespace::default(),
        owner: "user/ann".into(),
        name: None,
        group: None,
        spec: TaskSpec {
            max_retries: 2,
            setup_limit_ms: Some(2_000),
            total_limit_ms: Some(20_000),
            ..TaskSpec::new("shell", Input::Text("true".into()))
        },
    }
}

fn member(n: u64, index: u32) -> Submitted {
    let id = ado_proto::GroupId(uuid(n));
    Submitted { group: Some(Member { id, index, count: 3 }), ..new_task() }
}

fn with_priority(priority: i32) -> Submitted {
    let mut submitted = new_task();
    submitted.spec.priority = priority;
    submitted
}

pub(super) fn unit(changes: Vec<Change>) -> Unit {
    Unit { changes, once: None, audit: None }
}

pub(super) fn create(id: TaskId, submitted: Submitted) -> Change {
    let make = move |now| {
        let decision = submit(id, submitted, now);
        let event = NewEvent {
            audience: Audience::Namespace(decision.task.namespace.clone()),
            kind: "task.submitted",
            task: Some(id),
            worker: None,
            text: "submitted".into(),
        };
        Some(Write { row: Row::new(decision.task, None), records: decision.records, events: vec![event] })
    };
    Change::Create { id, make: Box::new(make) }
}

/// A change as a controller makes it: a claim takes a lease, and whoever holds nothing has none.
pub(super) fn update(id: TaskId, command: Command) -> Change {
    Change::Update { id, decide: Box::new(move |row, now| write(row, command, now)) }
}

/// The lease of a claim: it is given to the start whose number is ten times the worker's.
pub(super) fn given(worker: WorkerId, now: Timestamp) -> Lease {
    let number = (1..100).find(|number| self::worker(*number) == worker).expect("one of ours");
    let incarnation = incarnation(10 * number);
    Lease { worker, incarnation, is_known: false, expires_at: now.after(LEASE) }
}

fn write(row: &Row, command: Command, now: Timestamp) -> std::result::Result<Write, Refusal> {
    let claimed = match &command {
        Command::Claim { worker } => Some(given(worker.id, now)),
        _ => None,
    };
    let decision = decide(&row.task, command, now, &Policy::default(), 0.5)?;
    let lease = claimed.or(row.lease.clone()).filter(|_| decision.task.is_held());
    Ok(Write { row: Row::new(decision.task, lease), records: decision.records, events: Vec::new() })
}

/// What is done about a task in the dead letter.
fn settle(id: TaskId, how: Settled) -> Change {
    let decide = move |row: &Row, _| {
        crate::task::settle(&row.task, row.settled)?;
        Ok(Write { row: Row { settled: Some(how), ..row.clone() }, records: Vec::new(), events: Vec::new() })
    };
    Change::Update { id, decide: Box::new(decide) }
}

pub(super) fn claim(worker: WorkerId) -> Command {
    Command::Claim { worker: Holder { id: worker, name: "w".into() } }
}

pub(super) fn append(epoch: Epoch, first: u64, bodies: Vec<Body>) -> Command {
    Command::Append { epoch, first: Seq(first), bodies }
}

fn desire(desired: Desired) -> Command {
    Command::Desire { desired, by: "user/ann".into(), force: false }
}

pub(super) fn started() -> Body {
    Started { pid: 1, containment: Containment::Group }.into()
}

pub(super) fn exited(code: i32) -> Body {
    Exited { exit: Exit::Code(code) }.into()
}

pub(super) fn output(data: impl Into<Bytes>) -> Body {
    Output { stream: Stream::Stdout, position: 0, data: data.into() }.into()
}

fn applied(outcome: &Outcome) -> &Write {
    match outcome {
        Outcome::Applied(write) => write,
        other => panic!("not applied: {other:?}"),
    }
}

fn audit(action: &'static str) -> Audit {
    Audit::done(Namespace::default(), "ado://default/user/ann".into(), action, "it")
}

fn request(n: u64) -> RequestId {
    RequestId(uuid(n))
}

fn ids(rows: &[Row]) -> Vec<TaskId> {
    rows.iter().map(|row| row.task.id).collect()
}

/// Every case over every store.
macro_rules! suite {
    ($($module:ident: $($case:ident)+;)+) => {
        mod memory {
            $($(#[tokio::test] async fn $case() { super::$module::$case(super::Bed::memory()).await })+)+
        }
        mod sqlite {
            $($(#[tokio::test] async fn $case() { super::$module::$case(super::Bed::sqlite().await).await })+)+
        }
        mod postgres {
            $($(#[tokio::test] async fn $case() {
                if let Some(bed) = super::Bed::postgres().await {
                    super::$module::$case(bed).await;
                }
            })+)+
        }
    };
}

suite! {
    tasks:
        a_task_is_created_once_and_changed
        what_is_not_there_is_missing
        changes_of_a_batch_see_each_other
        a_refused_change_fails_nothing_else
        a_write_that_does_not_continue_the_log_is_refused
        a_repeated_request_has_one_effect_and_one_answer
        a_key_remembers_refusals_too
        tasks_are_found_as_people_name_them
        groups_are_found_in_order_of_index
        another_namespace_finds_nothing
        lists_are_newest_first_and_paged
        lists_are_of_states_and_namespaces
        lists_are_of_groups_and_names
        the_dead_letter_holds_what_failed_until_it_is_settled
        a_task_is_not_made_when_an_earlier_change_says_so
        what_is_overdue_comes_in_order
        claims_come_in_order_of_score
        what_shall_run_waits_whether_due_or_not
        what_waits_is_counted_by_kind
        a_record_nobody_could_read_again_is_refused
        rows_come_back_whole;
    logs:
        a_log_is_read_from_any_offset
        a_log_is_read_backwards
        pages_are_about_as_large_as_asked
        large_output_comes_back_byte_for_byte
        unknown_records_are_kept
        the_first_offset_since_a_time
        an_ended_log_says_so
        a_cap_drops_the_oldest_output_and_nothing_else
        tasks_that_ended_long_ago_are_forgotten
        the_clock_never_goes_back;
    fleet:
        a_heartbeat_renews_what_is_held
        a_heartbeat_of_another_start_renews_nothing
        heartbeats_that_come_together_count_each_for_itself
        leases_expire
        workers_are_registered_and_forgotten
        a_start_that_drains_goes_on_draining
        a_silent_worker_is_lost_once_a_silence
        a_loop_has_one_holder_and_rising_terms
        a_breaker_is_kept_while_anything_is_known_of_it;
    mesh:
        controllers_are_known_by_what_they_said_last
        controllers_say_what_they_know_of_workers
        held_loops_are_listed
        wishes_are_kept_and_counted
        an_item_is_kept_once;
    access:
        tokens_are_used_up
        tokens_expire
        tokens_belong_to_a_namespace
        revoked_identities_are_denied_for_ever
        events_are_seen_by_their_audience_in_order
        events_are_read_from_anywhere
        a_revoked_token_is_remembered_with_its_request
        the_audit_log_is_newest_first
        the_audit_log_is_searched
        workers_are_bound
        secrets_have_versions_and_owners
        the_audit_log_says_why_nothing_was_done
        sweeping_deletes_what_has_outlived_its_retention
        the_store_answers;
}
