//! Logs: chunks and lifecycle rows, merged by offset.
//!
//! Readers take no snapshot: a log only grows, so whatever is below the length read first is there, whole.

use std::time::Duration;

use ado_proto::record::{Record, encode_all};
use ado_proto::{Offset, TaskId, Timestamp};
use futures_util::TryStreamExt;
use rusqlite::params;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection, query};

use super::super::log::{Chunk, Outline};
use super::super::{Page, Result, log, rules};
use super::tasks::blob;
use super::transact::Transaction;
use super::{Sqlite, int, size};

pub(super) const CHUNKS_SINCE: &str =
    "SELECT format, bytes, data FROM chunk WHERE task = ? AND last_time >= ? ORDER BY first_offset LIMIT 1";

/// The first chunks of a log; [`outline`] reads them. The data of what was dropped says how much that was.
const OLDEST: &str = "SELECT first_offset, last_offset, first_time, last_time, bytes, CASE format WHEN 2 THEN data END \
     FROM chunk WHERE task = ? ORDER BY first_offset LIMIT ?";
pub(super) const ENDED: &str = "SELECT no FROM task WHERE id < ? AND ended_at < ? ORDER BY id LIMIT ?";
/// Tasks forgotten in one transaction, and most bytes of the log of each.
const FORGET_AT_ONCE: i64 = 50;
const FORGET_BYTES: u64 = 1024 * 1024;

/// A log as far as its length.
struct Log {
    task: i64,
    next_offset: Offset,
    ended: bool,
}

const INSERT: &str = "INSERT INTO chunk (task, first_offset, last_offset, first_time, last_time, newlines, bytes, format, \
     data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)";

/// Adds records to a log.
pub(super) fn append(tx: &Transaction<'_>, task: i64, records: &[Record]) -> Result<()> {
    for record in records.iter().filter(|record| !log::is_bulk(record)) {
        tx.execute(
            "INSERT INTO lifecycle (task, offset, time, record) VALUES (?, ?, ?, ?)",
            params![task, int(record.offset.0), record.time.0, &encode_all([record])[..]],
        )?;
    }
    for chunk in log::pack(records) {
        let (first, last) = (int(chunk.first.0), int(chunk.last.0));
        let (newlines, bytes) = (size(chunk.newlines), size(chunk.bytes));
        let times = (chunk.first_time.0, chunk.last_time.0);
        tx.execute(INSERT, params![task, first, last, times.0, times.1, newlines, bytes, chunk.format, chunk.data])?;
    }
    Ok(())
}

async fn insert(connection: &mut SqliteConnection, task: i64, chunk: Chunk) -> Result<()> {
    query(INSERT)
        .bind(task)
        .bind(int(chunk.first.0))
        .bind(int(chunk.last.0))
        .bind(chunk.first_time.0)
        .bind(chunk.last_time.0)
        .bind(size(chunk.newlines))
        .bind(size(chunk.bytes))
        .bind(chunk.format)
        .bind(chunk.data)
        .execute(connection)
        .await?;
    Ok(())
}

impl Sqlite {
    pub(super) async fn read_forward(&self, task: TaskId, from: Offset, max_bytes: usize) -> Result<Option<Page>> {
        let Some(log) = self.log(task).await? else { return Ok(None) };
        if from >= log.next_offset {
            return Ok(Some(log.page(Vec::new())));
        }
        let bulk = self.bulk_from(&log, from, max_bytes).await?;
        // Lifecycle rows are wanted as far as the bulk reaches: to the log's end if all of it was taken.
        let reach = if log::weight(&bulk) >= max_bytes { bulk.last().map(|record| record.offset) } else { None };
        let own =
            query("SELECT record FROM lifecycle WHERE task = ? AND offset >= ? AND offset < ? ORDER BY offset LIMIT ?")
                .bind(log.task)
                .bind(int(from.0))
                .bind(int(reach.unwrap_or(log.next_offset).0))
                .bind(size(log::most_rows(max_bytes)))
                .fetch_all(&self.readers)
                .await?;
        let mut records = log::with_gaps(log::merge(bulk, self::own(&own)?), from);
        records.truncate(log::fitting(&records, max_bytes));
        if records.is_empty() {
            return Err(log::hole(from));
        }
        log::dense(&records, Some(from))?;
        Ok(Some(log.page(records)))
    }

    pub(super) async fn read_backward(&self, task: TaskId, before: Offset, max_bytes: usize) -> Result<Option<Page>> {
        let Some(log) = self.log(task).await? else { return Ok(None) };
        let before = before.min(log.next_offset);
        let bulk = self.bulk_before(&log, before, max_bytes).await?;
        let reach = if log::weight(&bulk) >= max_bytes { bulk.first().map(|record| record.offset) } else { None };
        let own = query(
            "SELECT record FROM lifecycle WHERE task = ? AND offset >= ? AND offset < ? ORDER BY offset DESC LIMIT ?",
        )
        .bind(log.task)
        .bind(int(reach.unwrap_or(Offset(0)).0))
        .bind(int(before.0))
        .bind(size(log::most_rows(max_bytes)))
        .fetch_all(&self.readers)
        .await?;
        let mut records = log::with_gaps(log::merge(bulk, self::own(&own)?), Offset(0));
        let first = records.len() - log::fitting(records.iter().rev(), max_bytes);
        records.drain(..first);
        log::dense(&records, None)?;
        if records.last().map_or(before.0, |last| last.offset.0 + 1) != before.0 {
            return Err(log::hole(before));
        }
        Ok(Some(log.page(records)))
    }

    pub(super) async fn first_since(&self, task: TaskId, since: Timestamp) -> Result<Option<Offset>> {
        let Some(log) = self.log(task).await? else { return Ok(None) };
        let own = query("SELECT min(offset) FROM lifecycle WHERE task = ? AND time >= ?")
            .bind(log.task)
            .bind(since.0)
            .fetch_one(&self.readers)
            .await?;
        let own: Option<i64> = own.try_get(0)?;
        let chunk = query(CHUNKS_SINCE).bind(log.task).bind(since.0).fetch_optional(&self.readers).await?;
        let bulk = match &chunk {
            Some(columns) => records(columns)?.into_iter().find(|record| record.time >= since),
            None => None,
        };
        let own = own.map(|offset| Offset(offset.unsigned_abs()));
        let first = own.into_iter().chain(bulk.map(|record| record.offset)).min();
        // What was appended after the length was read counts as not there yet.
        Ok(Some(first.unwrap_or(log.next_offset).min(log.next_offset)))
    }

    pub(super) async fn shorten_log(&self, task: TaskId, most: u64) -> Result<u64> {
        let Some(log) = self.log(task).await? else { return Ok(0) };
        self.shorten(log.task, most).await
    }

    /// A part at a time: others write between.
    async fn shorten(&self, no: i64, most: u64) -> Result<u64> {
        loop {
            let total = query("SELECT coalesce(sum(bytes), 0) FROM chunk WHERE task = ? AND format <> ?")
                .bind(no)
                .bind(log::DROPPED)
                .fetch_one(&self.readers)
                .await?;
            let total = total.try_get::<i64, _>(0)?.unsigned_abs();
            if total <= most {
                return Ok(total);
            }
            let mut tx = self.write().await?;
            let oldest = query(OLDEST).bind(no).bind(log::DROP_AT_ONCE).fetch_all(&mut tx.connection).await?;
            let oldest = oldest.iter().map(outline).collect::<Result<Vec<_>>>()?;
            let Some((chunk, _)) = log::shorten(&oldest, total, most) else {
                tx.undo().await?;
                return Ok(total);
            };
            query("DELETE FROM chunk WHERE task = ? AND first_offset <= ?")
                .bind(no)
                .bind(int(chunk.last.0))
                .execute(&mut tx.connection)
                .await?;
            insert(&mut tx.connection, no, chunk).await?;
            tx.commit().await?;
        }
    }

    pub(super) async fn forget_ended(&self, ended_for: Duration) -> Result<u64> {
        let mut forgotten = 0;
        loop {
            let before = rules::cutoff(self.clock.now(), ended_for);
            let old = query(ENDED)
                .bind(blob(rules::lowest_id(before)))
                .bind(before.0)
                .bind(FORGET_AT_ONCE)
                .fetch_all(&self.readers)
                .await?;
            if old.is_empty() {
                return Ok(forgotten);
            }
            for columns in &old {
                // A long log in one piece would keep others from writing for as long.
                self.shorten(columns.try_get(0)?, FORGET_BYTES).await?;
            }
            let mut tx = self.write().await?;
            for columns in &old {
                let no: i64 = columns.try_get(0)?;
                for sql in [
                    "DELETE FROM chunk WHERE task = ?",
                    "DELETE FROM lifecycle WHERE task = ?",
                    "DELETE FROM task WHERE no = ?",
                ] {
                    query(sql).bind(no).execute(&mut tx.connection).await?;
                }
            }
            tx.commit().await?;
            forgotten += old.len() as u64;
        }
    }

    async fn log(&self, task: TaskId) -> Result<Option<Log>> {
        let found = query("SELECT no, next_offset, ended_at IS NOT NULL FROM task WHERE id = ?")
            .bind(blob(task.0))
            .fetch_optional(&self.readers)
            .await?;
        let Some(columns) = found else { return Ok(None) };
        let next_offset = Offset(columns.try_get::<i64, _>(1)?.unsigned_abs());
        Ok(Some(Log { task: columns.try_get(0)?, next_offset, ended: columns.try_get(2)? }))
    }

    /// Bulk records from an offset on, until they weigh `max_bytes` or the log ends.
    async fn bulk_from(&self, log: &Log, from: Offset, max_bytes: usize) -> Result<Vec<Record>> {
        let mut chunks = query(
            "SELECT format, bytes, data FROM chunk WHERE task = ?1 AND first_offset < ?3 AND first_offset >= \
             coalesce((SELECT max(first_offset) FROM chunk WHERE task = ?1 AND first_offset <= ?2), 0) \
             ORDER BY first_offset",
        )
        .bind(log.task)
        .bind(int(from.0))
        .bind(int(log.next_offset.0))
        .fetch(&self.readers);
        let mut bulk = Vec::new();
        let mut total = 0;
        while total < max_bytes.max(1) {
            let Some(columns) = chunks.try_next().await? else { break };
            let wanted = records(&columns)?.into_iter().filter(|record| record.offset >= from);
            for record in wanted {
                total += record.weight();
                bulk.push(record);
            }
        }
        Ok(bulk)
    }

    /// Bulk records before an offset, in offset order, back until they weigh `max_bytes` or the log begins.
    async fn bulk_before(&self, log: &Log, before: Offset, max_bytes: usize) -> Result<Vec<Record>> {
        let mut chunks = query(
            "SELECT format, bytes, data FROM chunk WHERE task = ? AND first_offset < ? ORDER BY first_offset DESC",
        )
        .bind(log.task)
        .bind(int(before.0))
        .fetch(&self.readers);
        let mut bulk = Vec::new();
        let mut total = 0;
        while total < max_bytes.max(1) {
            let Some(columns) = chunks.try_next().await? else { break };
            let wanted = records(&columns)?.into_iter().rev().filter_map(|record| log::before(record, before));
            for record in wanted {
                total += record.weight();
                bulk.push(record);
            }
        }
        bulk.reverse();
        Ok(bulk)
    }
}

impl Log {
    fn page(&self, records: Vec<Record>) -> Page {
        Page { records, next_offset: self.next_offset, ended: self.ended }
    }
}

/// The records of a chunk's columns `format, bytes, data`.
fn records(columns: &SqliteRow) -> Result<Vec<Record>> {
    let bytes = usize::try_from(columns.try_get::<i64, _>(1)?).unwrap_or(usize::MAX);
    let reader = log::unpack(columns.try_get(0)?, bytes, columns.try_get(2)?)?;
    reader.map(|record| record.map_err(log::damaged)).collect()
}

/// Lifecycle rows.
fn own(rows: &[SqliteRow]) -> Result<Vec<Record>> {
    rows.iter().map(|columns| log::decode_one(columns.try_get(0)?)).collect()
}

/// The columns of [`OLDEST`].
fn outline(columns: &SqliteRow) -> Result<Outline> {
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
