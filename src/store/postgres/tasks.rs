//! Task rows: their columns, the questions asked of them, and their locks.

use std::collections::{BTreeMap, BTreeSet};

use ado_proto::{Audience, Incarnation, Namespace, Offset, TaskId, Timestamp, WorkerId};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, Executor, PgConnection, Row as _, query};
use uuid::Uuid;

use super::super::fold::{self, Parts};
use super::super::{Backlog, Find, Lease, ListFilter, Row, Waiting};
use super::clock::{Reading, reading};
use super::error::Tried;
use super::{Postgres, scope, size, text};

/// A query for whole rows; [`row`] reads them.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, next_offset, fold, lease_worker, lease_incarnation, lease_known, lease_expires_at, \
             (SELECT record FROM lifecycle WHERE lifecycle.task = task.id AND record_offset = 0), \
             (SELECT record FROM lifecycle WHERE lifecycle.task = task.id AND record_offset = checkpoint), settled FROM task ",
            $rest
        )
    };
}

/// A query that locks whole rows; [`lock`] reads them. A row that was changed while we waited for it is seen as it is now,
/// but everything else as it was when the statement began. The first record is as old as the row; the checkpoint's may be
/// younger, so it is read afterwards.
macro_rules! select_locked {
    ($where:literal, $how:literal) => {
        concat!(
            "WITH locked AS MATERIALIZED (SELECT * FROM task WHERE ",
            $where,
            " ORDER BY id ",
            $how,
            ") SELECT ",
            reading!(),
            ", id, next_offset, fold, lease_worker, lease_incarnation, lease_known, lease_expires_at, \
             (SELECT record FROM lifecycle WHERE lifecycle.task = locked.id AND record_offset = 0), \
             checkpoint, last_time, settled FROM locked"
        )
    };
}

// `$2` restricts to a namespace. `~` is above every character of a short id: the range holds what begins with the prefix.
pub(super) const BY_ID: &str = select!("WHERE id = $1 AND ($2::text IS NULL OR namespace = $2) LIMIT $3");
pub(super) const BY_PREFIX: &str = select!(
    "WHERE short >= $1 AND short < $1 || '~' AND ($2::text IS NULL OR namespace = $2) ORDER BY id DESC LIMIT $3"
);
pub(super) const BY_GROUP: &str =
    select!("WHERE group_id = $1 AND ($2::text IS NULL OR namespace = $2) ORDER BY group_index LIMIT $3");
pub(super) const BY_GROUP_PREFIX: &str = select!(
    "WHERE group_short >= $1 AND group_short < $1 || '~' AND ($2::text IS NULL OR namespace = $2) \
     ORDER BY group_id, group_index LIMIT $3"
);
pub(super) const BY_NAME: &str =
    select!("WHERE name = $1 AND ($2::text IS NULL OR namespace = $2) ORDER BY id DESC LIMIT $3");
pub(super) const LIST: &str =
    select!("WHERE id < $1 AND ($2::text IS NULL OR namespace = $2) ORDER BY id DESC LIMIT $3");
pub(super) const LIST_STATE: &str =
    select!("WHERE state = $4 AND id < $1 AND ($2::text IS NULL OR namespace = $2) ORDER BY id DESC LIMIT $3");
pub(super) const LIST_DEAD: &str = select!(
    "WHERE state = 'failed' AND settled IS NULL AND id < $1 AND ($2::text IS NULL OR namespace = $2) \
     ORDER BY id DESC LIMIT $3"
);
// The last one: the dead letter only. `$5` are states, none for all. A group is small: its members are found by its index, and then put in order.
pub(super) const LIST_GROUP: &str = select!(
    "WHERE group_id = $4 AND id < $1 AND ($2::text IS NULL OR namespace = $2) AND ($6::text IS NULL OR name = $6) \
     AND (cardinality($5::text[]) = 0 OR state = ANY($5)) AND (NOT $7 OR settled IS NULL) ORDER BY id DESC LIMIT $3"
);
pub(super) const LIST_NAME: &str = select!(
    "WHERE name = $4 AND id < $1 AND ($2::text IS NULL OR namespace = $2) \
     AND (cardinality($5::text[]) = 0 OR state = ANY($5)) AND (NOT $6 OR settled IS NULL) ORDER BY id DESC LIMIT $3"
);
pub(super) const WAITING: &str = "SELECT score, id, namespace, pool, agent FROM task WHERE score IS NOT NULL \
     AND (score, id) > ($1, $2) ORDER BY score, id LIMIT $3";
// The text of an id sorts as the id does, and has a `min` in every version.
pub(super) const BACKLOG: &str = "SELECT namespace, pool, agent, count(*), min(id::text)::uuid FROM task \
     WHERE score IS NOT NULL GROUP BY namespace, pool, agent ORDER BY namespace, pool, agent";
pub(super) const EXPIRED: &str = select!("WHERE lease_expires_at < $1 ORDER BY lease_expires_at, id LIMIT $2");
pub(super) const OVERDUE: &str = select!("WHERE due_at <= $1 ORDER BY due_at, id LIMIT $2");
pub(super) const HELD: &str = select!("WHERE lease_worker = $1 ORDER BY id");

// `$1` is a clock for tests.
const LOCK_SKIP: &str = select_locked!("id = ANY($2)", "FOR UPDATE SKIP LOCKED");
const LOCK_WAIT: &str = select_locked!("id = ANY($2)", "FOR UPDATE");
const LOCK_HELD: &str = select_locked!("lease_worker = ANY($2)", "FOR UPDATE");
const EXISTING: &str = concat!("SELECT ", reading!(), ", ARRAY(SELECT id FROM task WHERE id = ANY($2))");

/// What to do about rows that others hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Locking {
    /// Leave them out.
    Skip,
    /// Wait for them.
    Wait,
}

/// Rows that this transaction holds until it ends.
pub(super) struct Locked {
    /// In order of id.
    pub(super) rows: Vec<Row>,
    /// The clock, after the last lock.
    pub(super) reading: Option<Reading>,
    /// The last record's time of any of them.
    pub(super) last_time: Timestamp,
}

fn task(columns: &PgRow, at: usize, checkpoint: Option<Vec<u8>>, settled: Option<Uuid>) -> Tried<Row> {
    let worker: Option<Uuid> = columns.try_get(at + 3)?;
    let incarnation: Option<Uuid> = columns.try_get(at + 4)?;
    let is_known: Option<bool> = columns.try_get(at + 5)?;
    let expires_at: Option<i64> = columns.try_get(at + 6)?;
    let lease = worker.zip(incarnation).zip(is_known.zip(expires_at));
    let lease = lease.map(|((worker, incarnation), (is_known, expires_at))| Lease {
        worker: WorkerId(worker),
        incarnation: Incarnation(incarnation),
        is_known,
        expires_at: Timestamp(expires_at),
    });
    let parts = Parts {
        id: TaskId(columns.try_get(at)?),
        next_offset: Offset(columns.try_get::<i64, _>(at + 1)?.unsigned_abs()),
        fold: columns.try_get(at + 2)?,
        first: columns.try_get(at + 7)?,
        checkpoint,
    };
    Ok(Row { task: fold::decode(parts)?, lease, settled: fold::settled(settled) })
}

pub(super) fn row(columns: &PgRow) -> Tried<Row> {
    task(columns, 0, columns.try_get(8)?, columns.try_get(9)?)
}

/// Locks those of the tasks that exist.
pub(super) async fn lock(
    db: &mut PgConnection,
    hand: Option<i64>,
    ids: &BTreeSet<TaskId>,
    how: Locking,
) -> Tried<Locked> {
    let sql = match how {
        Locking::Skip => LOCK_SKIP,
        Locking::Wait => LOCK_WAIT,
    };
    let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
    locked(db, query(sql).bind(hand).bind(ids)).await
}

/// Locks the tasks that workers hold.
pub(super) async fn lock_held(db: &mut PgConnection, hand: Option<i64>, workers: &[Uuid]) -> Tried<Locked> {
    locked(db, query(LOCK_HELD).bind(hand).bind(workers)).await
}

async fn locked(db: &mut PgConnection, lock: Query<'_, sqlx::Postgres, PgArguments>) -> Tried<Locked> {
    let found = lock.fetch_all(&mut *db).await?;
    let mut wanted = BTreeMap::new();
    for columns in &found {
        if let Some(offset) = columns.try_get::<Option<i64>, _>(10)? {
            wanted.insert(columns.try_get::<Uuid, _>(2)?, offset);
        }
    }
    let mut checkpoints = checkpoints(db, wanted).await?;
    let mut locked = Locked { rows: Vec::with_capacity(found.len()), reading: None, last_time: Timestamp(0) };
    for columns in &found {
        let row = task(columns, 2, checkpoints.remove(&columns.try_get(2)?), columns.try_get(12)?)?;
        locked.reading = Some(Reading::of(columns)?);
        locked.last_time = locked.last_time.max(Timestamp(columns.try_get(11)?));
        locked.rows.push(row);
    }
    Ok(locked)
}

async fn checkpoints(db: &mut PgConnection, wanted: BTreeMap<Uuid, i64>) -> Tried<BTreeMap<Uuid, Vec<u8>>> {
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let (tasks, offsets): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
    let found = query(
        "SELECT task, record FROM lifecycle JOIN unnest($1, $2) AS wanted (id, at) ON task = id AND record_offset = at",
    )
    .bind(tasks)
    .bind(offsets)
    .fetch_all(db)
    .await?;
    found.iter().map(|columns| Ok((columns.try_get(0)?, columns.try_get(1)?))).collect()
}

/// Those of the ids that are there, locked by somebody or not, and the clock.
pub(super) async fn existing(
    db: &mut PgConnection,
    hand: Option<i64>,
    ids: &[TaskId],
) -> Tried<(Reading, BTreeSet<TaskId>)> {
    let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
    let columns = query(EXISTING).bind(hand).bind(ids).fetch_one(db).await?;
    let there: Vec<Uuid> = columns.try_get(2)?;
    Ok((Reading::of(&columns)?, there.into_iter().map(TaskId).collect()))
}

/// Extends leases and marks them as known.
pub(super) async fn set_leases(db: &mut PgConnection, rows: &[&Row]) -> Tried<()> {
    let leased = || rows.iter().filter_map(|row| Some((row.task.id, row.lease.as_ref()?)));
    query(
        "UPDATE task SET lease_known = new.known, lease_expires_at = new.expires_at \
         FROM unnest($1, $2, $3) AS new (id, known, expires_at) WHERE task.id = new.id",
    )
    .bind(leased().map(|(id, _)| id.0).collect::<Vec<_>>())
    .bind(leased().map(|(_, lease)| lease.is_known).collect::<Vec<_>>())
    .bind(leased().map(|(_, lease)| lease.expires_at.0).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

impl Postgres {
    async fn rows(&self, select: Query<'_, sqlx::Postgres, PgArguments>) -> Tried<Vec<Row>> {
        rows(select, &self.pool).await
    }

    pub(super) async fn find_row(&self, id: TaskId) -> Tried<Option<Row>> {
        Ok(self.rows(query(BY_ID).bind(id.0).bind(None::<&str>).bind(1i64)).await?.pop())
    }

    pub(super) async fn find_rows(&self, audience: &Audience, what: &Find, limit: usize) -> Tried<Vec<Row>> {
        let find = match what {
            Find::Id(id) => query(BY_ID).bind(id.0),
            Find::Prefix(prefix) => query(BY_PREFIX).bind(text(prefix)),
            Find::Group(group) => query(BY_GROUP).bind(group.0),
            Find::GroupPrefix(prefix) => query(BY_GROUP_PREFIX).bind(text(prefix)),
            Find::Name(name) => query(BY_NAME).bind(text(name)),
        };
        self.rows(find.bind(scope(audience)).bind(size(limit))).await
    }

    pub(super) async fn list_rows(&self, filter: &ListFilter) -> Tried<Vec<Row>> {
        // No id is this high: its version and variant bits are not set like that.
        let before = filter.before.map_or(Uuid::max(), |id| id.0);
        let (scope, limit) = (scope(&filter.audience), size(filter.limit));
        let name = filter.name.as_deref().map(text);
        let states = || match filter.dead {
            true => vec!["failed".to_owned()],
            false => filter.states.iter().map(|state| text(state).into_owned()).collect::<Vec<_>>(),
        };
        if let Some(group) = filter.group {
            let list = query(LIST_GROUP).bind(before).bind(scope).bind(limit).bind(group.0);
            return self.rows(list.bind(states()).bind(name).bind(filter.dead)).await;
        }
        if let Some(name) = name {
            let list = query(LIST_NAME).bind(before).bind(scope).bind(limit).bind(name);
            return self.rows(list.bind(states()).bind(filter.dead)).await;
        }
        if filter.dead {
            return self.rows(query(LIST_DEAD).bind(before).bind(scope).bind(limit)).await;
        }
        if filter.states.is_empty() {
            return self.rows(query(LIST).bind(before).bind(scope).bind(limit)).await;
        }
        // One walk down the index of a state at a time, all in one snapshot: few tasks of a state are found among many
        // others at once.
        let mut connection = self.pool.acquire().await?;
        let mut snapshot = connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let mut all = Vec::new();
        for state in filter.states.iter().collect::<BTreeSet<_>>() {
            let list = query(LIST_STATE).bind(before).bind(scope.clone()).bind(limit).bind(text(state));
            all.extend(rows(list, &mut *snapshot).await?);
        }
        snapshot.commit().await?;
        all.sort_by_key(|row| std::cmp::Reverse(row.task.id));
        all.truncate(filter.limit);
        Ok(all)
    }

    pub(super) async fn waiting_after(&self, after: Option<(i64, TaskId)>, limit: usize) -> Tried<Vec<Waiting>> {
        let (score, id) = after.map_or((i64::MIN, Uuid::nil()), |(score, id)| (score, id.0));
        let found = query(WAITING).bind(score).bind(id).bind(size(limit)).fetch_all(&self.pool).await?;
        let waiting = |columns: &PgRow| {
            Ok(Waiting {
                score: columns.try_get(0)?,
                id: TaskId(columns.try_get(1)?),
                namespace: Namespace(columns.try_get(2)?),
                pool: columns.try_get(3)?,
                agent: columns.try_get(4)?,
            })
        };
        found.iter().map(waiting).collect()
    }

    pub(super) async fn waiting_of_each(&self) -> Tried<Vec<Backlog>> {
        let found = query(BACKLOG).fetch_all(&self.pool).await?;
        let backlog = |columns: &PgRow| {
            Ok(Backlog {
                namespace: Namespace(columns.try_get(0)?),
                pool: columns.try_get(1)?,
                agent: columns.try_get(2)?,
                tasks: columns.try_get::<i64, _>(3)?.unsigned_abs(),
                oldest: TaskId(columns.try_get(4)?),
            })
        };
        found.iter().map(backlog).collect()
    }

    pub(super) async fn expired_rows(&self, before: Timestamp, limit: usize) -> Tried<Vec<Row>> {
        self.rows(query(EXPIRED).bind(before.0).bind(size(limit))).await
    }

    pub(super) async fn overdue_rows(&self, now: Timestamp, limit: usize) -> Tried<Vec<Row>> {
        self.rows(query(OVERDUE).bind(now.0).bind(size(limit))).await
    }

    pub(super) async fn held_rows(&self, worker: WorkerId) -> Tried<Vec<Row>> {
        self.rows(query(HELD).bind(worker.0)).await
    }
}

async fn rows(
    select: Query<'_, sqlx::Postgres, PgArguments>,
    db: impl Executor<'_, Database = sqlx::Postgres>,
) -> Tried<Vec<Row>> {
    select.fetch_all(db).await?.iter().map(row).collect()
}
