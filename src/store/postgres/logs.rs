//! Logs: chunks and lifecycle rows, merged by offset.
//!
//! Readers take no snapshot: a log only grows, so whatever is below the length read first is there, whole.

use std::sync::PoisonError;
use std::time::Duration;

use ado_proto::record::Record;
use ado_proto::{Offset, TaskId, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{Row as _, query, raw_sql};
use uuid::Uuid;

use super::super::log::Outline;
use super::super::{Page, log, rules};
use super::commit::commit;
use super::error::Tried;
use super::{Postgres, day, int, size};

/// Chunks whose sizes are looked at by one query; it brings no more of them than are wanted.
const CHUNKS: i64 = 256;

// The sizes of some chunks are summed up, and only those that are wanted are read whole. `$5` is the weight that is wanted.
pub(super) const CHUNKS_FROM: &str = "SELECT format, bytes, data, first_offset FROM (SELECT *, \
     sum(bytes) OVER (ORDER BY first_offset ROWS UNBOUNDED PRECEDING) - bytes AS before FROM (SELECT * FROM chunk \
     WHERE day = $1 AND task = $2 AND first_offset >= $3 AND first_offset < $4 ORDER BY first_offset LIMIT $6) AS near) \
     AS summed WHERE before < $5 ORDER BY first_offset";
pub(super) const CHUNKS_BEFORE: &str = "SELECT format, bytes, data, first_offset FROM (SELECT *, \
     sum(bytes) OVER (ORDER BY first_offset DESC ROWS UNBOUNDED PRECEDING) - bytes AS before FROM (SELECT * FROM chunk \
     WHERE day = $1 AND task = $2 AND first_offset < $3 ORDER BY first_offset DESC LIMIT $5) AS near) AS summed \
     WHERE before < $4 ORDER BY first_offset DESC";
const CHUNK_AT: &str = "SELECT max(first_offset) FROM chunk WHERE day = $1 AND task = $2 AND first_offset <= $3";
pub(super) const CHUNKS_SINCE: &str = "SELECT format, bytes, data FROM chunk \
     WHERE day = $1 AND task = $2 AND last_time >= $3 ORDER BY first_offset LIMIT 1";
const OWN_FROM: &str = "SELECT record FROM lifecycle WHERE task = $1 AND record_offset >= $2 AND record_offset < $3 \
     ORDER BY record_offset LIMIT $4";
const OWN_BEFORE: &str = "SELECT record FROM lifecycle WHERE task = $1 AND record_offset >= $2 AND record_offset < $3 \
     ORDER BY record_offset DESC LIMIT $4";

/// The first chunks of a log; [`outline`] reads them. The data of what was dropped says how much that was.
const OLDEST: &str = "SELECT first_offset, last_offset, first_time, last_time, bytes, \
     CASE format WHEN 2 THEN data END FROM chunk WHERE day = $1 AND task = $2 ORDER BY first_offset LIMIT $3";
const ENDED: &str = "SELECT id FROM task WHERE id < $1 AND ended_at < $2 ORDER BY id LIMIT $3 FOR UPDATE SKIP LOCKED";
/// Partitions and their days, oldest first.
const PARTITIONS: &str = "SELECT inhrelid::regclass::text, to_date(right(relname, 8), 'YYYYMMDD') - date '1970-01-01' \
     FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid WHERE inhparent = 'chunk'::regclass ORDER BY relname";
/// Tasks forgotten in one transaction.
const FORGET_AT_ONCE: i64 = 200;

/// A log as far as its length.
struct Log {
    task: TaskId,
    next_offset: Offset,
    ended: bool,
}

impl Postgres {
    pub(super) async fn read_forward(&self, task: TaskId, from: Offset, max_bytes: usize) -> Tried<Option<Page>> {
        let Some(log) = self.log(task).await? else { return Ok(None) };
        if from >= log.next_offset {
            return Ok(Some(log.page(Vec::new())));
        }
        let bulk = self.bulk_from(&log, from, max_bytes).await?;
        // Lifecycle rows are wanted as far as the bulk reaches: to the log's end if all of it was taken.
        let reach = if log::weight(&bulk) >= max_bytes { bulk.last().map(|record| record.offset) } else { None };
        let own = self.own(OWN_FROM, task, from, reach.unwrap_or(log.next_offset), max_bytes).await?;
        let mut records = log::with_gaps(log::merge(bulk, own), from);
        records.truncate(log::fitting(&records, max_bytes));
        if records.is_empty() {
            return Err(log::hole(from).into());
        }
        log::dense(&records, Some(from))?;
        Ok(Some(log.page(records)))
    }

    pub(super) async fn read_backward(&self, task: TaskId, before: Offset, max_bytes: usize) -> Tried<Option<Page>> {
        let Some(log) = self.log(task).await? else { return Ok(None) };
        let before = before.min(log.next_offset);
        let bulk = self.bulk_before(&log, before, max_bytes).await?;
        let reach = if log::weight(&bulk) >= max_bytes { bulk.first().map(|record| record.offset) } else { None };
        let own = self.own(OWN_BEFORE, task, reach.unwrap_or(Offset(0)), before, max_bytes).await?;
        let mut records = log::with_gaps(log::merge(bulk, own), Offset(0));
        let first = records.len() - log::fitting(records.iter().rev(), max_bytes);
        records.drain(..first);
        log::dense(&records, None)?;
        if records.last().map_or(before.0, |last| last.offset.0 + 1) != before.0 {
            return Err(log::hole(before).into());
        }
        Ok(Some(log.page(records)))
    }

    pub(super) async fn first_since(&self, task: TaskId, since: Timestamp) -> Tried<Option<Offset>> {
        let Some(log) = self.log(task).await? else { return Ok(None) };
        let own = query("SELECT min(record_offset) FROM lifecycle WHERE task = $1 AND time >= $2")
            .bind(task.0)
            .bind(since.0)
            .fetch_one(&self.pool)
            .await?;
        let own: Option<i64> = own.try_get(0)?;
        let chunk = query(CHUNKS_SINCE).bind(day(task)).bind(task.0).bind(since.0).fetch_optional(&self.pool).await?;
        let bulk = match &chunk {
            Some(columns) => records(columns)?.into_iter().find(|record| record.time >= since),
            None => None,
        };
        let own = own.map(|offset| Offset(offset.unsigned_abs()));
        let first = own.into_iter().chain(bulk.map(|record| record.offset)).min();
        // What was appended after the length was read counts as not there yet.
        Ok(Some(first.unwrap_or(log.next_offset).min(log.next_offset)))
    }

    pub(super) async fn shorten_log(&self, task: TaskId, most: u64) -> Tried<u64> {
        loop {
            let total = query(
                "SELECT coalesce(sum(bytes), 0)::bigint FROM chunk WHERE day = $1 AND task = $2 AND format <> $3",
            )
            .bind(day(task))
            .bind(task.0)
            .bind(i16::from(log::DROPPED))
            .fetch_one(&self.pool)
            .await?;
            let total = total.try_get::<i64, _>(0)?.unsigned_abs();
            if total <= most {
                return Ok(total);
            }
            let mut tx = self.begin().await?;
            let oldest = query(OLDEST).bind(day(task)).bind(task.0).bind(log::DROP_AT_ONCE).fetch_all(&mut *tx).await?;
            let oldest = oldest.iter().map(outline).collect::<Tried<Vec<_>>>()?;
            let Some((chunk, _)) = log::shorten(&oldest, total, most) else {
                tx.rollback().await?;
                return Ok(total);
            };
            query("DELETE FROM chunk WHERE day = $1 AND task = $2 AND first_offset <= $3")
                .bind(day(task))
                .bind(task.0)
                .bind(int(chunk.last.0))
                .execute(&mut *tx)
                .await?;
            query(
                "INSERT INTO chunk (day, task, first_offset, last_offset, first_time, last_time, newlines, bytes, format, \
                 data) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            )
            .bind(day(task))
            .bind(task.0)
            .bind(int(chunk.first.0))
            .bind(int(chunk.last.0))
            .bind(chunk.first_time.0)
            .bind(chunk.last_time.0)
            .bind(size(chunk.newlines))
            .bind(size(chunk.bytes))
            .bind(i16::from(chunk.format))
            .bind(chunk.data)
            .execute(&mut *tx)
            .await?;
            commit(tx).await?;
        }
    }

    /// Whole days first: their chunks go with their partition.
    pub(super) async fn forget_ended(&self, ended_for: Duration) -> Tried<u64> {
        let before = rules::cutoff(self.read_clock().await?, ended_for);
        let mut forgotten = 0;
        let days = query(PARTITIONS).fetch_all(&self.pool).await?;
        for columns in &days {
            let (name, day): (String, i32) = (columns.try_get(0)?, columns.try_get(1)?);
            if day < super::day_of(u64::try_from(before.0 / 1000).unwrap_or(0)) {
                forgotten += self.forget_day(&name, day, before).await?;
            }
        }
        loop {
            let mut tx = self.begin().await?;
            let old = query(ENDED)
                .bind(rules::lowest_id(before))
                .bind(before.0)
                .bind(FORGET_AT_ONCE)
                .fetch_all(&mut *tx)
                .await?;
            if old.is_empty() {
                tx.rollback().await?;
                return Ok(forgotten);
            }
            let ids = old.iter().map(|columns| columns.try_get::<Uuid, _>(0)).collect::<Result<Vec<_>, _>>()?;
            for id in &ids {
                query("DELETE FROM chunk WHERE day = $1 AND task = $2")
                    .bind(day(TaskId(*id)))
                    .bind(id)
                    .execute(&mut *tx)
                    .await?;
            }
            query("DELETE FROM lifecycle WHERE task = ANY ($1)").bind(&ids).execute(&mut *tx).await?;
            query("DELETE FROM task WHERE id = ANY ($1)").bind(&ids).execute(&mut *tx).await?;
            commit(tx).await?;
            forgotten += ids.len() as u64;
        }
    }

    /// Drops a day's partition with the tasks of that day, if all of them ended long enough ago.
    async fn forget_day(&self, name: &str, day: i32, before: Timestamp) -> Tried<u64> {
        let at = |day: i32| rules::lowest_id(Timestamp(i64::from(day) * super::DAY_MS as i64 * 1000));
        let (from, to) = (at(day), at(day.saturating_add(1)));
        let mut tx = self.begin().await?;
        let kept =
            query("SELECT 1 FROM task WHERE id >= $1 AND id < $2 AND (ended_at IS NULL OR ended_at >= $3) LIMIT 1");
        if kept.bind(from).bind(to).bind(before.0).fetch_optional(&mut *tx).await?.is_some() {
            tx.rollback().await?;
            return Ok(0);
        }
        // Dropping waits for all who read any log, and lets nobody begin meanwhile: not for long.
        raw_sql("SET LOCAL lock_timeout = '200ms'; SET LOCAL statement_timeout = 0").execute(&mut *tx).await?;
        let drop = sqlx::AssertSqlSafe(format!("DROP TABLE {name}"));
        if let Err(error) = raw_sql(drop).execute(&mut *tx).await {
            tracing::debug!(%error, name, "a day of logs is dropped another time");
            tx.rollback().await?;
            return Ok(0);
        }
        query("DELETE FROM lifecycle WHERE task >= $1 AND task < $2").bind(from).bind(to).execute(&mut *tx).await?;
        let deleted =
            query("DELETE FROM task WHERE id >= $1 AND id < $2").bind(from).bind(to).execute(&mut *tx).await?;
        commit(tx).await?;
        self.days.lock().unwrap_or_else(PoisonError::into_inner).remove(&day);
        Ok(deleted.rows_affected())
    }

    async fn log(&self, task: TaskId) -> Tried<Option<Log>> {
        let found = query("SELECT next_offset, ended_at IS NOT NULL FROM task WHERE id = $1")
            .bind(task.0)
            .fetch_optional(&self.pool)
            .await?;
        let Some(columns) = found else { return Ok(None) };
        let next_offset = Offset(columns.try_get::<i64, _>(0)?.unsigned_abs());
        Ok(Some(Log { task, next_offset, ended: columns.try_get(1)? }))
    }

    /// Lifecycle records of a range.
    async fn own(
        &self,
        sql: &'static str,
        task: TaskId,
        from: Offset,
        to: Offset,
        max_bytes: usize,
    ) -> Tried<Vec<Record>> {
        let found = query(sql)
            .bind(task.0)
            .bind(int(from.0))
            .bind(int(to.0))
            .bind(size(log::most_rows(max_bytes)))
            .fetch_all(&self.pool)
            .await?;
        found.iter().map(|columns| Ok(log::decode_one(columns.try_get(0)?)?)).collect()
    }

    /// Bulk records from an offset on, until they weigh `max_bytes` or the log ends.
    async fn bulk_from(&self, log: &Log, from: Offset, max_bytes: usize) -> Tried<Vec<Record>> {
        let begins =
            query(CHUNK_AT).bind(day(log.task)).bind(log.task.0).bind(int(from.0)).fetch_one(&self.pool).await?;
        let mut next = begins.try_get::<Option<i64>, _>(0)?.unwrap_or(0);
        let mut bulk = Vec::new();
        let mut total = 0;
        loop {
            let chunks = query(CHUNKS_FROM)
                .bind(day(log.task))
                .bind(log.task.0)
                .bind(next)
                .bind(int(log.next_offset.0))
                .bind(size(max_bytes.saturating_sub(total).max(1)))
                .bind(CHUNKS)
                .fetch_all(&self.pool)
                .await?;
            for columns in &chunks {
                for record in records(columns)?.into_iter().filter(|record| record.offset >= from) {
                    total += record.weight();
                    bulk.push(record);
                }
                next = columns.try_get::<i64, _>(3)? + 1;
            }
            // The first chunk may begin before what is wanted: then some weight is still missing.
            if chunks.is_empty() || total >= max_bytes.max(1) {
                return Ok(bulk);
            }
        }
    }

    /// Bulk records before an offset, in offset order, back until they weigh `max_bytes` or the log begins.
    async fn bulk_before(&self, log: &Log, before: Offset, max_bytes: usize) -> Tried<Vec<Record>> {
        let mut end = int(before.0);
        let mut bulk = Vec::new();
        let mut total = 0;
        loop {
            let chunks = query(CHUNKS_BEFORE)
                .bind(day(log.task))
                .bind(log.task.0)
                .bind(end)
                .bind(size(max_bytes.saturating_sub(total).max(1)))
                .bind(CHUNKS)
                .fetch_all(&self.pool)
                .await?;
            for columns in &chunks {
                for record in records(columns)?.into_iter().rev().filter_map(|record| log::before(record, before)) {
                    total += record.weight();
                    bulk.push(record);
                }
                end = columns.try_get(3)?;
            }
            if chunks.is_empty() || total >= max_bytes.max(1) {
                bulk.reverse();
                return Ok(bulk);
            }
        }
    }
}

impl Log {
    fn page(&self, records: Vec<Record>) -> Page {
        Page { records, next_offset: self.next_offset, ended: self.ended }
    }
}

/// The records of a chunk's columns `format, bytes, data`.
fn records(columns: &PgRow) -> Tried<Vec<Record>> {
    let bytes = usize::try_from(columns.try_get::<i64, _>(1)?).unwrap_or(usize::MAX);
    let format = u8::try_from(columns.try_get::<i16, _>(0)?).unwrap_or(u8::MAX);
    let reader = log::unpack(format, bytes, columns.try_get(2)?)?;
    reader.map(|record| record.map_err(|error| log::damaged(error).into())).collect()
}

/// The columns of [`OLDEST`].
fn outline(columns: &PgRow) -> Tried<Outline> {
    let offset = |at| Ok::<_, sqlx::Error>(Offset(columns.try_get::<i64, _>(at)?.unsigned_abs()));
    let dropped: Option<Vec<u8>> = columns.try_get(5)?;
    Ok(Outline {
        first: offset(0)?,
        last: offset(1)?,
        first_time: Timestamp(columns.try_get(2)?),
        last_time: Timestamp(columns.try_get(3)?),
        dropped: dropped.is_some(),
        bytes: match dropped {
            Some(data) => log::dropped_bytes(data)?,
            None => columns.try_get::<i64, _>(4)?.unsigned_abs(),
        },
    })
}
