//! Logs: chunks and lifecycle rows, merged by offset.
//!
//! Readers take no snapshot: a log only grows, so whatever is below the length read first is there, whole.

use ado_proto::record::Record;
use ado_proto::{Offset, TaskId, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{Row as _, query};

use super::super::{Page, log};
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
        let mut records = log::merge(bulk, own);
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
        let mut records = log::merge(bulk, own);
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
                for record in records(columns)?.into_iter().rev().filter(|record| record.offset < before) {
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
        // Nothing is dropped from logs yet.
        Page { records, first_kept: Offset(0), next_offset: self.next_offset, ended: self.ended }
    }
}

/// The records of a chunk's columns `format, bytes, data`.
fn records(columns: &PgRow) -> Tried<Vec<Record>> {
    let bytes = usize::try_from(columns.try_get::<i64, _>(1)?).unwrap_or(usize::MAX);
    let format = u8::try_from(columns.try_get::<i16, _>(0)?).unwrap_or(u8::MAX);
    let reader = log::unpack(format, bytes, columns.try_get(2)?)?;
    reader.map(|record| record.map_err(|error| log::damaged(error).into())).collect()
}
