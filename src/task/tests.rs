//! The conflict table, over all short orders of events and over random long ones, against a tiny reference model.

use ado_proto::record::{
    Body, Desired, Ended, Exited, FIRST_BULK_KIND, Loss, Note, Outcome, Output, Paused, Record, Resumed, Started,
    Stream, Submitted, Truncated, decode_all, encode_all,
};
use ado_proto::spec::{Containment, Exit, Input, Limit, TaskSpec};
use ado_proto::{Epoch, Namespace, Offset, Origin, Seq, TaskId, Timestamp, WorkerId};
use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;

/// What may happen next. Epochs and seqs are taken from the task as it is then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Claim,
    Started,
    Output,
    ExitedOk,
    ExitedFail,
    NeverStarts,
    Frozen,
    Thawed,
    Pause,
    Resume,
    Cancel,
    Kill,
    LoseCharged,
    LoseUncharged,
    /// From the epoch before the current one.
    Stale,
    /// The last append again.
    Duplicate,
    /// An append that leaves out a seq.
    Gap,
    /// The worker says that the time for the whole was over.
    RanOut,
    /// What the agent needs is away.
    Away,
    /// A controller looks whether a limit of time is over.
    Expire,
    /// From the dead letter: again, and out.
    Again,
    Purge,
}

use Event::*;

const ALL: [Event; 22] = [
    Claim,
    Started,
    Output,
    ExitedOk,
    ExitedFail,
    NeverStarts,
    Frozen,
    Thawed,
    Pause,
    Resume,
    Cancel,
    Kill,
    LoseCharged,
    LoseUncharged,
    Stale,
    Duplicate,
    Gap,
    RanOut,
    Away,
    Expire,
    Again,
    Purge,
];

/// Those that move a task along, for longer orders.
const CORE: [Event; 9] = [Claim, Started, ExitedOk, ExitedFail, Pause, Resume, Cancel, LoseCharged, Expire];

const POLICY: Policy = Policy {
    backoff_base: Duration::from_secs(1),
    backoff_cap: Duration::from_secs(3),
    max_charged_losses: 2,
    breaker: BreakerPolicy::USUAL,
};
const MAX_RETRIES: u32 = 1;
const STEP: Duration = Duration::from_millis(700);
/// Over with the second step after a claim.
const SET_UP: Duration = Duration::from_millis(1300);
/// Over with the seventh step.
const TOTAL: Duration = Duration::from_millis(4500);

fn submitted() -> Submitted {
    let spec = TaskSpec {
        max_retries: MAX_RETRIES,
        setup_limit_ms: Some(SET_UP.as_millis() as u64),
        total_limit_ms: Some(TOTAL.as_millis() as u64),
        ..TaskSpec::new("shell", Input::Text("true".into()))
    };
    Submitted { namespace: Namespace::default(), owner: "user/ann".into(), name: None, group: None, spec }
}

fn holder() -> Holder {
    Holder { id: WorkerId(Uuid::from_u128(7)), name: "w".into() }
}

fn started() -> Body {
    Started { pid: 1, containment: Containment::Subreaper }.into()
}

fn output() -> Body {
    Output { stream: Stream::Stdout, position: 0, data: Bytes::from_static(b"x") }.into()
}

fn exited(exit: Exit) -> Body {
    Exited { exit }.into()
}

/// Where the model thinks the task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Queued,
    Starting,
    Running,
    Frozen,
    Over(Outcome),
}

/// The table of the design, as few lines as it takes.
#[derive(Debug, Clone)]
struct Model {
    place: Place,
    desired: Desired,
    force: bool,
    started: bool,
    epoch: u64,
    failures: u32,
    charged: u32,
    uncharged: u32,
    /// How long it has been, while it was not paused.
    alive: Duration,
    /// How long its agent has not run since the claim, while it was not paused.
    setting_up: Duration,
    settled: bool,
}

impl Model {
    const NEW: Self = Self {
        place: Place::Queued,
        desired: Desired::Running,
        force: false,
        started: false,
        epoch: 0,
        failures: 0,
        charged: 0,
        uncharged: 0,
        alive: Duration::ZERO,
        setting_up: Duration::ZERO,
        settled: false,
    };

    fn held(&self) -> bool {
        matches!(self.place, Place::Starting | Place::Running | Place::Frozen)
    }

    fn paused(&self) -> bool {
        self.place == Place::Frozen || self.place == Place::Queued && self.desired == Desired::Paused
    }

    /// Which limit was over first, if one is.
    fn expired(&self) -> Option<Limit> {
        let waits = matches!(self.place, Place::Queued | Place::Starting);
        if !waits || self.paused() || self.desired == Desired::Cancelled {
            return None;
        }
        let since = |spent: Duration, limit| spent.checked_sub(limit);
        let set_up = since(self.setting_up, SET_UP).filter(|_| self.place == Place::Starting);
        match (since(self.alive, TOTAL), set_up) {
            (Some(total), Some(set_up)) if set_up > total => Some(Limit::SetUp),
            (Some(_), _) => Some(Limit::Total),
            (None, set_up) => set_up.map(|_| Limit::SetUp),
        }
    }

    fn fail(&mut self, again: bool) {
        let again = again && self.failures < MAX_RETRIES;
        self.failures += u32::from(again);
        self.place = if again { Place::Queued } else { Place::Over(Outcome::Failed) };
    }

    /// Carries the event out; `false` when it must be refused.
    fn step(&mut self, event: Event, due: bool) -> bool {
        let held = self.held();
        if !self.paused() {
            self.alive += STEP;
            self.setting_up += STEP;
        }
        match event {
            Claim => {
                let takes = self.place == Place::Queued && self.desired == Desired::Running && due;
                if takes {
                    self.place = Place::Starting;
                    self.epoch += 1;
                    self.started = false;
                    self.setting_up = Duration::ZERO;
                }
                takes
            }
            Started if held && !self.started => {
                self.started = true;
                if self.place == Place::Starting {
                    self.place = Place::Running;
                }
                true
            }
            Output => held,
            ExitedOk | ExitedFail | NeverStarts | RanOut | Away if held => {
                match (self.desired, event) {
                    (Desired::Cancelled, _) => self.place = Place::Over(Outcome::Cancelled),
                    (_, ExitedOk) => self.place = Place::Over(Outcome::Completed),
                    (_, Away) => self.place = Place::Queued,
                    _ => self.fail(event == ExitedFail),
                }
                true
            }
            Expire => match self.expired() {
                Some(limit) => {
                    self.fail(limit == Limit::SetUp);
                    true
                }
                None => false,
            },
            Again | Purge => {
                let takes = self.place == Place::Over(Outcome::Failed) && !self.settled;
                self.settled |= takes;
                takes
            }
            Frozen if held && self.place != Place::Frozen => {
                self.place = Place::Frozen;
                true
            }
            Thawed if self.place == Place::Frozen => {
                self.place = if self.started { Place::Running } else { Place::Starting };
                true
            }
            Pause => self.want(Desired::Paused, false),
            Resume => self.want(Desired::Running, false),
            Cancel => self.want(Desired::Cancelled, false),
            Kill => self.want(Desired::Cancelled, true),
            LoseCharged | LoseUncharged if held => {
                self.charged += u32::from(event == LoseCharged);
                self.uncharged += u32::from(event == LoseUncharged);
                self.place = match self.desired {
                    Desired::Cancelled => Place::Over(Outcome::Cancelled),
                    _ if self.charged >= POLICY.max_charged_losses => Place::Over(Outcome::Failed),
                    _ => Place::Queued,
                };
                true
            }
            _ => false,
        }
    }

    fn want(&mut self, desired: Desired, force: bool) -> bool {
        let over = matches!(self.place, Place::Over(_));
        let same = self.desired == desired && (self.force || !force);
        if over || same || (self.desired == Desired::Cancelled && desired != Desired::Cancelled) {
            return false;
        }
        (self.desired, self.force) = (desired, force);
        if desired == Desired::Cancelled && self.place == Place::Queued {
            self.place = Place::Over(Outcome::Cancelled);
        }
        true
    }
}

/// One task, its log from the start, its model, and a clock.
#[derive(Debug, Clone)]
struct Run {
    task: Task,
    log: Vec<Record>,
    model: Model,
    now: Timestamp,
    last: Option<Command>,
    settled: Option<Settled>,
}

impl Run {
    fn new() -> Self {
        let now = Timestamp(1_000_000);
        let decision = submit(TaskId(Uuid::from_u128(1)), submitted(), now);
        Self { task: decision.task, log: decision.records, model: Model::NEW, now, last: None, settled: None }
    }

    fn after(events: &[Event]) -> Self {
        let mut run = Self::new();
        for event in events {
            run.step(*event, 0.5);
        }
        run
    }

    fn command(&self, event: Event) -> Command {
        let append = |bodies| Command::Append { epoch: self.task.epoch, first: self.task.next_seq, bodies };
        let desire = |desired, force| Command::Desire { desired, by: "user/ann".into(), force };
        let lose = |charged| Command::Lose { epoch: self.task.epoch, why: Loss::Silent, charged };
        let generation = self.task.generation;
        match event {
            Claim => Command::Claim { worker: holder() },
            Started => append(vec![started()]),
            Output => append(vec![output(), output()]),
            ExitedOk => append(vec![output(), exited(Exit::Code(0))]),
            ExitedFail => append(vec![exited(Exit::Signal(9))]),
            NeverStarts => append(vec![exited(Exit::NotStarted { error: "no such program".into(), permanent: true })]),
            Frozen => append(vec![Paused { generation }.into()]),
            Thawed => append(vec![Resumed { generation }.into()]),
            Pause => desire(Desired::Paused, false),
            Resume => desire(Desired::Running, false),
            Cancel => desire(Desired::Cancelled, false),
            Kill => desire(Desired::Cancelled, true),
            LoseCharged => lose(true),
            LoseUncharged => lose(false),
            RanOut => append(vec![exited(Exit::TimedOut(Limit::Total))]),
            Away => append(vec![exited(Exit::Unavailable { what: "quota".into(), retry_after_ms: None })]),
            Expire => Command::Expire,
            Again | Purge => panic!("{event:?} is not for the log"),
            Stale => Command::Append {
                epoch: Epoch(self.task.epoch.0.saturating_sub(1)),
                first: Seq(0),
                bodies: vec![exited(Exit::Code(0))],
            },
            Duplicate => self.last.clone().unwrap_or_else(|| append(vec![])),
            Gap => Command::Append {
                epoch: self.task.epoch,
                first: self.task.next_seq.next(),
                bodies: vec![exited(Exit::Code(0))],
            },
        }
    }

    /// Does one event and checks everything that must hold.
    fn step(&mut self, event: Event, jitter: f64) {
        self.now = self.now.after(STEP);
        if let Again | Purge = event {
            return self.settle(event);
        }
        let command = self.command(event);
        let before = self.task.clone();
        let due = !matches!(before.state, State::Queued { not_before } if not_before > self.now);
        let takes = self.model.step(event, due);
        match decide(&before, command.clone(), self.now, &POLICY, jitter) {
            Ok(decision) => {
                assert!(takes, "accepted against the table");
                check_records(&before, &decision);
                self.log.extend(decision.records);
                self.task = decision.task;
                if let Command::Append { .. } = command {
                    self.last = Some(command);
                }
            }
            Err(refusal) => {
                assert!(!takes, "refused against the table: {refusal}");
                check_refusal(&before, event, &refusal);
            }
        }
        self.check_state(&before);
        check_log(&self.log, &self.task);
    }

    /// What becomes of a task after its end changes nothing of it, and happens once.
    fn settle(&mut self, event: Event) {
        let takes = self.model.step(event, false);
        let settled = settle(&self.task, self.settled);
        assert_eq!(settled.is_ok(), takes, "{settled:?}");
        if settled.is_err() {
            return;
        }
        let id = TaskId(Uuid::from_u128(2));
        self.settled = Some(if event == Purge { Settled::Purged } else { Settled::Retried(id) });
        for fresh in [false, true] {
            let new = again(&self.task, id, self.task.group, "user/bob".into(), fresh, self.now).expect("a new task");
            check_log(&new.records, &new.task);
            let new = new.task;
            assert_eq!((new.attempt(), new.epoch, new.retry_of), (1, Epoch(0), Some(self.task.id)));
            assert_eq!((&new.spec, &new.owner, &new.name), (&self.task.spec, &self.task.owner, &self.task.name));
            assert_eq!(new.total_ends(), Some(self.now.after(TOTAL)), "its time begins anew");
            let data = |task: &Task| task.checkpoint.as_ref().map(|checkpoint| checkpoint.data.clone());
            assert_eq!(data(&new), data(&self.task).filter(|_| !fresh));
            assert!(decide(&new, Command::Claim { worker: holder() }, self.now, &POLICY, 0.5).is_ok());
        }
    }

    fn check_state(&self, before: &Task) {
        let (task, model) = (&self.task, &self.model);
        let place = match &task.state {
            State::Queued { not_before } => {
                let grew = task.failures > before.failures;
                let ceiling = POLICY.backoff_base.saturating_mul(1 << before.failures).min(POLICY.backoff_cap);
                assert!(!grew || (self.now..=self.now.after(ceiling)).contains(not_before), "back-off out of bounds");
                Place::Queued
            }
            State::Starting => Place::Starting,
            State::Running => Place::Running,
            State::Paused => Place::Frozen,
            State::Ended { outcome, .. } => Place::Over(*outcome),
            state @ (State::Exited(_) | State::Lost) => panic!("{state:?} outside a decision"),
        };
        assert_eq!(place, model.place);
        assert_eq!((task.desired, task.force), (model.desired, model.force));
        assert_eq!((task.epoch.0, task.failures), (model.epoch, model.failures));
        assert_eq!((task.charged_losses, task.uncharged_losses), (model.charged, model.uncharged));
        assert_eq!(task.attempt(), model.failures + model.charged + 1, "uncharged losses are no attempts");
        assert!(task.failures <= MAX_RETRIES && task.charged_losses <= POLICY.max_charged_losses);
        assert!(!task.is_held() || task.worker.is_some());
        assert!(task.epoch >= before.epoch && task.generation >= before.generation);
    }
}

fn check_records(before: &Task, decision: &Decision) {
    assert!(!before.is_ended(), "a terminal state is final");
    assert!(!decision.records.is_empty());
    let wants = decision.records.iter().filter(|record| matches!(record.body, Body::DesiredChanged(_))).count();
    assert_eq!(decision.task.generation, before.generation + wants as u64);
}

fn check_refusal(before: &Task, event: Event, refusal: &Refusal) {
    let fits = match (event, refusal) {
        (Claim, Refusal::NotClaimable) => true,
        (Pause | Resume | Cancel | Kill, Refusal::Already(outcome)) => {
            matches!(&before.state, State::Ended { outcome: ended, .. } if ended == outcome)
        }
        (Pause | Resume | Cancel | Kill, Refusal::Unchanged) => !before.is_ended(),
        (Pause | Resume, Refusal::Cancelling) => before.desired == Desired::Cancelled,
        (Duplicate, Refusal::Known | Refusal::Stale { .. }) => true,
        // Nothing came before the first epoch: this is then just an append nobody may make.
        (Stale, Refusal::Stale { current, .. }) => *current == before.epoch,
        (Expire, Refusal::NotExpired) => true,
        (Gap, Refusal::Gap { expected }) => before.is_held() && *expected == before.next_seq,
        (Started | Frozen | Thawed, Refusal::Misplaced(_)) => before.is_held(),
        (Claim | Pause | Resume | Cancel | Kill | Duplicate | Stale | Expire, _) => false,
        (_, Refusal::Stale { .. }) => !before.is_held(),
        _ => false,
    };
    assert!(fits, "{event:?} refused with {refusal:?} in {:?}", before.state);
}

/// The row is the fold of the log; offsets and seqs are dense, epochs rise, one end at the end.
fn check_log(log: &[Record], task: &Task) {
    let mut fold = Task::begin(task.id, &log[0]).expect("a log begins with `Submitted`");
    let (mut epoch, mut seq) = (0, 0);
    for (offset, record) in log.iter().enumerate() {
        assert_eq!(record.offset, Offset(offset as u64));
        if let Body::Assigned(assigned) = &record.body {
            assert_eq!(assigned.epoch, Epoch(epoch + 1));
            (epoch, seq) = (epoch + 1, 0);
        }
        if let Origin::Worker { epoch: of, seq: at } = record.origin {
            assert_eq!((of, at), (Epoch(epoch), Seq(seq)));
            seq += 1;
        }
        let last = offset + 1 == log.len();
        assert_eq!(matches!(record.body, Body::Ended(_)), last && task.is_ended());
        if offset > 0 {
            fold.apply(record).expect("the log folds");
        }
    }
    assert_eq!(fold, *task);
}

/// Every order of `events` up to `depth` long, from `run` on.
fn explore(run: &Run, events: &[Event], depth: usize, path: &mut Vec<Event>) {
    if depth == 0 {
        return;
    }
    for event in events {
        path.push(*event);
        let mut next = run.clone();
        let shown = path.clone();
        let step = std::panic::AssertUnwindSafe(|| next.step(*event, 0.5));
        if let Err(panic) = std::panic::catch_unwind(step) {
            eprintln!("after {shown:?}");
            std::panic::resume_unwind(panic);
        }
        explore(&next, events, depth - 1, path);
        path.pop();
    }
}

#[test]
fn all_short_orders_obey_the_table() {
    let beginnings: [&[Event]; 8] = [
        &[],
        &[Claim],
        &[Claim, Started],
        &[Claim, Started, Pause, Frozen],
        &[Claim, Started, ExitedFail, Claim, Started],
        &[Claim, Started, LoseCharged, Claim, Cancel],
        &[Claim, Pause, Frozen, Output, Resume, Thawed],
        &[Claim, NeverStarts],
    ];
    for beginning in beginnings {
        let depth = if beginning.len() > 2 { 3 } else { 4 };
        explore(&Run::after(beginning), &ALL, depth, &mut beginning.to_vec());
    }
    explore(&Run::new(), &CORE, 6, &mut Vec::new());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn long_orders_obey_the_table(
        events in prop::collection::vec((prop::sample::select(&ALL[..]), 0.0..1.0f64), 0..80)
    ) {
        let mut run = Run::new();
        for (event, jitter) in events {
            run.step(event, jitter);
        }
        // What a store keeps is the same log.
        prop_assert_eq!(decode_all(encode_all(&run.log)).expect("records decode"), run.log);
    }
}

fn append(run: &Run, first: u64, bodies: Vec<Body>) -> Result<Decision, Refusal> {
    let command = Command::Append { epoch: run.task.epoch, first: Seq(first), bodies };
    decide(&run.task, command, run.now, &POLICY, 0.5)
}

#[test]
fn an_overlapping_append_adds_only_what_is_new() {
    let run = Run::after(&[Claim, Started, Output]);
    let decision = append(&run, 1, vec![output(), output(), output(), exited(Exit::Code(0))]).expect("one part is new");
    let bodies: Vec<_> = decision.records.iter().map(|record| record.body.kind().0).collect();
    assert_eq!(bodies, [100, 4, 10], "the third output, the exit, the end");
}

#[test]
fn no_seq_overflows() {
    let run = Run::after(&[Claim, Started]);
    for first in [u64::MAX, u64::MAX - 1, u64::MAX / 2] {
        assert_eq!(append(&run, first, vec![output(), output()]), Err(Refusal::Gap { expected: Seq(1) }));
    }
}

#[test]
fn the_last_words_may_be_repeated_after_the_end() {
    for last in [ExitedOk, ExitedFail] {
        let run = Run::after(&[Claim, Started, last]);
        let again = run.last.clone().expect("an append was accepted");
        assert_eq!(decide(&run.task, again, run.now, &POLICY, 0.5), Err(Refusal::Known));
    }
}

#[test]
fn a_worker_cannot_write_what_is_the_controllers() {
    let run = Run::after(&[Claim, Started]);
    let unknown = |kind| Body::Unknown { kind, version: 1, bytes: Bytes::new() };
    let bodies: [Body; 6] = [
        submitted().into(),
        Ended { outcome: Outcome::Completed, exit: None, error: None }.into(),
        Truncated { from: Offset(0), to: Offset(1), bytes: 1 }.into(),
        unknown(0),
        unknown(FIRST_BULK_KIND - 1),
        run.log[1].body.clone(),
    ];
    for body in bodies {
        let refused = append(&run, 1, vec![output(), body.clone()]);
        assert_eq!(refused, Err(Refusal::Misplaced("a controller's record")), "{body:?}");
    }
    // A newer worker's bulk is kept as it came.
    assert!(append(&run, 1, vec![unknown(FIRST_BULK_KIND), Note { text: "hello".into() }.into()]).is_ok());
}

#[test]
fn nothing_follows_an_exit() {
    let run = Run::after(&[Claim, Started]);
    assert_eq!(append(&run, 1, vec![exited(Exit::Code(0)), output()]), Err(Refusal::Misplaced("output")));
}

#[test]
fn a_freeze_before_the_start_hides_no_start() {
    let mut run = Run::after(&[Claim, Pause, Frozen]);
    for (event, word) in [(Resume, "paused"), (Thawed, "starting"), (Started, "running")] {
        run.step(event, 0.5);
        assert_eq!(run.task.state_word(), word);
    }
}

#[test]
fn a_worker_that_lost_hold_is_no_answer_of_the_agents() {
    let mut run = Run::after(&[Claim]);
    run.task.spec.max_retries = 0;
    let lost = || exited(Exit::Lost { error: "the guard died".into() });
    for left in (0..POLICY.max_charged_losses).rev() {
        run.task.state = State::Starting;
        run.task.next_seq = Seq(0);
        run.task = append(&run, 0, vec![lost()]).expect("an exit").task;
        assert_eq!(run.task.is_ended(), left == 0, "{left} tries left");
    }
}

#[test]
fn long_errors_do_not_make_a_log_unreadable() {
    let run = Run::after(&[Claim]);
    let error = "é".repeat(100_000);
    for exit in [Exit::NotStarted { error: error.clone(), permanent: true }, Exit::Lost { error }] {
        let decision = append(&run, 0, vec![exited(exit)]).expect("an exit");
        assert_eq!(decode_all(encode_all(&decision.records)).expect("every record decodes"), decision.records);
        let row = serde_json::to_vec(&decision.task.state).expect("a state");
        assert!(row.len() < 16 * 1024, "the state has {} bytes", row.len());
    }
}

#[test]
fn one_loss_costs_no_time_and_many_do_not_spin() {
    let mut task = Run::after(&[]).task;
    let now = Timestamp(1_800_000_000_000_000);
    let mut waits = Vec::new();
    for _ in 0..9 {
        task.state = State::Queued { not_before: now };
        task = decide(&task, Command::Claim { worker: holder() }, now, &POLICY, 0.0).expect("a claim").task;
        let lose = Command::Lose { epoch: task.epoch, why: Loss::NotDelivered, charged: false };
        task = decide(&task, lose, now, &POLICY, 0.0).expect("a loss").task;
        let State::Queued { not_before } = task.state else { panic!("it is tried again") };
        waits.push(not_before.since(now).as_millis());
    }
    assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
}

#[test]
fn a_claim_waits_for_the_backoff() {
    let run = Run::after(&[Claim, Started, ExitedFail]);
    let State::Queued { not_before } = run.task.state else { panic!("it is tried again") };
    let claim = |now| decide(&run.task, Command::Claim { worker: holder() }, now, &POLICY, 0.5);
    assert_eq!(claim(Timestamp(not_before.0 - 1)), Err(Refusal::NotClaimable));
    assert!(claim(not_before).is_ok());
}

#[test]
fn the_fold_refuses_what_cannot_follow() {
    let run = Run::after(&[Claim, Started]);
    let refused = |offset, origin, body: Body| {
        let mut task = run.task.clone();
        let error = task.apply(&Record { offset: Offset(offset), origin, time: run.now, body }).expect_err("no record");
        assert_eq!(task, run.task, "a refused record changes nothing");
        error
    };
    let at = |epoch, seq| Origin::Worker { epoch: Epoch(epoch), seq: Seq(seq) };
    assert_eq!(refused(3, at(1, 1), submitted().into()), FoldError::NotTheBeginning);
    assert_eq!(refused(4, at(1, 1), output()), FoldError::Offset { found: Offset(4), expected: Offset(3) });
    assert_eq!(refused(3, at(1, 2), output()), FoldError::Origin { epoch: Epoch(1), seq: Seq(2) });
    assert_eq!(refused(3, at(0, 1), output()), FoldError::Origin { epoch: Epoch(0), seq: Seq(1) });
    let again = run.log[1].body.clone();
    assert_eq!(refused(3, Origin::Controller, again), FoldError::Epoch { found: Epoch(1), current: Epoch(1) });
}

/// The exit of a started attempt, and what it says then.
fn concluded(spec: impl FnOnce(&mut TaskSpec), exit: Exit) -> Task {
    let mut run = Run::after(&[Claim, Started]);
    spec(&mut run.task.spec);
    append(&run, 1, vec![exited(exit)]).expect("an exit").task
}

fn error_of(task: &Task) -> &str {
    match &task.state {
        State::Ended { outcome: Outcome::Failed, error: Some(error), .. } => error,
        state => panic!("{state:?} is no failure"),
    }
}

#[test]
fn every_limit_is_reported_as_such_and_the_total_is_final() {
    for (limit, words) in [
        (Limit::Attempt, "timed out: ran for 1h"),
        (Limit::SetUp, "timed out: not started within 5m"),
        (Limit::Silence, "timed out: silent for 10m"),
        (Limit::Total, "timed out: not over within 90s of its submission"),
    ] {
        let spec = |max_retries| {
            move |spec: &mut TaskSpec| {
                spec.max_retries = max_retries;
                spec.time_limit_ms = Some(3_600_000);
                spec.setup_limit_ms = Some(300_000);
                spec.silence_limit_ms = Some(600_000);
                spec.total_limit_ms = Some(90_000);
            }
        };
        assert_eq!(error_of(&concluded(spec(0), Exit::TimedOut(limit))), words);
        let again = concluded(spec(9), Exit::TimedOut(limit));
        assert_eq!(again.is_ended(), limit == Limit::Total, "{limit:?}");
        assert_eq!(limit.is_retryable(), !again.is_ended());
    }
}

#[test]
fn what_says_that_it_is_hopeless_is_not_tried_again() {
    let hopeless = Exit::Hopeless { error: "the input is no JSON".into(), code: 1 };
    assert_eq!(error_of(&concluded(|spec| spec.max_retries = 9, hopeless)), "the input is no JSON");
}

#[test]
fn what_is_away_costs_no_attempt_and_is_asked_for_less_and_less() {
    let mut run = Run::after(&[Claim, Started]);
    run.task.spec.max_retries = 0;
    run.task.spec.total_limit_ms = None;
    let mut waits = Vec::new();
    for retry_after_ms in [None, None, None, Some(60_000), Some(u64::MAX)] {
        (run.task.state, run.task.next_seq) = (State::Running, Seq(1));
        let away = Exit::Unavailable { what: "quota".into(), retry_after_ms };
        let command = Command::Append { epoch: run.task.epoch, first: Seq(1), bodies: vec![exited(away)] };
        run.task = decide(&run.task, command, run.now, &POLICY, 0.999_999).expect("an exit").task;
        let State::Queued { not_before } = run.task.state else { panic!("it is tried again") };
        waits.push(not_before.since(run.now).as_secs_f64().round());
        assert_eq!((run.task.attempt(), run.task.failures), (1, 0));
    }
    assert_eq!(waits, [1.0, 2.0, 3.0, 60.0, 86_400.0], "and never for more than a day");
}

#[test]
fn what_a_worker_could_not_start_may_start_elsewhere() {
    let mut run = Run::after(&[Claim]);
    run.task.spec.max_retries = 0;
    let full = || exited(Exit::NotStarted { error: "no space left on device".into(), permanent: false });
    for left in (0..POLICY.max_charged_losses).rev() {
        (run.task.state, run.task.next_seq) = (State::Starting, Seq(0));
        run.task = append(&run, 0, vec![full()]).expect("an exit").task;
        assert_eq!(run.task.is_ended(), left == 0, "{left} tries left");
    }
}

#[test]
fn no_time_runs_while_it_is_paused() {
    let mut task = Run::after(&[]).task;
    (task.spec.setup_limit_ms, task.spec.total_limit_ms) = (Some(10_000), Some(100_000));
    let submitted_at = task.created_at;
    let at = |seconds| submitted_at.after(Duration::from_secs(seconds));
    let mut next = |seconds, command| {
        task = decide(&task, command, at(seconds), &POLICY, 0.5).expect("nothing stands against it").task;
        task.expires().map(|(end, limit)| (end.since(submitted_at).as_secs(), limit))
    };
    let desire = |desired| Command::Desire { desired, by: "user/ann".into(), force: false };
    let say = |first, body| Command::Append { epoch: Epoch(1), first: Seq(first), bodies: vec![body] };
    assert_eq!(next(10, desire(Desired::Paused)), None);
    assert_eq!(next(30, desire(Desired::Running)), Some((120, Limit::Total)), "paused for 20 s");
    assert_eq!(next(40, Command::Claim { worker: holder() }), Some((50, Limit::SetUp)));
    assert_eq!(next(44, desire(Desired::Paused)), Some((50, Limit::SetUp)), "it is not frozen yet");
    assert_eq!(next(45, say(0, Paused { generation: 3 }.into())), None);
    assert_eq!(next(60, desire(Desired::Running)), None, "it is still frozen");
    assert_eq!(next(65, say(1, Resumed { generation: 4 }.into())), Some((70, Limit::SetUp)), "5 s are left");
    assert_eq!(next(66, say(2, started())), None, "its worker measures now");
    assert_eq!(
        next(67, Command::Lose { epoch: Epoch(1), why: Loss::Silent, charged: false }),
        Some((140, Limit::Total))
    );
    assert_eq!(next(68, desire(Desired::Cancelled)), None);
}

fn asked(number: u128, wait_ms: Option<u64>) -> record::Asked {
    let choice = |id: &str| record::Choice { id: id.into(), label: format!("{id} it") };
    record::Asked {
        id: AskId(Uuid::from_u128(number)),
        digest: AskDigest(Uuid::from_u128(100 + number)),
        kind: record::AskKind::Permission { tool: "Bash".into() },
        text: "may it use Bash: ls".into(),
        detail: "{}".into(),
        choices: vec![choice("allow"), choice("always"), choice("deny")],
        free_text: true,
        default: Some("deny".into()),
        wait_ms,
    }
}

fn give(task: &Task, ask: Option<u128>, words: &str) -> Result<Task, Refusal> {
    let answer = Answer { choice: Some(words.into()), text: None };
    let ask = ask.map(|ask| AskId(Uuid::from_u128(ask)));
    let command = Command::Answer { ask, answer, by: "user/ann".into() };
    decide(task, command, task.created_at.after(STEP), &POLICY, 0.5).map(|decision| decision.task)
}

#[test]
fn one_answer_is_accepted_and_is_as_the_question_has_it() {
    let run = Run::after(&[Claim, Started]);
    let task = append(&run, 1, vec![asked(1, None).into()]).expect("a question").task;
    assert_eq!(task.state_word(), "waiting");
    assert!(matches!(give(&task, None, "al"), Err(Refusal::NoAnswer(_))), "it fits two");
    assert!(matches!(give(&task, None, "perhaps"), Err(Refusal::NoAnswer(_))), "a permission is not answered in words");
    assert_eq!(give(&task, Some(9), "deny"), Err(Refusal::NotAsked));
    let answered = give(&task, None, "De").expect("an answer");
    let chosen = answered.asks[0].answer.as_ref().and_then(|answer| answer.choice.as_deref());
    assert_eq!((answered.state_word(), chosen), ("running", Some("deny")));
    assert_eq!(give(&answered, Some(1), "allow"), Err(Refusal::Answered));
    assert_eq!(give(&answered, None, "allow"), Err(Refusal::Answered));
    let two = append(&run, 1, vec![asked(1, None).into(), asked(2, None).into()]).expect("questions").task;
    assert_eq!(give(&two, None, "allow"), Err(Refusal::SeveralAsked(2)));
    assert_eq!(give(&two, Some(2), "allow").expect("an answer").state_word(), "waiting", "the other one is open");
}

#[test]
fn an_answer_stays_for_the_next_epoch_and_a_question_without_one_does_not() {
    let mut run = Run::after(&[Claim, Started]);
    run.task = append(&run, 1, vec![asked(1, None).into(), asked(2, None).into()]).expect("questions").task;
    run.task = give(&run.task, Some(1), "allow").expect("an answer");
    let lose = Command::Lose { epoch: run.task.epoch, why: Loss::Silent, charged: false };
    let lost = decide(&run.task, lose, run.now, &POLICY, 0.5).expect("a loss").task;
    assert_eq!((lost.asks.len(), lost.state_word()), (0, "queued"));
    let given: Vec<_> =
        lost.given.iter().map(|(digest, answer)| (digest.0.as_u128(), answer.choice.as_deref())).collect();
    assert_eq!(given, [(101, Some("allow"))]);
    assert_eq!(give(&lost, Some(1), "deny"), Err(Refusal::NotAsked), "nobody is there who asks");
}

#[test]
fn who_is_not_answered_in_time_is_answered_by_the_question_itself() {
    let run = Run::after(&[Claim, Started]);
    let at = run.now;
    let task = append(&run, 1, vec![asked(1, Some(5_000)).into()]).expect("a question").task;
    assert_eq!(task.due_at(), task.unanswered_at().map(|(at, _)| at));
    let expire = |task: &Task, seconds| {
        decide(task, Command::Expire, at.after(Duration::from_secs(seconds)), &POLICY, 0.5)
            .map(|decision| decision.task)
    };
    assert_eq!(expire(&task, 4), Err(Refusal::NotExpired));
    let over = expire(&task, 60).expect("its time is over");
    let answer = over.asks[0].answer.as_ref().and_then(|answer| answer.choice.as_deref());
    assert_eq!((over.state_word(), answer), ("running", Some("deny")));
    let frozen =
        append(&run, 1, vec![asked(1, Some(5_000)).into(), Paused { generation: 0 }.into()]).expect("both").task;
    assert_eq!(frozen.due_at(), None, "who is paused waits for nothing");
}

#[test]
fn a_worker_asks_no_more_than_a_row_holds() {
    let run = Run::after(&[Claim, Started]);
    let all = |count: u128| (1..=count).map(|number| asked(number, None).into()).collect::<Vec<Body>>();
    assert!(append(&run, 1, all(record::MAX_ASKS as u128)).is_ok());
    assert_eq!(append(&run, 1, all(record::MAX_ASKS as u128 + 1)), Err(Refusal::Misplaced("asked")));
    assert_eq!(append(&run, 1, vec![asked(1, None).into(), asked(1, None).into()]), Err(Refusal::Misplaced("asked")));
}
