//! Task rows: their columns, and the questions asked of them.

use std::collections::BTreeSet;

use ado_proto::{Audience, Incarnation, Namespace, Offset, TaskId, Timestamp, WorkerId};
use rusqlite::params;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, query};
use uuid::Uuid;

pub(super) use super::super::fold::Columns;
use super::super::fold::{self, tail};
use super::super::{Backlog, Error, Find, Lease, ListFilter, Result, Row, Waiting};
use super::transact::Transaction;
use super::{Sqlite, int, scope, size};

/// Higher than every id.
const PAST_ALL_IDS: [u8; 17] = [0xff; 17];

/// A query for whole rows; [`row`] reads them.
macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT no, fold, lease_worker, lease_incarnation, lease_known, lease_expires_at, id, next_offset, \
             (SELECT record FROM lifecycle WHERE task = no AND offset = 0), \
             (SELECT record FROM lifecycle WHERE task = no AND offset = checkpoint), settled FROM task ",
            $rest
        )
    };
}

// `?2` restricts to a namespace. `~` is above every character of a short id: the range holds what begins with the prefix.
pub(super) const LOAD: &str = select!("WHERE id = ?");
const BY_ID: &str = select!("WHERE id = ?1 AND (?2 IS NULL OR namespace = ?2) LIMIT ?3");
pub(super) const BY_PREFIX: &str =
    select!("WHERE short >= ?1 AND short < ?1 || '~' AND (?2 IS NULL OR namespace = ?2) ORDER BY id DESC LIMIT ?3");
pub(super) const BY_GROUP: &str =
    select!("WHERE group_id = ?1 AND (?2 IS NULL OR namespace = ?2) ORDER BY group_index LIMIT ?3");
pub(super) const BY_GROUP_PREFIX: &str = select!(
    "WHERE group_short >= ?1 AND group_short < ?1 || '~' AND (?2 IS NULL OR namespace = ?2) \
     ORDER BY group_id, group_index LIMIT ?3"
);
pub(super) const BY_NAME: &str =
    select!("WHERE name = ?1 AND (?2 IS NULL OR namespace = ?2) ORDER BY id DESC LIMIT ?3");
pub(super) const LIST: &str = select!("WHERE id < ?1 AND (?2 IS NULL OR namespace = ?2) ORDER BY id DESC LIMIT ?3");
pub(super) const LIST_STATE: &str =
    select!("WHERE state = ?4 AND id < ?1 AND (?2 IS NULL OR namespace = ?2) ORDER BY id DESC LIMIT ?3");
pub(super) const LIST_DEAD: &str = select!(
    "WHERE state = 'failed' AND settled IS NULL AND id < ?1 AND (?2 IS NULL OR namespace = ?2) ORDER BY id DESC LIMIT ?3"
);
// The last one: the dead letter only. `?5` is a list of states, or all. A group is small: its members are found by its index, and then put in order.
pub(super) const LIST_GROUP: &str = select!(
    "WHERE group_id = ?4 AND id < ?1 AND (?2 IS NULL OR namespace = ?2) AND (?6 IS NULL OR name = ?6) \
     AND (?5 IS NULL OR state IN (SELECT value FROM json_each(?5))) AND (NOT ?7 OR settled IS NULL) \
     ORDER BY id DESC LIMIT ?3"
);
pub(super) const LIST_NAME: &str = select!(
    "WHERE name = ?4 AND id < ?1 AND (?2 IS NULL OR namespace = ?2) \
     AND (?5 IS NULL OR state IN (SELECT value FROM json_each(?5))) AND (NOT ?6 OR settled IS NULL) \
     ORDER BY id DESC LIMIT ?3"
);
pub(super) const WAITING: &str = "SELECT score, id, namespace, pool, agent FROM task WHERE score IS NOT NULL \
     AND (score, id) > (?, ?) ORDER BY score, id LIMIT ?";
pub(super) const BACKLOG: &str = "SELECT namespace, pool, agent, count(*), min(id) FROM task WHERE score IS NOT NULL \
     GROUP BY namespace, pool, agent ORDER BY namespace, pool, agent";
pub(super) const EXPIRED: &str = select!("WHERE lease_expires_at < ? ORDER BY lease_expires_at, id LIMIT ?");
pub(super) const OVERDUE: &str = select!("WHERE due_at <= ? ORDER BY due_at, id LIMIT ?");
pub(super) const HELD: &str = select!("WHERE lease_worker = ? ORDER BY id");

/// A stored task.
pub(super) struct Stored {
    /// The key of its log's rows.
    pub(super) no: i64,
    pub(super) row: Row,
}

pub(super) fn blob(id: Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

pub(super) fn uuid(bytes: &[u8]) -> Result<Uuid> {
    Uuid::from_slice(bytes).map_err(|error| Error::Damaged(format!("an id: {error}")))
}

/// The columns of a whole row, whoever has read them.
struct Whole<'a> {
    no: i64,
    fold: &'a [u8],
    lease_worker: Option<&'a [u8]>,
    lease_incarnation: Option<&'a [u8]>,
    lease_known: Option<bool>,
    lease_expires_at: Option<i64>,
    id: &'a [u8],
    next_offset: i64,
    first: Vec<u8>,
    checkpoint: Option<Vec<u8>>,
    settled: Option<&'a [u8]>,
}

impl Whole<'_> {
    fn stored(self) -> Result<Stored> {
        let lease = match (self.lease_worker, self.lease_incarnation, self.lease_known, self.lease_expires_at) {
            (Some(worker), Some(incarnation), Some(is_known), Some(expires_at)) => Some(Lease {
                worker: WorkerId(uuid(worker)?),
                incarnation: Incarnation(uuid(incarnation)?),
                is_known,
                expires_at: Timestamp(expires_at),
            }),
            _ => None,
        };
        let task = fold::decode(fold::Parts {
            id: TaskId(uuid(self.id)?),
            next_offset: Offset(self.next_offset.unsigned_abs()),
            fold: self.fold,
            first: self.first,
            checkpoint: self.checkpoint,
        })?;
        let settled = fold::settled(self.settled.map(uuid).transpose()?);
        Ok(Stored { no: self.no, row: Row { task, lease, settled } })
    }
}

fn row(columns: &SqliteRow) -> Result<Row> {
    let whole = Whole {
        no: columns.try_get(0)?,
        fold: columns.try_get(1)?,
        lease_worker: columns.try_get(2)?,
        lease_incarnation: columns.try_get(3)?,
        lease_known: columns.try_get(4)?,
        lease_expires_at: columns.try_get(5)?,
        id: columns.try_get(6)?,
        next_offset: columns.try_get(7)?,
        first: columns.try_get(8)?,
        checkpoint: columns.try_get(9)?,
        settled: columns.try_get(10)?,
    };
    Ok(whole.stored()?.row)
}

fn stored(columns: &rusqlite::Row<'_>) -> Result<Stored> {
    let whole = Whole {
        no: columns.get(0)?,
        fold: columns.get_ref(1)?.as_blob()?,
        lease_worker: columns.get_ref(2)?.as_blob_or_null()?,
        lease_incarnation: columns.get_ref(3)?.as_blob_or_null()?,
        lease_known: columns.get(4)?,
        lease_expires_at: columns.get(5)?,
        id: columns.get_ref(6)?.as_blob()?,
        next_offset: columns.get(7)?,
        first: columns.get(8)?,
        checkpoint: columns.get(9)?,
        settled: columns.get_ref(10)?.as_blob_or_null()?,
    };
    whole.stored()
}

/// Those of the tasks that exist.
pub(super) fn load(tx: &Transaction<'_>, ids: BTreeSet<TaskId>) -> Result<Vec<Stored>> {
    ids.iter().filter_map(|id| tx.one(LOAD, [id.0.as_bytes()], stored).transpose()).collect()
}

/// Writes a new task. Returns its `no`.
pub(super) fn insert(tx: &Transaction<'_>, row: &Row) -> Result<i64> {
    let task = &row.task;
    let columns = Columns::of(row);
    let group = task.group.as_ref();
    let lease = columns.lease.as_ref();
    tx.execute(
        "INSERT INTO task (id, short, namespace, pool, agent, name, group_id, group_index, group_short, state, \
         ended_at, score, lease_worker, lease_incarnation, lease_known, lease_expires_at, checkpoint, due_at, settled, \
         next_offset, fold) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        params![
            task.id.0.as_bytes(),
            tail(task.id.short()),
            task.namespace.0,
            task.spec.pool,
            task.spec.agent,
            task.name,
            group.map(|group| group.id.0.as_bytes()),
            group.map(|group| i64::from(group.index)),
            group.map(|group| tail(group.id.short())),
            columns.state,
            columns.ended_at.map(|at| at.0),
            columns.score,
            lease.map(|lease| lease.worker.0.as_bytes()),
            lease.map(|lease| lease.incarnation.0.as_bytes()),
            lease.map(|lease| lease.is_known),
            lease.map(|lease| lease.expires_at.0),
            columns.checkpoint.map(|offset| int(offset.0)),
            columns.due_at.map(|at| at.0),
            columns.settled.as_ref().map(Uuid::as_bytes),
            int(task.next_offset.0),
            fold::encode(task),
        ],
    )?;
    Ok(tx.last_inserted())
}

/// Writes a task that was `before`. Output moves only the log's length: then no index is touched.
pub(super) fn update(tx: &Transaction<'_>, no: i64, before: &Columns, row: &Row) -> Result<()> {
    let task = &row.task;
    let columns = Columns::of(row);
    if columns == *before {
        tx.execute(
            "UPDATE task SET next_offset = ?, fold = ? WHERE no = ?",
            params![int(task.next_offset.0), fold::encode(task), no],
        )?;
        return Ok(());
    }
    let lease = columns.lease.as_ref();
    tx.execute(
        "UPDATE task SET state = ?, ended_at = ?, score = ?, lease_worker = ?, lease_incarnation = ?, \
         lease_known = ?, lease_expires_at = ?, checkpoint = ?, due_at = ?, settled = ?, next_offset = ?, fold = ? WHERE no = ?",
        params![
            columns.state,
            columns.ended_at.map(|at| at.0),
            columns.score,
            lease.map(|lease| lease.worker.0.as_bytes()),
            lease.map(|lease| lease.incarnation.0.as_bytes()),
            lease.map(|lease| lease.is_known),
            lease.map(|lease| lease.expires_at.0),
            columns.checkpoint.map(|offset| int(offset.0)),
            columns.due_at.map(|at| at.0),
            columns.settled.as_ref().map(Uuid::as_bytes),
            int(task.next_offset.0),
            fold::encode(task),
            no,
        ],
    )?;
    Ok(())
}

/// Tasks a worker holds, in order of id.
pub(super) fn held(tx: &Transaction<'_>, worker: WorkerId) -> Result<Vec<Row>> {
    tx.all(HELD, [worker.0.as_bytes()], |columns| Ok(stored(columns)?.row))
}

/// Extends a lease and marks it as known.
pub(super) fn set_lease(tx: &Transaction<'_>, id: TaskId, lease: &Lease) -> Result<()> {
    tx.execute(
        "UPDATE task SET lease_known = ?, lease_expires_at = ? WHERE id = ?",
        params![lease.is_known, lease.expires_at.0, id.0.as_bytes()],
    )?;
    Ok(())
}

impl Sqlite {
    pub(super) async fn held_rows(&self, worker: WorkerId) -> Result<Vec<Row>> {
        let found = query(HELD).bind(blob(worker.0)).fetch_all(&self.readers).await?;
        found.iter().map(row).collect()
    }

    pub(super) async fn find_row(&self, id: TaskId) -> Result<Option<Row>> {
        let found = query(BY_ID).bind(blob(id.0)).bind(None::<&str>).bind(1).fetch_optional(&self.readers).await?;
        found.as_ref().map(row).transpose()
    }

    pub(super) async fn find_rows(&self, audience: &Audience, what: &Find, limit: usize) -> Result<Vec<Row>> {
        let find = match what {
            Find::Id(id) => query(BY_ID).bind(blob(id.0)),
            Find::Prefix(prefix) => query(BY_PREFIX).bind(prefix),
            Find::Group(group) => query(BY_GROUP).bind(blob(group.0)),
            Find::GroupPrefix(prefix) => query(BY_GROUP_PREFIX).bind(prefix),
            Find::Name(name) => query(BY_NAME).bind(name),
        };
        let found = find.bind(scope(audience)).bind(size(limit)).fetch_all(&self.readers).await?;
        found.iter().map(row).collect()
    }

    pub(super) async fn list_rows(&self, filter: &ListFilter) -> Result<Vec<Row>> {
        let before = filter.before.map_or(PAST_ALL_IDS.to_vec(), |id| blob(id.0));
        if filter.group.is_some() || filter.name.is_some() {
            return self.list_labelled(filter, before).await;
        }
        if filter.states.is_empty() || filter.dead {
            let found = query(if filter.dead { LIST_DEAD } else { LIST })
                .bind(before)
                .bind(scope(&filter.audience))
                .bind(size(filter.limit))
                .fetch_all(&self.readers)
                .await?;
            return found.iter().map(row).collect();
        }
        // One walk down the index of a state at a time, all in one snapshot: few tasks of a state are found among many
        // others at once.
        let mut snapshot = self.readers.begin().await?;
        let mut all = Vec::new();
        for state in filter.states.iter().collect::<BTreeSet<_>>() {
            let found = query(LIST_STATE)
                .bind(&before)
                .bind(scope(&filter.audience))
                .bind(size(filter.limit))
                .bind(state)
                .fetch_all(&mut *snapshot)
                .await?;
            for columns in &found {
                all.push(row(columns)?);
            }
        }
        all.sort_by_key(|row| std::cmp::Reverse(row.task.id));
        all.truncate(filter.limit);
        Ok(all)
    }

    async fn list_labelled(&self, filter: &ListFilter, before: Vec<u8>) -> Result<Vec<Row>> {
        let list = query(if filter.group.is_some() { LIST_GROUP } else { LIST_NAME });
        let list = list.bind(before).bind(scope(&filter.audience)).bind(size(filter.limit));
        let list = match filter.group {
            Some(group) => list.bind(blob(group.0)),
            None => list.bind(&filter.name),
        };
        let failed = [String::from("failed")];
        let states = if filter.dead { &failed[..] } else { &filter.states };
        let json = serde_json::to_string(states).expect("strings are JSON");
        let list = list.bind((!states.is_empty()).then_some(json));
        let list = if filter.group.is_some() { list.bind(&filter.name) } else { list }.bind(filter.dead);
        let found = list.fetch_all(&self.readers).await?;
        found.iter().map(row).collect()
    }

    pub(super) async fn waiting_after(&self, after: Option<(i64, TaskId)>, limit: usize) -> Result<Vec<Waiting>> {
        let (score, id) = after.map_or((i64::MIN, Vec::new()), |(score, id)| (score, blob(id.0)));
        let found = query(WAITING).bind(score).bind(id).bind(size(limit)).fetch_all(&self.readers).await?;
        let waiting = |columns: &SqliteRow| {
            Ok(Waiting {
                score: columns.try_get(0)?,
                id: TaskId(uuid(columns.try_get(1)?)?),
                namespace: Namespace(columns.try_get(2)?),
                pool: columns.try_get(3)?,
                agent: columns.try_get(4)?,
            })
        };
        found.iter().map(waiting).collect()
    }

    pub(super) async fn waiting_of_each(&self) -> Result<Vec<Backlog>> {
        let found = query(BACKLOG).fetch_all(&self.readers).await?;
        let backlog = |columns: &SqliteRow| {
            Ok(Backlog {
                namespace: Namespace(columns.try_get(0)?),
                pool: columns.try_get(1)?,
                agent: columns.try_get(2)?,
                tasks: columns.try_get::<i64, _>(3)?.unsigned_abs(),
                oldest: TaskId(uuid(columns.try_get(4)?)?),
            })
        };
        found.iter().map(backlog).collect()
    }

    pub(super) async fn expired_rows(&self, before: Timestamp, limit: usize) -> Result<Vec<Row>> {
        let found = query(EXPIRED).bind(before.0).bind(size(limit)).fetch_all(&self.readers).await?;
        found.iter().map(row).collect()
    }

    pub(super) async fn overdue_rows(&self, now: Timestamp, limit: usize) -> Result<Vec<Row>> {
        let found = query(OVERDUE).bind(now.0).bind(size(limit)).fetch_all(&self.readers).await?;
        found.iter().map(row).collect()
    }
}
