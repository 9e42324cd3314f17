//! Random commands against all stores and a model: the same outcomes, and in the end the same logs, whose folds are
//! the rows.

use ado_proto::record::{Loss, Note, Paused, Resumed};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::*;

/// A command of one of a few tasks. Epochs and seqs are given by their distance from the right ones.
#[derive(Debug, Clone)]
enum Op {
    Submit {
        priority: i32,
    },
    Claim {
        worker: u64,
    },
    Append {
        epoch_back: u64,
        seq_shift: i64,
        bodies: Vec<Body>,
    },
    Desire {
        desired: Desired,
        force: bool,
    },
    Lose {
        epoch_back: u64,
        charged: bool,
    },
    Renew {
        worker: u64,
    },
    Expire,
    /// Out of the dead letter.
    Settle {
        purge: bool,
    },
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        6 => (any::<u8>(), prop_oneof![9 => 0..200usize, 1 => Just(32 * 1024)])
            .prop_map(|(byte, len)| output(vec![byte; len])),
        2 => Just(started()),
        1 => "[a-z]{0,8}".prop_map(|text| Note { text }.into()),
        1 => Just(Paused { generation: 1 }.into()),
        1 => Just(Resumed { generation: 2 }.into()),
        1 => prop_oneof![Just(0), Just(3)].prop_map(exited),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let back = || prop_oneof![8 => Just(0u64), 1 => Just(1)];
    let desired = prop_oneof![2 => Just(Desired::Running), 2 => Just(Desired::Paused), 1 => Just(Desired::Cancelled)];
    prop_oneof![
        2 => (-2..3i32).prop_map(|priority| Op::Submit { priority }),
        4 => (1..3u64).prop_map(|worker| Op::Claim { worker }),
        12 => (back(), prop_oneof![8 => Just(0i64), 1 => -2..3i64], prop::collection::vec(body(), 1..6))
            .prop_map(|(epoch_back, seq_shift, bodies)| Op::Append { epoch_back, seq_shift, bodies }),
        2 => (desired, any::<bool>()).prop_map(|(desired, force)| Op::Desire { desired, force }),
        1 => (back(), any::<bool>()).prop_map(|(epoch_back, charged)| Op::Lose { epoch_back, charged }),
        1 => (1..3u64).prop_map(|worker| Op::Renew { worker }),
        1 => Just(Op::Expire),
        1 => any::<bool>().prop_map(|purge| Op::Settle { purge }),
    ]
}

/// Batches of (task, op), each after a pause.
fn batches() -> impl Strategy<Value = Vec<(u64, Vec<(u64, Op)>)>> {
    let batch = (0..3_000_000u64, prop::collection::vec((1..4u64, op()), 1..8));
    prop::collection::vec(batch, 1..16)
}

/// What a store should hold.
#[derive(Default)]
struct Model {
    tasks: BTreeMap<TaskId, (Row, Vec<Record>)>,
}

impl Model {
    /// The command an op means as things are, if the task is there.
    fn command(&self, id: TaskId, op: &Op) -> Command {
        let task = self.tasks.get(&id).map(|(row, _)| &row.task);
        let (epoch, seq) = task.map_or((0, 0), |task| (task.epoch.0, task.next_seq.0));
        match op.clone() {
            Op::Append { epoch_back, seq_shift, bodies } => {
                append(Epoch(epoch.saturating_sub(epoch_back)), seq.saturating_add_signed(seq_shift), bodies)
            }
            Op::Desire { desired, force } => Command::Desire { desired, by: "user/ann".into(), force },
            Op::Lose { epoch_back, charged } => {
                Command::Lose { epoch: Epoch(epoch.saturating_sub(epoch_back)), why: Loss::Silent, charged }
            }
            Op::Claim { worker: n } | Op::Renew { worker: n } => claim(worker(n)),
            Op::Expire => Command::Expire,
            Op::Submit { .. } | Op::Settle { .. } => unreachable!("{op:?} is no command"),
        }
    }

    fn update(&mut self, id: TaskId, change: Change, now: Timestamp) -> Outcome {
        let Change::Update { decide, .. } = change else { unreachable!() };
        let Some((row, log)) = self.tasks.get_mut(&id) else { return Outcome::Missing };
        match decide(row, now) {
            Ok(write) => {
                row.clone_from(&write.row);
                log.extend_from_slice(&write.records);
                Outcome::Applied(Box::new(write))
            }
            Err(refusal) => Outcome::Refused(refusal, Box::new(row.clone())),
        }
    }

    fn create(&mut self, id: TaskId, submitted: Submitted, now: Timestamp) -> Outcome {
        if let Some((row, _)) = self.tasks.get(&id) {
            let refusal = Refusal::Fold(crate::task::FoldError::NotTheBeginning);
            return Outcome::Refused(refusal, Box::new(row.clone()));
        }
        let Change::Create { make, .. } = create(id, submitted) else { unreachable!() };
        let write = make(now).expect("it is made");
        self.tasks.insert(id, (write.row.clone(), write.records.clone()));
        Outcome::Applied(Box::new(write))
    }

    fn renew(&mut self, id: WorkerId, expires_at: Timestamp) {
        for (row, _) in self.tasks.values_mut() {
            if let Some(lease) = row.lease.as_mut().filter(|lease| lease.worker == id) {
                lease.expires_at = expires_at;
                lease.is_known = true;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn embedded_stores_do_what_the_model_does(batches in batches()) {
        block_on(async { play(vec![Bed::memory(), Bed::sqlite().await], batches).await })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_servers_store_does_what_the_model_does(batches in batches()) {
        block_on(async {
            match Bed::postgres_again().await {
                Some(bed) => play(vec![Bed::memory(), bed], batches).await,
                None => Ok(()),
            }
        })?;
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn play(beds: Vec<Bed>, batches: Vec<(u64, Vec<(u64, Op)>)>) -> TestCaseResult {
    let mut model = Model::default();
    for bed in &beds {
        for n in 1..3 {
            bed.store.register(fleet::registered(n, 10 * n)).await.unwrap();
        }
    }
    for (pause, ops) in batches {
        beds.iter().for_each(|bed| bed.hand.advance(Duration::from_micros(pause)));
        let now = beds[0].hand.time();
        for (n, _) in ops.iter().filter(|(_, op)| matches!(op, Op::Renew { .. })) {
            let holds: Vec<_> = model.tasks.values().map(|(row, _)| (row.task.id, row.task.epoch)).collect();
            let number = n % 2 + 1;
            let holder = worker(number);
            model.renew(holder, now.after(LEASE));
            for bed in &beds {
                bed.renew(holder, incarnation(10 * number), &holds, false).await.unwrap();
            }
        }
        let mut expected = Vec::new();
        let mut units: Vec<_> = beds.iter().map(|_| Vec::new()).collect();
        for (n, op) in ops.iter().filter(|(_, op)| !matches!(op, Op::Renew { .. })) {
            let id = task(*n);
            if let Op::Submit { priority } = op {
                units.iter_mut().for_each(|units| units.push(unit(vec![create(id, with_priority(*priority))])));
                expected.push(model.create(id, with_priority(*priority), now));
            } else {
                let change: Box<dyn Fn() -> Change> = match op {
                    Op::Settle { purge: true } => Box::new(move || settle(id, Settled::Purged)),
                    Op::Settle { purge: false } => Box::new(move || settle(id, Settled::Retried(task(9)))),
                    _ => {
                        let command = model.command(id, op);
                        Box::new(move || update(id, command.clone()))
                    }
                };
                units.iter_mut().for_each(|units| units.push(unit(vec![change()])));
                expected.push(model.update(id, change(), now));
            }
        }
        let expected: Vec<_> = expected.into_iter().map(|outcome| Committed::Done(vec![outcome], None)).collect();
        for (bed, units) in beds.iter().zip(units) {
            prop_assert_eq!(&bed.store.commit(units).await.unwrap(), &expected);
        }
    }
    for bed in &beds {
        holds(bed, &model).await?;
    }
    agree(&beds, &model).await
}

/// The store holds what the model does, and every row is the fold of its log.
async fn holds(bed: &Bed, model: &Model) -> TestCaseResult {
    for (id, (row, log)) in &model.tasks {
        prop_assert_eq!(&bed.row(*id).await, row);
        prop_assert_eq!(&Task::replay(*id, log), &row.task);
        for max_bytes in [1, 700, 40_000] {
            let mut read = Vec::new();
            while read.len() < log.len() {
                let from = Offset(read.len() as u64);
                read.extend(bed.store.read(*id, from, max_bytes).await.unwrap().unwrap().records);
            }
            prop_assert_eq!(&read, log);
            let mut rest = log.len();
            while rest > 0 {
                let page = bed.store.read_back(*id, Offset(rest as u64), max_bytes).await.unwrap().unwrap().records;
                prop_assert_eq!(&page[..], &log[rest - page.len()..rest]);
                rest -= page.len();
            }
        }
        for record in log {
            let since = log.iter().find(|other| other.time >= record.time).map(|other| other.offset);
            prop_assert_eq!(bed.store.offset_since(*id, record.time).await.unwrap(), since);
        }
    }
    Ok(())
}

/// All stores answer every question about tasks alike.
async fn agree(beds: &[Bed], model: &Model) -> TestCaseResult {
    for pair in beds.windows(2) {
        agree_on(&*pair[0].store, &*pair[1].store, model).await?;
    }
    Ok(())
}

async fn agree_on(a: &dyn Store, b: &dyn Store, model: &Model) -> TestCaseResult {
    let all = a.waiting(None, 10).await.unwrap();
    prop_assert_eq!(&b.waiting(None, 10).await.unwrap(), &all);
    for (index, waiting) in all.iter().enumerate() {
        let after = Some((waiting.score, waiting.id));
        prop_assert_eq!(&a.waiting(after, 10).await.unwrap(), &all[index + 1..]);
        prop_assert_eq!(&b.waiting(after, 10).await.unwrap(), &all[index + 1..]);
    }
    for n in 1..3 {
        prop_assert_eq!(a.held_by(worker(n)).await.unwrap(), b.held_by(worker(n)).await.unwrap());
    }
    for (row, _) in model.tasks.values() {
        let until = row.lease.as_ref().map_or(Timestamp(i64::MAX), |lease| lease.expires_at);
        prop_assert_eq!(a.expired(until, 10).await.unwrap(), b.expired(until, 10).await.unwrap());
        let audience = Audience::Everywhere;
        let states = vec![row.task.state_word().to_owned(), "queued".into()];
        for dead in [false, true] {
            let (audience, states) = (audience.clone(), states.clone());
            let filter = ListFilter { audience, states, group: None, name: None, dead, before: None, limit: 2 };
            prop_assert_eq!(a.list(&filter).await.unwrap(), b.list(&filter).await.unwrap());
        }
        let due = row.task.due_at().unwrap_or(Timestamp(i64::MAX));
        for now in [due, Timestamp(due.0 - 1)] {
            prop_assert_eq!(a.overdue(now, 10).await.unwrap(), b.overdue(now, 10).await.unwrap());
        }
    }
    Ok(())
}
