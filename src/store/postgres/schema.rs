//! Schema versions: what to run when, and what to refuse.

use ado_proto::Timestamp;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, Row as _, query, raw_sql};

use super::super::{Error, rules};
use super::error::{Failure, Tried};
use super::int;
use crate::env::Env;

/// The n-th script leads from schema version n to n + 1. Released ones are frozen.
const MIGRATIONS: &[&str] = &[include_str!("../migrations/postgres/0001_initial.sql")];
/// What `meta` calls whose schema it is.
const APPLICATION: &str = "ado";
/// Oldest server, as `server_version_num`: numeric `extract`, and what is tested.
const OLDEST_SERVER: i32 = 140_000;
/// Held while the schema is made or migrated, and partitions are made ahead of time: `ado1`.
const LOCK: i64 = 0x6164_6f31;

/// What a store knows of itself.
pub(super) struct Meta {
    pub(super) generation: u64,
    /// A time that was shown.
    pub(super) clock: Timestamp,
}

/// Makes sure that the database has the schema of this build. Whoever else opens it at the same time waits.
pub(super) async fn prepare(options: &PgConnectOptions, env: &Env) -> Tried<Meta> {
    let mut connection = options.connect().await?;
    suits(&mut connection).await?;
    let mut tx = connection.begin().await?;
    // A migration may take its time, and so may waiting for somebody else's.
    raw_sql("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0").execute(&mut *tx).await?;
    query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *tx).await?;
    migrate(&mut tx, env).await?;
    mend_events(&mut tx).await?;
    let row = query(
        "SELECT generation, greatest(clock, (SELECT max(at) FROM event), (SELECT max(seen_at) FROM worker)) FROM meta",
    )
    .fetch_one(&mut *tx)
    .await?;
    let generation = u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(1);
    let meta = Meta { generation, clock: Timestamp(row.try_get(1)?) };
    tx.commit().await?;
    connection.close().await?;
    Ok(meta)
}

async fn suits(connection: &mut PgConnection) -> Tried<()> {
    let row = query("SELECT current_setting('server_version_num')::integer, current_setting('server_encoding')")
        .fetch_one(connection)
        .await?;
    let (version, encoding): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
    if version < OLDEST_SERVER {
        return Err(Error::Unusable(format!(
            "the server is PostgreSQL {}, {} or newer is needed",
            version / 10_000,
            OLDEST_SERVER / 10_000
        ))
        .into());
    }
    if encoding != "UTF8" {
        return Err(Error::Unusable(format!("the database's encoding is {encoding}, UTF8 is needed")).into());
    }
    Ok(())
}

async fn migrate(tx: &mut PgConnection, env: &Env) -> Tried<()> {
    let newest = MIGRATIONS.len();
    let version = version(tx).await?;
    if version > newest {
        return Err(Error::Unusable(format!(
            "its schema has version {version}, this build knows versions up to {newest}: run a newer build"
        ))
        .into());
    }
    for script in &MIGRATIONS[version..] {
        raw_sql(*script).execute(&mut *tx).await?;
    }
    if version == 0 {
        query("INSERT INTO meta (application, version, generation, clock) VALUES ($1, $2, $3, 0)")
            .bind(APPLICATION)
            .bind(i32::try_from(newest).unwrap_or(i32::MAX))
            .bind(int(rules::generation(env)))
            .execute(tx)
            .await?;
    } else if version < newest {
        query("UPDATE meta SET version = $1").bind(i32::try_from(newest).unwrap_or(i32::MAX)).execute(tx).await?;
    }
    Ok(())
}

/// The schema's version; 0: there is none yet, and its (empty) namespace is made.
async fn version(tx: &mut PgConnection) -> Tried<usize> {
    let row = query(
        "SELECT to_regnamespace('ado') IS NOT NULL, to_regclass('ado.meta') IS NOT NULL, \
         (SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('ado'))",
    )
    .fetch_one(&mut *tx)
    .await?;
    let (namespace, meta, relations): (bool, bool, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if !namespace {
        raw_sql("CREATE SCHEMA ado").execute(tx).await?;
        return Ok(0);
    }
    let foreign = || Failure::from(Error::Unusable("its schema `ado` belongs to another program".into()));
    if !meta {
        return if relations == 0 { Ok(0) } else { Err(foreign()) };
    }
    let row = query("SELECT application, version FROM meta").fetch_one(tx).await.map_err(|_| foreign())?;
    if row.try_get::<String, _>(0).map_err(|_| foreign())? != APPLICATION {
        return Err(foreign());
    }
    Ok(usize::try_from(row.try_get::<i32, _>(1)?).unwrap_or(usize::MAX))
}

/// A database that was dumped and restored into another server meets younger transaction ids than its events have. No
/// running server shows an event with an id it has not given yet.
async fn mend_events(tx: &mut PgConnection) -> Tried<()> {
    query(
        "WITH last AS (SELECT greatest(coalesce(max(cursor), 0), (SELECT event_last FROM meta)) >> 20 AS id FROM event) \
         UPDATE meta SET event_base = last.id + 1 - pg_snapshot_xmin(pg_current_snapshot())::text::bigint FROM last \
         WHERE last.id >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint + event_base",
    )
    .execute(tx)
    .await?;
    Ok(())
}
