//! Commits: units of changes, and the memory of the requests that asked for them.

use std::collections::BTreeMap;

use ado_proto::Timestamp;
use bytes::Bytes;
use rusqlite::params;
use sqlx::{Row as _, SqliteConnection, query};

use super::super::batch::{self, Batch};
use super::super::{Committed, Key, Result, Unit};
use super::tasks::{self, Columns, Stored, blob};
use super::transact::{End, Transaction};
use super::{Sqlite, access, logs};

const SEEN: &str = "SELECT body, answer FROM request WHERE id = ? AND kind = ? AND principal = ?";
const REMEMBER: &str = "INSERT INTO request (principal, kind, id, body, answer, at) VALUES (?, ?, ?, ?, ?, ?)";

impl Sqlite {
    pub(super) async fn seen(&self, key: &Key) -> Result<Option<Committed>> {
        let found =
            query(SEEN).bind(blob(key.id.0)).bind(key.kind).bind(&key.principal).fetch_optional(&self.readers).await?;
        let Some(columns) = found else { return Ok(None) };
        Ok(Some(replayed(key, columns.try_get(0)?, columns.try_get(1)?)))
    }

    pub(super) async fn commit_units(&self, units: Vec<Unit>) -> Result<Vec<Committed>> {
        self.transact(move |tx| commit(tx, units)).await
    }
}

fn commit(tx: &Transaction<'_>, units: Vec<Unit>) -> Result<(Vec<Committed>, End)> {
    let ids = batch::ids(units.iter().flat_map(|unit| &unit.changes));
    let mut known = BTreeMap::new();
    let mut locked = Vec::with_capacity(ids.len());
    for Stored { no, row } in tasks::load(tx, ids)? {
        known.insert(row.task.id, (no, Columns::of(&row)));
        locked.push(row);
    }
    let mut batch = Batch::new(tx.now, locked);
    let mut committed = Vec::with_capacity(units.len());
    let mut wrote = false;
    for unit in units {
        committed.push(run(tx, &mut batch, unit, &mut wrote)?);
    }
    let (changed, events) = batch.finish();
    wrote |= !changed.is_empty();
    for staged in &changed {
        let no = match known.get(&staged.row.task.id) {
            Some((no, before)) => {
                tasks::update(tx, *no, before, &staged.row)?;
                *no
            }
            None => tasks::insert(tx, &staged.row)?,
        };
        logs::append(tx, no, &staged.records)?;
    }
    access::add_events(tx, &events)?;
    // Refusals alone cost no write to the disk.
    Ok((committed, if wrote { End::Keep } else { End::Undo }))
}

fn run(tx: &Transaction<'_>, batch: &mut Batch, unit: Unit, wrote: &mut bool) -> Result<Committed> {
    let Unit { changes, once, audit } = unit;
    if let Some(once) = &once {
        let key = &once.key;
        let seen = tx.one(SEEN, params![key.id.0.as_bytes(), key.kind, key.principal], |columns| {
            Ok(replayed(key, columns.get_ref(0)?.as_bytes()?, columns.get(1)?))
        })?;
        if let Some(seen) = seen {
            return Ok(seen);
        }
    }
    let outcomes = batch.run(changes);
    let mut answer = None;
    if let Some(once) = once {
        let bytes = (once.answer)(&outcomes);
        let key = once.key;
        tx.execute(
            REMEMBER,
            params![key.principal, key.kind, key.id.0.as_bytes(), &key.body[..], &bytes[..], tx.now.0],
        )?;
        answer = Some(bytes);
        *wrote = true;
    }
    if let Some(audit) = audit {
        access::add_audit(tx, &batch::audited(audit, &outcomes))?;
        *wrote = true;
    }
    Ok(Committed::Done(outcomes, answer))
}

/// What to say to a key that was seen before, with this body and this answer.
fn replayed(key: &Key, body: &[u8], answer: Vec<u8>) -> Committed {
    if *body == key.body { Committed::Replayed(answer.into()) } else { Committed::KeyConflict }
}

/// Keeps what was answered to a request.
pub(super) async fn remember(
    connection: &mut SqliteConnection,
    key: &Key,
    answer: &Bytes,
    now: Timestamp,
) -> Result<()> {
    query(REMEMBER)
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
