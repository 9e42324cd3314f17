//! Schema versions: what to run when, and what to refuse.

use std::path::Path;

use ado_proto::Timestamp;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row as _, SqliteConnection, query, raw_sql};

use super::super::{Error, Result, rules};
use super::{connect, int};
use crate::env::Env;

/// The n-th script leads from schema version n to n + 1. Released ones are frozen.
const MIGRATIONS: &[&str] = &[include_str!("../migrations/sqlite/0001_initial.sql")];
/// In the header of every file of ours: `ado1`.
const APPLICATION: i32 = 0x6164_6f31;
/// Twice SQLite's default: a chunk chains half as many pages, and a small commit still writes few bytes.
const PAGE_BYTES: u32 = 8192;

/// What a store knows of itself.
pub(super) struct Meta {
    pub(super) generation: u64,
    pub(super) clock: Timestamp,
}

/// Makes sure that the file exists and has the schema of this build. Whoever else opens it at the same time waits.
pub(super) async fn prepare(path: &Path, env: &Env) -> Result<Meta> {
    make_private(path).map_err(|error| Error::Unusable(format!("{}: {error}", path.display())))?;
    // Nothing is set here that would change a file that turns out not to be ours.
    let mut connection = connect(path).page_size(PAGE_BYTES).connect().await.map_err(foreign)?;
    query("BEGIN EXCLUSIVE").execute(&mut connection).await.map_err(foreign)?;
    migrate(&mut connection).await?;
    query("INSERT INTO meta (one, generation, clock) VALUES (1, ?, ?) ON CONFLICT DO NOTHING")
        .bind(int(rules::generation(env)))
        .bind(env.now().0)
        .execute(&mut connection)
        .await?;
    let row = query("SELECT generation, clock FROM meta").fetch_one(&mut connection).await?;
    let generation = u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(1);
    let meta = Meta { generation, clock: Timestamp(row.try_get(1)?) };
    query("COMMIT").execute(&mut connection).await?;
    query("PRAGMA journal_mode = WAL").execute(&mut connection).await?;
    connection.close().await?;
    Ok(meta)
}

/// A database gets the permissions of its file, and so do its log and its shared memory.
fn make_private(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}

/// SQLite says "not a database" where it is not one, or encrypted.
fn foreign(error: sqlx::Error) -> Error {
    match Error::from(error) {
        Error::Damaged(text) => Error::Unusable(text),
        other => other,
    }
}

async fn migrate(connection: &mut SqliteConnection) -> Result<()> {
    let newest = MIGRATIONS.len();
    let row = query(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema) \
         FROM pragma_application_id, pragma_user_version",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(foreign)?;
    let (application, version, objects): (i32, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if application != APPLICATION && (application != 0 || objects != 0) {
        return Err(Error::Unusable("it is a database of another program".into()));
    }
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > newest {
        return Err(Error::Unusable(format!(
            "its schema has version {version}, this build knows versions up to {newest}: run a newer build"
        )));
    }
    if version == newest {
        return Ok(());
    }
    for script in &MIGRATIONS[version..] {
        raw_sql(*script).execute(&mut *connection).await?;
    }
    let stamp = format!("PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {newest}");
    raw_sql(AssertSqlSafe(stamp)).execute(connection).await?;
    Ok(())
}
