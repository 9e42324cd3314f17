//! Commits: units of changes, and the memory of the requests that asked for them.

use std::collections::BTreeMap;

use ado_proto::Timestamp;
use bytes::Bytes;
use sqlx::{Executor, Row as _, SqliteConnection, query};

use super::super::batch::{self, Batch};
use super::super::{Committed, Key, Result, Unit};
use super::tasks::{self, Columns, Stored, blob};
use super::{Sqlite, Writing, access, logs};

impl Sqlite {
    pub(super) async fn seen(&self, key: &Key) -> Result<Option<Committed>> {
        seen(&self.readers, key).await
    }

    pub(super) async fn commit_units(&self, units: Vec<Unit>) -> Result<Vec<Committed>> {
        let ids = batch::ids(units.iter().flat_map(|unit| &unit.changes));
        let mut tx = self.write().await?;
        let mut known = BTreeMap::new();
        let mut locked = Vec::with_capacity(ids.len());
        for Stored { no, row } in tasks::load(&mut tx.connection, ids).await? {
            known.insert(row.task.id, (no, Columns::of(&row)));
            locked.push(row);
        }
        let mut batch = Batch::new(tx.now, locked);
        let mut committed = Vec::with_capacity(units.len());
        let mut wrote = false;
        for unit in units {
            committed.push(run(&mut tx, &mut batch, unit, &mut wrote).await?);
        }
        let (changed, events) = batch.finish();
        wrote |= !changed.is_empty();
        for staged in &changed {
            let no = match known.get(&staged.row.task.id) {
                Some((no, before)) => {
                    tasks::update(&mut tx.connection, *no, before, &staged.row).await?;
                    *no
                }
                None => tasks::insert(&mut tx.connection, &staged.row).await?,
            };
            logs::append(&mut tx.connection, no, &staged.records).await?;
        }
        access::insert_events(&mut tx.connection, tx.now, &events).await?;
        // Refusals alone cost no write to the disk.
        if wrote {
            tx.commit().await?
        } else {
            tx.undo().await?
        }
        Ok(committed)
    }
}

async fn run(tx: &mut Writing<'_>, batch: &mut Batch, unit: Unit, wrote: &mut bool) -> Result<Committed> {
    let Unit { changes, once, audit } = unit;
    if let Some(once) = &once
        && let Some(seen) = seen(&mut tx.connection, &once.key).await?
    {
        return Ok(seen);
    }
    let outcomes = batch.run(changes);
    let mut answer = None;
    if let Some(once) = once {
        let bytes = (once.answer)(&outcomes);
        remember(&mut tx.connection, &once.key, &bytes, tx.now).await?;
        answer = Some(bytes);
        *wrote = true;
    }
    if let Some(audit) = audit {
        access::insert_audit(&mut tx.connection, tx.now, &batch::audited(audit, &outcomes)).await?;
        *wrote = true;
    }
    Ok(Committed::Done(outcomes, answer))
}

async fn seen(db: impl Executor<'_, Database = sqlx::Sqlite>, key: &Key) -> Result<Option<Committed>> {
    let found = query("SELECT body, answer FROM request WHERE id = ? AND kind = ? AND principal = ?")
        .bind(blob(key.id.0))
        .bind(key.kind)
        .bind(&key.principal)
        .fetch_optional(db)
        .await?;
    let Some(columns) = found else { return Ok(None) };
    if columns.try_get::<&[u8], _>(0)? != key.body {
        return Ok(Some(Committed::KeyConflict));
    }
    Ok(Some(Committed::Replayed(columns.try_get::<Vec<u8>, _>(1)?.into())))
}

/// Keeps what was answered to a request.
pub(super) async fn remember(
    connection: &mut SqliteConnection,
    key: &Key,
    answer: &Bytes,
    now: Timestamp,
) -> Result<()> {
    query("INSERT INTO request (principal, kind, id, body, answer, at) VALUES (?, ?, ?, ?, ?, ?)")
        .bind(&key.principal)
        .bind(key.kind)
        .bind(blob(key.id.0))
        .bind(&key.body[..])
        .bind(answer.to_vec())
        .bind(now.0)
        .execute(connection)
        .await?;
    Ok(())
}
