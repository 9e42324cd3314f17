//! Gathers what the oracle judges: through the client, from the tables, and from the agents' own disk.

use std::time::Duration;

use ado::client::Client;
use ado::store::{Postgres, Store};
use ado_proto::record::{Record, decode_all};
use ado_proto::request::StartAt;
use ado_proto::{Offset, TaskId};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection, Row as _};

use crate::mesh::Mesh;
use crate::oracle::{Evidence, Journal};

/// Where evidence comes from.
pub(crate) struct Sources {
    client: Client,
    tables: PgConnection,
    store: Postgres,
}

impl Sources {
    /// Everything must be there.
    pub(crate) async fn of(mesh: &Mesh) -> Self {
        let client = mesh.client(Duration::from_secs(60));
        let tables = database(mesh).await.expect("it is there");
        let store = Postgres::open(&mesh.postgres.url("postgres"), mesh.env.clone()).await.expect("a store");
        Self { client, tables, store }
    }

    /// All tasks there are.
    pub(crate) async fn tasks(&mut self) -> Vec<TaskId> {
        let rows = sqlx::query("SELECT id FROM ado.task ORDER BY id").fetch_all(&mut self.tables).await;
        rows.expect("tasks").iter().map(|row| TaskId(row.get(0))).collect()
    }

    /// What is known of a task, without viewers.
    ///
    /// # Errors
    /// Why its log cannot be read.
    pub(crate) async fn gather(&mut self, mesh: &Mesh, task: TaskId) -> Result<Evidence, String> {
        let log = read(&self.client, task).await?;
        let row = self.store.row(task).await.expect("a row").map(|row| row.task);
        Ok(Evidence {
            task,
            stored: stored(&mut self.tables, task).await,
            rows: row.zip(fold(task, &log)),
            journal: Journal::read(&task.to_string(), &notes(mesh, task)),
            views: Vec::new(),
            survived: None,
            unguarded: false,
            log,
        })
    }

    pub(crate) async fn close(self) {
        self.store.close().await;
    }
}

/// What a task's agents wrote down.
pub(crate) fn notes(mesh: &Mesh, task: TaskId) -> String {
    std::fs::read_to_string(mesh.path("notes").join(task.to_string())).unwrap_or_default()
}

pub(crate) async fn database(mesh: &Mesh) -> sqlx::Result<PgConnection> {
    let options: PgConnectOptions = mesh.postgres.url("postgres").parse().expect("a URL");
    let options = options.disable_statement_logging();
    let connect = options.connect();
    tokio::time::timeout(Duration::from_secs(5), connect).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

/// As every viewer reads it.
async fn read(client: &Client, task: TaskId) -> Result<Vec<Record>, String> {
    let mut stream = client.follow(task, StartAt::Offset(Offset(0)), false);
    let mut log = Vec::new();
    while let Some(step) = stream.next().await {
        match step.map_err(|error| error.to_string())? {
            ado::client::Step::Record(record) => log.push(record),
            ado::client::Step::Reset { .. } => return Err("the log was reset".into()),
            _ => {}
        }
    }
    Ok(log)
}

/// Straight from the tables.
async fn stored(database: &mut PgConnection, task: TaskId) -> Vec<Record> {
    let lifecycle = "SELECT record FROM ado.lifecycle WHERE task = $1";
    let chunks = "SELECT format, bytes, data FROM ado.chunk WHERE task = $1";
    let mut records = Vec::new();
    for row in sqlx::query(lifecycle).bind(task.0).fetch_all(&mut *database).await.expect("records") {
        records.extend(decode_all(row.get::<Vec<u8>, _>(0).into()).expect("a record"));
    }
    for row in sqlx::query(chunks).bind(task.0).fetch_all(&mut *database).await.expect("chunks") {
        let (format, bytes, data): (i16, i64, Vec<u8>) = (row.get(0), row.get(1), row.get(2));
        let bytes = usize::try_from(bytes).expect("a length");
        let plain = if format == 0 { data } else { lz4_flex::block::decompress(&data, bytes).expect("a chunk") };
        records.extend(decode_all(plain.into()).expect("records"));
    }
    records.sort_by_key(|record| record.offset);
    records
}

/// The product's own fold.
fn fold(id: TaskId, log: &[Record]) -> Option<ado::task::Task> {
    let (first, rest) = log.split_first()?;
    let mut task = ado::task::Task::begin(id, first).ok()?;
    rest.iter().try_for_each(|record| task.apply(record)).ok()?;
    Some(task)
}
