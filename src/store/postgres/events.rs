//! System events and their cursors.
//!
//! Transactions commit in another order than they begin, so a cursor that merely counts would pass over an event that is
//! committed later with a lower number. A cursor here is the writing transaction's id and the event's number in it, packed:
//! `(id + base) << 20 | number`. Readers see only what lies below the oldest transaction that still runs
//! (`pg_snapshot_xmin`): nothing can be added below it any more, so nobody who goes on from the last cursor loses or
//! repeats one. That needs no lock and no counter that writers would queue at. The price: an event is seen once every
//! transaction of the server that was running with it is over, milliseconds unless somebody writes for long elsewhere on
//! the same server.
//!
//! 43 bits of ids last 55 years at 5,000 a second; 20 bits are a million events of one commit. `base` is not zero after a
//! dump was restored into a server whose ids are lower (see `schema`).

use ado_proto::request::{Events, EventsFrom, SystemEvent};
use ado_proto::{Audience, TaskId, Timestamp, WorkerId};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, QueryBuilder, Row as _, query};

use super::super::{NewEvent, rules};
use super::commit::commit;
use super::error::Tried;
use super::{Postgres, int, scope, size, text};

/// Most events of one transaction: the numbers that 20 bits hold.
const MOST: usize = (1 << 20) - 1;

/// The highest cursor that is seen, or was before it was deleted; never past what may still be added.
pub(super) const LAST_EVENT: &str = "SELECT least(bound - 1, greatest(event_last, \
     (SELECT max(cursor) FROM event WHERE cursor < bound))) FROM (SELECT event_last, \
     (pg_snapshot_xmin(pg_current_snapshot())::text::bigint + event_base) << 20 AS bound FROM meta) AS seen";
// `$2` restricts to a namespace, `$4` is the highest cursor that is seen.
pub(super) const EVENTS_AFTER: &str = "SELECT cursor, at, kind, task, worker, text FROM event \
     WHERE cursor > $1 AND cursor <= $4 AND ($2::text IS NULL OR namespace = $2) ORDER BY cursor LIMIT $3";
// Times of transactions that ran at once may rise in another order than cursors, by moments.
pub(super) const EVENTS_SINCE: &str = "SELECT cursor, at, kind, task, worker, text FROM event \
     WHERE cursor >= (SELECT min(cursor) FROM (SELECT cursor FROM event WHERE at >= $1 ORDER BY at LIMIT 1000) AS near) \
     AND cursor <= $4 AND at >= $1 AND ($2::text IS NULL OR namespace = $2) ORDER BY cursor LIMIT $3";
pub(super) const EVENTS_TAIL: &str = "SELECT cursor, at, kind, task, worker, text FROM event \
     WHERE cursor > $1 AND cursor <= $4 AND ($2::text IS NULL OR namespace = $2) ORDER BY cursor DESC LIMIT $3";

/// Pushes an INSERT of events. One a transaction: their numbers begin anew.
pub(super) fn push_insert(sql: &mut QueryBuilder<sqlx::Postgres>, now: Timestamp, events: &[NewEvent]) {
    let events = &events[..events.len().min(MOST)];
    sql.push(
        "INSERT INTO event (cursor, at, namespace, kind, task, worker, text) \
         SELECT ((pg_current_xact_id()::text::bigint + event_base) << 20) | number, ",
    );
    sql.push_bind(now.0).push("::bigint, namespace, kind, task, worker, text FROM meta, unnest(");
    let mut arrays = sql.separated(", ");
    arrays.push_bind(events.iter().map(|event| scope(&event.audience).map(String::from)).collect::<Vec<_>>());
    arrays.push_bind(events.iter().map(|event| event.kind).collect::<Vec<_>>());
    arrays.push_bind(events.iter().map(|event| event.task.map(|task| task.0)).collect::<Vec<_>>());
    arrays.push_bind(events.iter().map(|event| event.worker.map(|worker| worker.0)).collect::<Vec<_>>());
    arrays.push_bind(events.iter().map(|event| text(&event.text).into_owned()).collect::<Vec<_>>());
    sql.push(") WITH ORDINALITY AS new (namespace, kind, task, worker, text, number)");
}

/// Adds events. Once a transaction.
pub(super) async fn insert(db: &mut PgConnection, now: Timestamp, events: &[NewEvent]) -> Tried<()> {
    if !events.is_empty() {
        let mut sql = QueryBuilder::new("");
        push_insert(&mut sql, now, events);
        sql.build().execute(db).await?;
    }
    Ok(())
}

fn event(columns: &PgRow) -> Tried<SystemEvent> {
    Ok(SystemEvent {
        cursor: columns.try_get::<i64, _>(0)?.unsigned_abs(),
        time: Timestamp(columns.try_get(1)?),
        kind: columns.try_get(2)?,
        task: columns.try_get::<Option<_>, _>(3)?.map(TaskId),
        worker: columns.try_get::<Option<_>, _>(4)?.map(WorkerId),
        text: columns.try_get(5)?,
    })
}

impl Postgres {
    pub(super) async fn read_events(&self, audience: &Audience, from: EventsFrom, limit: usize) -> Tried<Events> {
        // Before the events: what is added in between is for the next call.
        let last: i64 = query(LAST_EVENT).fetch_one(&self.pool).await?.try_get(0)?;
        let (sql, at, limit) = match from {
            EventsFrom::After(after) => (EVENTS_AFTER, int(after), limit),
            EventsFrom::Since(since) => (EVENTS_SINCE, since.0, limit),
            EventsFrom::Tail(count) => (EVENTS_TAIL, 0, limit.min(count as usize)),
        };
        let found =
            query(sql).bind(at).bind(scope(audience)).bind(size(limit)).bind(last).fetch_all(&self.pool).await?;
        let mut events = found.iter().map(event).collect::<Tried<Vec<_>>>()?;
        events.sort_by_key(|event| event.cursor);
        Ok(rules::events_page(events, from, last.unsigned_abs(), limit))
    }

    pub(super) async fn keep_events(&self, events: Vec<NewEvent>) -> Tried<()> {
        let mut tx = self.begin().await?;
        let now = self.clock.read(&mut tx).await?;
        insert(&mut tx, now, &events).await?;
        commit(tx).await
    }
}
