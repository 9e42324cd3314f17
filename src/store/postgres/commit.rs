//! Commits: units of changes, and the memory of the requests that asked for them.

use std::collections::{BTreeMap, BTreeSet};

use ado_proto::{TaskId, Timestamp};
use bytes::Bytes;
use sqlx::{Executor, PgConnection, Row as _, query};
use uuid::Uuid;

use super::super::batch::{self, Batch};
use super::super::{Change, Committed, Error, Key, Outcome, Unit};
use super::error::{Failure, Tried};
use super::tasks::{self, Locking};
use super::write::Writes;
use super::{Postgres, day, text};

/// How long a commit waits for tasks that somebody else held at first.
const WAIT_LOCKED: &str = "SET LOCAL lock_timeout = '200ms'";

/// A unit and its place among those that came.
type Placed = (usize, Unit);

/// What became of some units, and those that wait for a lock.
struct Attempt {
    done: Vec<(usize, Committed)>,
    locked: Vec<Placed>,
}

impl Postgres {
    pub(super) async fn seen(&self, key: &Key) -> Tried<Option<Committed>> {
        let found = stored(&self.pool, &KeyColumns::of(key)).await?;
        Ok(found.map(|(body, answer)| replayed(key, &body, answer)))
    }

    pub(super) async fn commit_units(&self, units: Vec<Unit>) -> Tried<Vec<Committed>> {
        self.make_days(new_days(&units)).await?;
        let units = units.into_iter().enumerate().collect();
        let Attempt { mut done, locked } = self.attempt(units, Locking::Skip).await?;
        if !locked.is_empty() {
            let again = self.attempt(locked, Locking::Wait).await?;
            done.extend(again.done);
            done.extend(again.locked.into_iter().map(|(place, unit)| (place, refused(&unit))));
        }
        done.sort_by_key(|(place, _)| *place);
        Ok(done.into_iter().map(|(_, committed)| committed).collect())
    }

    /// One transaction. Units that change a task which somebody else holds are left as they are.
    async fn attempt(&self, units: Vec<Placed>, how: Locking) -> Tried<Attempt> {
        let floor = self.clock.floor();
        let hand = self.clock.hand();
        let mut tx = self.begin().await?;
        if how == Locking::Wait {
            query(WAIT_LOCKED).execute(&mut *tx).await?;
        }
        let ids = batch::ids(units.iter().flat_map(|(_, unit)| &unit.changes));
        let locked = match tasks::lock(&mut tx, hand, &ids, how).await {
            Err(failure) if how == Locking::Wait && failure.is_locked() => {
                tx.rollback().await?;
                return Ok(Attempt { done: Vec::new(), locked: units });
            }
            other => other?,
        };
        let held: BTreeSet<_> = locked.rows.iter().map(|row| row.task.id).collect();
        let missing: Vec<_> = ids.difference(&held).copied().collect();
        let (reading, skipped) = match locked.reading {
            Some(reading) if missing.is_empty() => (reading, BTreeSet::new()),
            _ => tasks::existing(&mut tx, hand, &missing).await?,
        };
        let (locked_out, units): (Vec<_>, Vec<_>) = units.into_iter().partition(|(_, unit)| touches(unit, &skipped));
        let now = self.clock.settle(&mut tx, reading, floor.max(locked.last_time)).await?;
        let mut keys = Keys::of(&units);
        keys.claim(&mut tx, now).await?;

        let mut batch = Batch::new(now, locked.rows);
        let mut writes = Writes::at(now);
        let mut done = Vec::with_capacity(units.len());
        for (place, unit) in units {
            done.push((place, run(&mut batch, &mut keys, &mut writes, unit)?));
        }
        let (changed, events) = batch.finish();
        writes.events = events;
        for staged in changed {
            writes.task(staged, &held);
        }
        // Refusals alone cost no write to the disk.
        if writes.is_empty() {
            tx.rollback().await?;
        } else {
            writes.execute(&mut tx).await?;
            commit(tx).await?;
        }
        Ok(Attempt { done, locked: locked_out })
    }
}

/// Ends a transaction, durably.
pub(super) async fn commit(tx: sqlx::Transaction<'_, sqlx::Postgres>) -> Tried<()> {
    tx.commit().await.map_err(|error| match error {
        // Its code says what is known: out of space, it did not happen.
        error @ sqlx::Error::Database(_) => error.into(),
        // It may have happened or not.
        error => Failure::Said(Error::Unavailable(format!("a commit's outcome is unknown: {error}"))),
    })
}

fn new_days(units: &[Unit]) -> BTreeSet<i32> {
    let changes = units.iter().flat_map(|unit| &unit.changes);
    let created = changes.filter_map(|change| match change {
        Change::Create { id, .. } => Some(day(*id)),
        Change::Update { .. } => None,
    });
    created.collect()
}

fn touches(unit: &Unit, skipped: &BTreeSet<TaskId>) -> bool {
    !skipped.is_empty() && batch::ids(&unit.changes).iter().any(|id| skipped.contains(id))
}

/// A unit none of which was done: its changes become durable together.
fn refused(unit: &Unit) -> Committed {
    Committed::Done(unit.changes.iter().map(|_| Outcome::Locked).collect(), None)
}

fn run(batch: &mut Batch, keys: &mut Keys, writes: &mut Writes, unit: Unit) -> Tried<Committed> {
    let Unit { changes, once, audit } = unit;
    if let Some(once) = &once
        && let Some(seen) = keys.seen(&once.key)
    {
        return Ok(seen);
    }
    let outcomes = batch.run(changes);
    let mut answer = None;
    if let Some(once) = once {
        let key = KeyColumns::of(&once.key);
        let bytes = (once.answer)(&outcomes);
        keys.0.insert(key.clone(), (once.key.body.to_vec(), Some(bytes.clone())));
        writes.answers.push((key, bytes.clone()));
        answer = Some(bytes);
    }
    if let Some(audit) = audit {
        writes.audit.push(batch::audited(audit, &outcomes));
    }
    Ok(Committed::Done(outcomes, answer))
}

/// A [`Key`] as its columns, without the body, in the order in which keys are locked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KeyColumns {
    pub(super) id: Uuid,
    pub(super) kind: i32,
    pub(super) principal: String,
}

impl KeyColumns {
    fn of(key: &Key) -> Self {
        Self { id: key.id.0, kind: key.kind.into(), principal: text(&key.principal).into_owned() }
    }
}

/// The keys of a batch with the hash of their bodies, and the answers of those that were seen before.
struct Keys(BTreeMap<KeyColumns, (Vec<u8>, Option<Bytes>)>);

impl Keys {
    fn of(units: &[Placed]) -> Self {
        let mut keys = BTreeMap::new();
        for once in units.iter().filter_map(|(_, unit)| unit.once.as_ref()) {
            // Of two alike in a batch the first one counts.
            keys.entry(KeyColumns::of(&once.key)).or_insert_with(|| (once.key.body.to_vec(), None));
        }
        Self(keys)
    }

    /// Inserts the keys in their order; where another transaction did so first, waits for its end and reads its answer.
    async fn claim(&mut self, db: &mut PgConnection, now: Timestamp) -> Tried<()> {
        let keys = &mut self.0;
        if keys.is_empty() {
            return Ok(());
        }
        let inserted = query(
            "INSERT INTO request (id, kind, principal, body, answer, at) \
             SELECT id, kind, principal, body, '', $5 FROM unnest($1, $2, $3, $4) AS new (id, kind, principal, body) \
             ON CONFLICT DO NOTHING RETURNING id, kind, principal",
        )
        .bind(keys.keys().map(|key| key.id).collect::<Vec<_>>())
        .bind(keys.keys().map(|key| key.kind).collect::<Vec<_>>())
        .bind(keys.keys().map(|key| key.principal.clone()).collect::<Vec<_>>())
        .bind(keys.values().map(|(body, _)| body.clone()).collect::<Vec<_>>())
        .bind(now.0)
        .fetch_all(&mut *db)
        .await?;
        let mut taken: BTreeSet<_> = keys.keys().cloned().collect();
        for columns in &inserted {
            let (id, kind, principal) = (columns.try_get(0)?, columns.try_get(1)?, columns.try_get(2)?);
            taken.remove(&KeyColumns { id, kind, principal });
        }
        for key in taken {
            // A statement of its own: it sees what the other transaction committed.
            let found = stored(&mut *db, &key).await?;
            let gone = || Error::Unavailable("a request's key was deleted just now".into());
            let (body, answer) = found.ok_or_else(gone)?;
            keys.insert(key, (body, Some(answer)));
        }
        Ok(())
    }

    /// What was answered before.
    fn seen(&self, key: &Key) -> Option<Committed> {
        let (body, answer) = self.0.get(&KeyColumns::of(key))?;
        Some(replayed(key, body, answer.clone()?))
    }
}

fn replayed(key: &Key, body: &[u8], answer: Bytes) -> Committed {
    if *body == key.body { Committed::Replayed(answer) } else { Committed::KeyConflict }
}

/// The body's hash and the answer that are kept for a key.
async fn stored(db: impl Executor<'_, Database = sqlx::Postgres>, key: &KeyColumns) -> Tried<Option<(Vec<u8>, Bytes)>> {
    let found = query("SELECT body, answer FROM request WHERE id = $1 AND kind = $2 AND principal = $3")
        .bind(key.id)
        .bind(key.kind)
        .bind(&key.principal)
        .fetch_optional(db)
        .await?;
    let Some(columns) = found else { return Ok(None) };
    Ok(Some((columns.try_get(0)?, columns.try_get::<Vec<u8>, _>(1)?.into())))
}

/// Keeps what was answered to a request.
pub(super) async fn remember(db: &mut PgConnection, key: &Key, answer: &Bytes, now: Timestamp) -> Tried<()> {
    let columns = KeyColumns::of(key);
    query(
        "INSERT INTO request (id, kind, principal, body, answer, at) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT DO NOTHING",
    )
    .bind(columns.id)
    .bind(columns.kind)
    .bind(columns.principal)
    .bind(&key.body[..])
    .bind(&answer[..])
    .bind(now.0)
    .execute(db)
    .await?;
    Ok(())
}
