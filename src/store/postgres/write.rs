//! Everything a commit writes, as one statement: a round trip, whatever it is.
//!
//! Arrays of columns, not COPY: as fast up to half a megabyte (beyond a few it takes half as long again, see
//! `benches/append.rs`), and COPY would be two more round trips, whose caller, giving up in the middle, costs the connection.

use std::collections::BTreeSet;

use ado_proto::record::{Record, encode_all};
use ado_proto::{TaskId, Timestamp};
use bytes::Bytes;
use sqlx::{PgConnection, QueryBuilder, Row as _};
use uuid::Uuid;

use super::super::batch::Staged;
use super::super::fold::{self, Columns, tail};
use super::super::log::{self, Chunk};
use super::super::{Audit, Error, NewEvent, Row};
use super::commit::KeyColumns;
use super::error::Tried;
use super::{day, events, int, size, text};

type Sql = QueryBuilder<sqlx::Postgres>;

/// What a transaction writes.
pub(super) struct Writes {
    now: Timestamp,
    created: Vec<Row>,
    updated: Vec<Row>,
    lifecycle: Vec<(TaskId, Record)>,
    chunks: Vec<(TaskId, Chunk)>,
    pub(super) events: Vec<NewEvent>,
    pub(super) answers: Vec<(KeyColumns, Bytes)>,
    pub(super) audit: Vec<Audit>,
}

impl Writes {
    pub(super) fn at(now: Timestamp) -> Self {
        Self {
            now,
            created: Vec::new(),
            updated: Vec::new(),
            lifecycle: Vec::new(),
            chunks: Vec::new(),
            events: Vec::new(),
            answers: Vec::new(),
            audit: Vec::new(),
        }
    }

    /// A changed task; `held` are those that were there.
    pub(super) fn task(&mut self, staged: Staged, held: &BTreeSet<TaskId>) {
        let id = staged.row.task.id;
        self.chunks.extend(log::pack(&staged.records).into_iter().map(|chunk| (id, chunk)));
        let own = staged.records.into_iter().filter(|record| !log::is_bulk(record));
        self.lifecycle.extend(own.map(|record| (id, record)));
        match held.contains(&id) {
            true => self.updated.push(staged.row),
            false => self.created.push(staged.row),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.created.is_empty()
            && self.updated.is_empty()
            && self.events.is_empty()
            && self.answers.is_empty()
            && self.audit.is_empty()
    }

    pub(super) async fn execute(self, db: &mut PgConnection) -> Tried<()> {
        let created = self.created.len();
        let mut sql = Sql::new("WITH clock AS (SELECT ");
        sql.push_bind(self.now.0).push("::bigint AS now)");
        self.push_created(&mut sql);
        self.push_updated(&mut sql);
        self.push_lifecycle(&mut sql);
        self.push_answers(&mut sql);
        if !self.events.is_empty() {
            sql.push(", events AS (");
            events::push_insert(&mut sql, self.now, &self.events);
            sql.push(")");
        }
        self.push_audit(&mut sql);
        self.push_chunks(&mut sql);
        sql.push(match created {
            0 => " SELECT 0::bigint",
            _ => " SELECT count(*) FROM created",
        });
        let columns = sql.build().fetch_one(db).await?;
        if columns.try_get::<i64, _>(0)? != size(created) {
            return Err(Error::Unavailable("somebody else made the same task at this moment".into()).into());
        }
        Ok(())
    }

    fn push_created(&self, sql: &mut Sql) {
        if self.created.is_empty() {
            return;
        }
        let of = |column: fn(&Row) -> String| self.created.iter().map(column).collect::<Vec<_>>();
        let groups = || self.created.iter().map(|row| row.task.group.as_ref());
        sql.push(
            ", created AS (INSERT INTO task (short, namespace, pool, agent, name, group_id, group_index, group_short, id, \
             state, ended_at, score, lease_worker, lease_incarnation, lease_expires_at, checkpoint, due_at, settled, \
             next_offset, fold, last_time) SELECT new.*, now FROM clock, unnest(",
        );
        let mut arrays = sql.separated(", ");
        arrays.push_bind(of(|row| tail(row.task.id.short())));
        arrays.push_bind(of(|row| text(&row.task.namespace.0).into_owned()));
        arrays.push_bind(of(|row| text(&row.task.spec.pool).into_owned()));
        arrays.push_bind(of(|row| text(&row.task.spec.agent).into_owned()));
        let names = self.created.iter().map(|row| row.task.name.as_deref().map(|name| text(name).into_owned()));
        arrays.push_bind(names.collect::<Vec<_>>());
        arrays.push_bind(groups().map(|group| group.map(|group| group.id.0)).collect::<Vec<_>>());
        arrays.push_bind(groups().map(|group| group.map(|group| i64::from(group.index))).collect::<Vec<_>>());
        arrays.push_bind(groups().map(|group| group.map(|group| tail(group.id.short()))).collect::<Vec<_>>());
        push_columns(sql, ", ", &self.created);
        sql.push(") AS new ON CONFLICT (id) DO NOTHING RETURNING 1)");
    }

    fn push_updated(&self, sql: &mut Sql) {
        if self.updated.is_empty() {
            return;
        }
        sql.push(
            ", updated AS (UPDATE task SET state = new.state, ended_at = new.ended_at, score = new.score, \
             lease_worker = new.lease_worker, lease_incarnation = new.lease_incarnation, \
             lease_expires_at = new.lease_expires_at, checkpoint = new.checkpoint, due_at = new.due_at, \
             settled = new.settled, next_offset = new.next_offset, fold = new.fold, last_time = now FROM clock, unnest(",
        );
        push_columns(sql, "", &self.updated);
        sql.push(
            ") AS new (id, state, ended_at, score, lease_worker, lease_incarnation, lease_expires_at, checkpoint, \
             due_at, settled, next_offset, fold) WHERE task.id = new.id)",
        );
    }

    fn push_lifecycle(&self, sql: &mut Sql) {
        if self.lifecycle.is_empty() {
            return;
        }
        let records = || self.lifecycle.iter().map(|(_, record)| record);
        sql.push(", lifecycles AS (INSERT INTO lifecycle (task, record_offset, time, record) SELECT * FROM unnest(");
        let mut arrays = sql.separated(", ");
        arrays.push_bind(self.lifecycle.iter().map(|(task, _)| task.0).collect::<Vec<_>>());
        arrays.push_bind(records().map(|record| int(record.offset.0)).collect::<Vec<_>>());
        arrays.push_bind(records().map(|record| record.time.0).collect::<Vec<_>>());
        arrays.push_bind(records().map(|record| encode_all([record]).to_vec()).collect::<Vec<_>>());
        sql.push("))");
    }

    fn push_chunks(self, sql: &mut Sql) {
        if self.chunks.is_empty() {
            return;
        }
        let longs = |column: fn(&Chunk) -> i64| self.chunks.iter().map(|(_, chunk)| column(chunk)).collect::<Vec<_>>();
        sql.push(
            ", chunks AS (INSERT INTO chunk (day, task, first_offset, last_offset, first_time, last_time, newlines, \
             bytes, format, data) SELECT * FROM unnest(",
        );
        let mut arrays = sql.separated(", ");
        arrays.push_bind(self.chunks.iter().map(|(task, _)| day(*task)).collect::<Vec<_>>());
        arrays.push_bind(self.chunks.iter().map(|(task, _)| task.0).collect::<Vec<_>>());
        arrays.push_bind(longs(|chunk| int(chunk.first.0)));
        arrays.push_bind(longs(|chunk| int(chunk.last.0)));
        arrays.push_bind(longs(|chunk| chunk.first_time.0));
        arrays.push_bind(longs(|chunk| chunk.last_time.0));
        arrays.push_bind(longs(|chunk| size(chunk.newlines)));
        arrays.push_bind(longs(|chunk| size(chunk.bytes)));
        arrays.push_bind(self.chunks.iter().map(|(_, chunk)| i16::from(chunk.format)).collect::<Vec<_>>());
        arrays.push_bind(self.chunks.into_iter().map(|(_, chunk)| chunk.data).collect::<Vec<_>>());
        sql.push("))");
    }

    fn push_answers(&self, sql: &mut Sql) {
        if self.answers.is_empty() {
            return;
        }
        let keys = || self.answers.iter().map(|(key, _)| key);
        sql.push(", answers AS (UPDATE request SET answer = new.answer FROM unnest(");
        let mut arrays = sql.separated(", ");
        arrays.push_bind(keys().map(|key| key.id).collect::<Vec<_>>());
        arrays.push_bind(keys().map(|key| key.kind).collect::<Vec<_>>());
        arrays.push_bind(keys().map(|key| key.principal.clone()).collect::<Vec<_>>());
        arrays.push_bind(self.answers.iter().map(|(_, answer)| answer.to_vec()).collect::<Vec<_>>());
        sql.push(
            ") AS new (id, kind, principal, answer) \
             WHERE request.id = new.id AND request.kind = new.kind AND request.principal = new.principal)",
        );
    }

    fn push_audit(&self, sql: &mut Sql) {
        if self.audit.is_empty() {
            return;
        }
        sql.push(", audits AS (");
        push_audit(sql, self.now, &self.audit);
        sql.push(")");
    }
}

/// Pushes the arrays `id, state, ended_at, score, lease_worker, lease_incarnation, lease_expires_at, checkpoint,
/// due_at, settled, next_offset, fold` of rows.
fn push_columns(sql: &mut Sql, before: &'static str, rows: &[Row]) {
    let columns: Vec<_> = rows.iter().map(Columns::of).collect();
    let longs = |column: fn(&Columns) -> Option<i64>| columns.iter().map(column).collect::<Vec<_>>();
    let ids = |column: fn(&Columns) -> Option<Uuid>| columns.iter().map(column).collect::<Vec<_>>();
    sql.push(before);
    let mut arrays = sql.separated(", ");
    arrays.push_bind(rows.iter().map(|row| row.task.id.0).collect::<Vec<_>>());
    arrays.push_bind(columns.iter().map(|columns| columns.state).collect::<Vec<_>>());
    arrays.push_bind(longs(|columns| columns.ended_at.map(|at| at.0)));
    arrays.push_bind(longs(|columns| columns.score));
    arrays.push_bind(ids(|columns| columns.lease.map(|(worker, _, _)| worker.0)));
    arrays.push_bind(ids(|columns| columns.lease.and_then(|(_, incarnation, _)| incarnation).map(|id| id.0)));
    arrays.push_bind(longs(|columns| columns.lease.map(|(_, _, expires_at)| expires_at.0)));
    arrays.push_bind(longs(|columns| columns.checkpoint.map(|offset| int(offset.0))));
    arrays.push_bind(longs(|columns| columns.due_at.map(|at| at.0)));
    arrays.push_bind(ids(|columns| columns.settled));
    arrays.push_bind(rows.iter().map(|row| int(row.task.next_offset.0)).collect::<Vec<_>>());
    arrays.push_bind(rows.iter().map(|row| fold::encode(&row.task)).collect::<Vec<_>>());
}

/// Pushes an INSERT of lines of the audit log.
pub(super) fn push_audit(sql: &mut Sql, now: Timestamp, lines: &[Audit]) {
    sql.push("INSERT INTO audit (at, namespace, principal, action, target, result, count) SELECT ").push_bind(now.0);
    sql.push("::bigint, line.* FROM unnest(");
    let texts =
        |column: fn(&Audit) -> &str| lines.iter().map(|line| text(column(line)).into_owned()).collect::<Vec<_>>();
    let mut arrays = sql.separated(", ");
    arrays.push_bind(texts(|line| &line.namespace.0));
    arrays.push_bind(texts(|line| &line.principal));
    arrays.push_bind(texts(|line| line.action));
    arrays.push_bind(texts(|line| &line.target));
    arrays.push_bind(texts(|line| &line.result));
    arrays.push_bind(lines.iter().map(|line| i64::from(line.count)).collect::<Vec<_>>());
    sql.push(") AS line");
}
