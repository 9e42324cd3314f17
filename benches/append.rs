//! What durability costs: appending an attempt's records to the embedded store, each commit made durable, beside plain
//! writes and syncs of the same bytes. `cargo bench --bench append`.

use std::fs::File;
use std::io::{Seek, Write};

use ado::env::Env;
use ado::store::{Change, Committed, Lease, Outcome, Row, Sqlite, Store, Unit, Write as Written};
use ado::task::{self, Command, Holder, Policy};
use ado_proto::record::{Body, Output, Stream, Submitted};
use ado_proto::spec::{Input, TaskSpec};
use ado_proto::{Epoch, Namespace, Seq, TaskId, WorkerId};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

struct Log {
    store: Sqlite,
    task: TaskId,
    next: u64,
}

impl Log {
    async fn start(dir: &std::path::Path) -> Self {
        let env = Env::system();
        let store = Sqlite::open(&dir.join("store.sqlite3"), env.clone()).await.expect("a store");
        let task = TaskId(env.uuid());
        let submitted = Submitted {
            namespace: Namespace::default(),
            owner: "user/bench".into(),
            name: None,
            group: None,
            spec: TaskSpec::new("shell", Input::Text("true".into())),
        };
        let make = move |now| {
            let decision = task::submit(task, submitted, now);
            Written { row: Row { task: decision.task, lease: None }, records: decision.records, events: Vec::new() }
        };
        commit(&store, Change::Create { id: task, make: Box::new(make) }).await;
        let worker = WorkerId(env.uuid());
        let claim = Command::Claim { worker: Holder { id: worker, name: "bench".into() } };
        commit(&store, update(task, claim)).await;
        Self { store, task, next: 0 }
    }

    async fn append(&mut self, data: &[Bytes]) {
        let output = |data: &Bytes| Body::from(Output { stream: Stream::Stdout, position: 0, data: data.clone() });
        let bodies: Vec<_> = data.iter().map(output).collect();
        let first = Seq(self.next);
        self.next += bodies.len() as u64;
        commit(&self.store, update(self.task, Command::Append { epoch: Epoch(1), first, bodies })).await;
    }
}

fn update(id: TaskId, command: Command) -> Change {
    let decide = move |row: &Row, now: ado_proto::Timestamp| {
        let decision = task::decide(&row.task, command, now, &Policy::default(), 0.5)?;
        let holder = decision.task.worker.clone().expect("it is claimed");
        let lease = Some(Lease { worker: holder.id, incarnation: None, expires_at: now });
        Ok(Written { row: Row { task: decision.task, lease }, records: decision.records, events: Vec::new() })
    };
    Change::Update { id, decide: Box::new(decide) }
}

async fn commit(store: &Sqlite, change: Change) {
    let unit = Unit { changes: vec![change], once: None, audit: None };
    let committed = store.commit(vec![unit]).await.expect("it commits").remove(0);
    let Committed::Done(outcomes, _) = committed else { panic!("not done") };
    assert!(matches!(outcomes[0], Outcome::Applied(_)), "{outcomes:?}");
}

fn append(c: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let mut seed = 1u64;
    let mut noise = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as u8
    };
    for (name, len, count) in [("one line", 80, 1), ("512 KiB", 32 * 1024, 16)] {
        let data: Vec<Bytes> = (0..count).map(|_| (0..len).map(|_| noise()).collect::<Vec<_>>().into()).collect();
        let dir = tempfile::tempdir().expect("a folder");
        let mut log = runtime.block_on(Log::start(dir.path()));
        let mut group = c.benchmark_group(format!("durable commit of {name}"));
        group.throughput(Throughput::Bytes((len * count) as u64));
        group.sample_size(50);
        group.bench_function("SQLite store", |b| b.iter(|| runtime.block_on(log.append(&data))));
        let mut file = File::create(dir.path().join("plain")).expect("a file");
        group.bench_function("plain write and fdatasync", |b| {
            b.iter(|| {
                file.rewind().expect("a file");
                for piece in &data {
                    file.write_all(piece).expect("it is written");
                }
                file.sync_data().expect("it is durable");
            });
        });
        group.finish();
    }
}

criterion_group!(benches, append);
criterion_main!(benches);
