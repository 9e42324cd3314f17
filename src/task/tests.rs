//! The conflict table, over all short orders of events and over random long ones, against a tiny reference model.

use ado_proto::record::{
    Body, Desired, Ended, Exited, FIRST_BULK_KIND, Loss, Note, Outcome, Output, Paused, Record, Resumed, Started,
    Stream, Submitted, Truncated, decode_all, encode_all,
};
use ado_proto::spec::{Containment, Exit, Input, TaskSpec};
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
}

use Event::*;

const ALL: [Event; 17] = [
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
];

/// Those that move a task along, for longer orders.
const CORE: [Event; 8] = [Claim, Started, ExitedOk, ExitedFail, Pause, Resume, Cancel, LoseCharged];

const POLICY: Policy =
    Policy { backoff_base: Duration::from_secs(1), backoff_cap: Duration::from_secs(3), max_charged_losses: 2 };
const MAX_RETRIES: u32 = 1;
const STEP: Duration = Duration::from_millis(700);

fn submitted() -> Submitted {
    let spec = TaskSpec { max_retries: MAX_RETRIES, ..TaskSpec::new("shell", Input::Text("true".into())) };
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
    };

    fn held(&self) -> bool {
        matches!(self.place, Place::Starting | Place::Running | Place::Frozen)
    }

    /// Carries the event out; `false` when it must be refused.
    fn step(&mut self, event: Event, due: bool) -> bool {
        let held = self.held();
        match event {
            Claim => {
                let takes = self.place == Place::Queued && self.desired == Desired::Running && due;
                if takes {
                    self.place = Place::Starting;
                    self.epoch += 1;
                    self.started = false;
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
            ExitedOk | ExitedFail | NeverStarts if held => {
                self.place = match (self.desired, event) {
                    (Desired::Cancelled, _) => Place::Over(Outcome::Cancelled),
                    (_, ExitedOk) => Place::Over(Outcome::Completed),
                    (_, ExitedFail) if self.failures < MAX_RETRIES => Place::Queued,
                    _ => Place::Over(Outcome::Failed),
                };
                self.failures += u32::from(self.place == Place::Queued);
                true
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
}

impl Run {
    fn new() -> Self {
        let now = Timestamp(1_000_000);
        let decision = submit(TaskId(Uuid::from_u128(1)), submitted(), now);
        Self { task: decision.task, log: decision.records, model: Model::NEW, now, last: None }
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
        (Gap, Refusal::Gap { expected }) => before.is_held() && *expected == before.next_seq,
        (Started | Frozen | Thawed, Refusal::Misplaced(_)) => before.is_held(),
        (Claim | Pause | Resume | Cancel | Kill | Duplicate | Stale, _) => false,
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
    let beginnings: [&[Event]; 6] = [
        &[],
        &[Claim],
        &[Claim, Started],
        &[Claim, Started, Pause, Frozen],
        &[Claim, Started, ExitedFail, Claim, Started],
        &[Claim, Started, LoseCharged, Claim, Cancel],
    ];
    for beginning in beginnings {
        explore(&Run::after(beginning), &ALL, 4, &mut beginning.to_vec());
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
