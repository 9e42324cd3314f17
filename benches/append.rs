//! What durability costs: appending an attempt's records to a store, each commit made durable, beside the least that can
//! be done with the same bytes: for the embedded store plain writes and syncs, for PostgreSQL a bare COPY into a table
//! without an index. `cargo bench --bench append`.

#[path = "../tests/support/servers/mod.rs"]
mod servers;

use std::fs::File;
use std::io::{Seek, Write};
use std::sync::Arc;

use ado::env::Env;
use ado::store::{Change, Committed, Lease, Outcome, Postgres, Row, Sqlite, Store, Unit, Write as Written};
use ado::task::{self, Command, Holder, Policy};
use ado_proto::record::{Body, Output, Stream, Submitted};
use ado_proto::spec::{Input, TaskSpec};
use ado_proto::{Epoch, Incarnation, Namespace, Seq, TaskId, WorkerId};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sqlx::Connection;

struct Log {
    store: Arc<dyn Store>,
    task: TaskId,
    next: u64,
}

impl Log {
    async fn start(store: Arc<dyn Store>) -> Self {
        let env = Env::system();
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
            Some(Written { row: Row::new(decision.task, None), records: decision.records, events: Vec::new() })
        };
        commit(&*store, Change::Create { id: task, make: Box::new(make) }).await;
        let worker = WorkerId(env.uuid());
        let claim = Command::Claim { worker: Holder { id: worker, name: "bench".into() } };
        commit(&*store, update(task, claim)).await;
        Self { store, task, next: 0 }
    }

    async fn append(&mut self, data: &[Bytes]) {
        let output = |data: &Bytes| Body::from(Output { stream: Stream::Stdout, position: 0, data: data.clone() });
        let bodies: Vec<_> = data.iter().map(output).collect();
        let first = Seq(self.next);
        self.next += bodies.len() as u64;
        commit(&*self.store, update(self.task, Command::Append { epoch: Epoch(1), first, bodies })).await;
    }
}

fn update(id: TaskId, command: Command) -> Change {
    let decide = move |row: &Row, now: ado_proto::Timestamp| {
        let decision = task::decide(&row.task, command, now, &Policy::default(), 0.5)?;
        let holder = decision.task.worker.clone().expect("it is claimed");
        let lease =
            Some(Lease { worker: holder.id, incarnation: Incarnation(holder.id.0), is_known: true, expires_at: now });
        Ok(Written { row: Row::new(decision.task, lease), records: decision.records, events: Vec::new() })
    };
    Change::Update { id, decide: Box::new(decide) }
}

async fn commit(store: &dyn Store, change: Change) {
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
    for (name, len, count) in [("one line", 80, 1), ("512 KiB", 32 * 1024, 16), ("4 MiB", 32 * 1024, 128)] {
        let data: Vec<Bytes> = (0..count).map(|_| (0..len).map(|_| noise()).collect::<Vec<_>>().into()).collect();
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("store.sqlite3");
        let store = runtime.block_on(Sqlite::open(&path, Env::system())).expect("a store");
        let mut log = runtime.block_on(Log::start(Arc::new(store)));
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
        if let Some(cluster) = servers::postgres::shared() {
            let url = cluster.url("postgres");
            let store = runtime.block_on(Postgres::open(&url, Env::system())).expect("a store");
            let mut log = runtime.block_on(Log::start(Arc::new(store)));
            group.bench_function("PostgreSQL store", |b| b.iter(|| runtime.block_on(log.append(&data))));
            let mut bare = runtime.block_on(Bare::start(&url));
            group.bench_function("PostgreSQL bare COPY", |b| b.iter(|| runtime.block_on(bare.copy(&data))));
            group.bench_function("PostgreSQL bare INSERT of arrays", |b| {
                b.iter(|| runtime.block_on(bare.insert(&data)))
            });
        }
        group.finish();
    }
}

/// Rows of bytes and nothing else.
struct Bare(sqlx::PgConnection);

impl Bare {
    async fn start(url: &str) -> Self {
        let mut connection = sqlx::PgConnection::connect(url).await.expect("it answers");
        let table = "CREATE TABLE IF NOT EXISTS bare (data bytea); ALTER TABLE bare ALTER data SET STORAGE EXTERNAL";
        sqlx::raw_sql(table).execute(&mut connection).await.expect("a table");
        Self(connection)
    }

    async fn copy(&mut self, data: &[Bytes]) {
        let mut rows = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
        for piece in data {
            rows.extend_from_slice(&1i16.to_be_bytes());
            rows.extend_from_slice(&u32::try_from(piece.len()).expect("it is short").to_be_bytes());
            rows.extend_from_slice(piece);
        }
        rows.extend_from_slice(&(-1i16).to_be_bytes());
        let mut copy = self.0.copy_in_raw("COPY bare FROM STDIN (FORMAT binary)").await.expect("it begins");
        copy.send(rows).await.expect("it is taken");
        copy.finish().await.expect("it is durable");
    }

    async fn insert(&mut self, data: &[Bytes]) {
        let rows: Vec<&[u8]> = data.iter().map(|piece| &piece[..]).collect();
        let insert = sqlx::query("INSERT INTO bare SELECT * FROM unnest($1)").bind(rows);
        insert.execute(&mut self.0).await.expect("it is durable");
    }
}

criterion_group!(benches, append);
criterion_main!(benches);
