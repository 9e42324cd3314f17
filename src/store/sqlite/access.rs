//! Tokens, certificates, events, audit: who may do what, and who did.

use ado_proto::request::{AuditLine, Events, EventsFrom, ListAudit, SystemEvent, WorkerBounds};
use ado_proto::{Audience, Namespace, TaskId, Timestamp, WorkerId};
use bytes::Bytes;
use rusqlite::params;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection, query};

use super::super::{
    AUDIT_RETENTION, Audit, Certificate, EVENT_RETENTION, Error, KEY_RETENTION, Key, NewEvent, Result, Token,
    TokenRefusal, rules,
};
use super::commit::remember;
use super::tasks::{blob, uuid};
use super::transact::Transaction;
use super::{Sqlite, int, scope, size};

/// A query for whole tokens; [`token`] reads them.
macro_rules! select {
    ($rest:literal) => {
        query(concat!(
            "SELECT id, hash, role, namespace, name, uses_left, created_at, expires_at, created_by, bounds FROM token ",
            $rest
        ))
    };
}

fn token(columns: &SqliteRow) -> Result<Token> {
    let hash: &[u8] = columns.try_get(1)?;
    Ok(Token {
        id: columns.try_get(0)?,
        hash: hash.try_into().map_err(|_| Error::Damaged("a token's hash".into()))?,
        role: columns.try_get::<&str, _>(2)?.parse().map_err(Error::Damaged)?,
        namespace: Namespace(columns.try_get(3)?),
        name: columns.try_get(4)?,
        uses_left: columns.try_get(5)?,
        created_at: Timestamp(columns.try_get(6)?),
        expires_at: Timestamp(columns.try_get(7)?),
        created_by: columns.try_get(8)?,
        bounds: rules::bounds(columns.try_get(9)?)?,
    })
}

/// The highest cursor that was ever given: rows may have been deleted since.
const LAST_EVENT: &str = "SELECT seq FROM sqlite_sequence WHERE name = 'event'";
// `?2` restricts to a namespace, `?4` is the highest cursor.
pub(super) const EVENTS_AFTER: &str = "SELECT cursor, at, kind, task, worker, text FROM event \
     WHERE cursor > ?1 AND cursor <= ?4 AND (?2 IS NULL OR namespace = ?2) ORDER BY cursor LIMIT ?3";
// Times rise with cursors: the first one at or after an instant begins the rest.
pub(super) const EVENTS_SINCE: &str = "SELECT cursor, at, kind, task, worker, text FROM event \
     WHERE cursor >= (SELECT cursor FROM event WHERE at >= ?1 ORDER BY at, cursor LIMIT 1) AND cursor <= ?4 \
     AND (?2 IS NULL OR namespace = ?2) ORDER BY cursor LIMIT ?3";
pub(super) const EVENTS_TAIL: &str = "SELECT cursor, at, kind, task, worker, text FROM event \
     WHERE cursor > ?1 AND cursor <= ?4 AND (?2 IS NULL OR namespace = ?2) ORDER BY cursor DESC LIMIT ?3";

// `?1` is the number that all are below, `?2` restricts to a namespace.
pub(super) const AUDIT: &str = "SELECT no, at, namespace, principal, action, target, result, count FROM audit \
     WHERE no < ?1 AND (?2 IS NULL OR namespace = ?2) AND at >= ?3 AND (?4 IS NULL OR instr(principal, ?4)) \
     AND (?5 IS NULL OR action = ?5) AND (?6 IS NULL OR instr(target, ?6) OR instr(result, ?6)) \
     AND (NOT ?7 OR result <> 'ok') ORDER BY no DESC LIMIT ?8";

const ADD_AUDIT: &str =
    "INSERT INTO audit (at, namespace, principal, action, target, result, count) VALUES (?, ?, ?, ?, ?, ?, ?)";
const ADD_EVENT: &str = "INSERT INTO event (at, namespace, kind, task, worker, text) VALUES (?, ?, ?, ?, ?, ?)";

/// Adds a line to the audit log in a commit.
pub(super) fn add_audit(tx: &Transaction<'_>, audit: &Audit) -> Result<()> {
    let Audit { namespace, principal, action, target, result, count } = audit;
    tx.execute(ADD_AUDIT, params![tx.now.0, namespace.0, principal, action, target, result, count])?;
    Ok(())
}

/// Adds events in a commit.
pub(super) fn add_events(tx: &Transaction<'_>, events: &[NewEvent]) -> Result<()> {
    for NewEvent { audience, kind, task, worker, text } in events {
        let (task, worker) = (task.as_ref().map(|task| task.0.as_bytes()), worker.as_ref().map(|id| id.0.as_bytes()));
        tx.execute(ADD_EVENT, params![tx.now.0, scope(audience), kind, task, worker, text])?;
    }
    Ok(())
}

/// Adds a line to the audit log.
pub(super) async fn insert_audit(connection: &mut SqliteConnection, now: Timestamp, audit: &Audit) -> Result<()> {
    query(ADD_AUDIT)
        .bind(now.0)
        .bind(&audit.namespace.0)
        .bind(&audit.principal)
        .bind(audit.action)
        .bind(&audit.target)
        .bind(&audit.result)
        .bind(audit.count)
        .execute(connection)
        .await?;
    Ok(())
}

/// Adds events.
pub(super) async fn insert_events(
    connection: &mut SqliteConnection,
    now: Timestamp,
    events: &[NewEvent],
) -> Result<()> {
    for event in events {
        query(ADD_EVENT)
            .bind(now.0)
            .bind(scope(&event.audience))
            .bind(event.kind)
            .bind(event.task.map(|task| blob(task.0)))
            .bind(event.worker.map(|worker| blob(worker.0)))
            .bind(&event.text)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

impl Sqlite {
    pub(super) async fn keep_token(&self, token: Token, audit: Audit) -> Result<()> {
        let mut tx = self.write().await?;
        query(
            "INSERT OR REPLACE INTO token (id, hash, role, namespace, name, uses_left, created_at, expires_at, \
             created_by, bounds) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(token.id)
        .bind(&token.hash[..])
        .bind(token.role.as_str())
        .bind(token.namespace.0)
        .bind(token.name)
        .bind(token.uses_left)
        .bind(token.created_at.0)
        .bind(token.expires_at.0)
        .bind(token.created_by)
        .bind(rules::bounds_text(&token.bounds))
        .execute(&mut tx.connection)
        .await?;
        insert_audit(&mut tx.connection, tx.now, &audit).await?;
        tx.commit().await
    }

    pub(super) async fn use_token(&self, hash: &[u8; 32]) -> Result<std::result::Result<Token, TokenRefusal>> {
        let mut tx = self.write().await?;
        let found = select!("WHERE hash = ?").bind(&hash[..]).fetch_optional(&mut tx.connection).await?;
        let found = found.as_ref().map(token).transpose()?;
        let used = found.ok_or(TokenRefusal::Unknown).and_then(|token| rules::use_once(token, tx.now));
        let Ok(token) = &used else {
            tx.undo().await?;
            return Ok(used);
        };
        query("UPDATE token SET uses_left = ? WHERE id = ?")
            .bind(token.uses_left)
            .bind(&token.id)
            .execute(&mut tx.connection)
            .await?;
        tx.commit().await?;
        Ok(used)
    }

    pub(super) async fn all_tokens(&self, audience: &Audience) -> Result<Vec<Token>> {
        let found = select!("WHERE ?1 IS NULL OR namespace = ?1 ORDER BY created_at DESC, id DESC")
            .bind(scope(audience))
            .fetch_all(&self.readers)
            .await?;
        found.iter().map(token).collect()
    }

    pub(super) async fn forget_token(
        &self,
        audience: &Audience,
        id: &str,
        kept: Option<(Key, Bytes)>,
        audit: Audit,
    ) -> Result<bool> {
        let mut tx = self.write().await?;
        let deleted = query("DELETE FROM token WHERE id = ?1 AND (?2 IS NULL OR namespace = ?2)")
            .bind(id)
            .bind(scope(audience))
            .execute(&mut tx.connection)
            .await?;
        if deleted.rows_affected() == 0 {
            tx.undo().await?;
            return Ok(false);
        }
        insert_audit(&mut tx.connection, tx.now, &audit).await?;
        if let Some((key, answer)) = kept {
            remember(&mut tx.connection, &key, &answer, tx.now).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    pub(super) async fn keep_certificate(&self, certificate: Certificate) -> Result<bool> {
        let mut tx = self.write().await?;
        let revoked = query("SELECT 1 FROM revoked WHERE identity = ?")
            .bind(&certificate.identity)
            .fetch_optional(&mut tx.connection)
            .await?
            .is_some();
        query("INSERT OR REPLACE INTO certificate (serial, identity, not_after) VALUES (?, ?, ?)")
            .bind(certificate.serial)
            .bind(certificate.identity)
            .bind(certificate.not_after.0)
            .execute(&mut tx.connection)
            .await?;
        tx.commit().await?;
        Ok(!revoked)
    }

    pub(super) async fn deny_identity(&self, identity: &str, audit: Audit) -> Result<Vec<String>> {
        let mut tx = self.write().await?;
        let live = query("SELECT serial FROM certificate WHERE identity = ? AND not_after > ? ORDER BY serial")
            .bind(identity)
            .bind(tx.now.0)
            .fetch_all(&mut tx.connection)
            .await?;
        if live.is_empty() {
            tx.undo().await?;
            return Ok(Vec::new());
        }
        query("INSERT INTO revoked (identity, at) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(identity)
            .bind(tx.now.0)
            .execute(&mut tx.connection)
            .await?;
        insert_audit(&mut tx.connection, tx.now, &audit).await?;
        tx.commit().await?;
        live.iter().map(|columns| Ok(columns.try_get(0)?)).collect()
    }

    /// A certificate is denied because its identity is: one that was being issued meanwhile is denied too.
    pub(super) async fn denied_serials(&self) -> Result<Vec<String>> {
        let denied = query("SELECT serial FROM certificate NATURAL JOIN revoked WHERE not_after > ? ORDER BY serial")
            .bind(self.clock.now().0)
            .fetch_all(&self.readers)
            .await?;
        denied.iter().map(|columns| Ok(columns.try_get(0)?)).collect()
    }

    pub(super) async fn read_events(&self, audience: &Audience, from: EventsFrom, limit: usize) -> Result<Events> {
        // Before the events: what is added in between is for the next call.
        let last = query(LAST_EVENT).fetch_optional(&self.readers).await?;
        let last = last.map_or(Ok(0), |columns| columns.try_get::<i64, _>(0))?;
        let (sql, at, limit) = match from {
            EventsFrom::After(after) => (EVENTS_AFTER, int(after), limit),
            EventsFrom::Since(since) => (EVENTS_SINCE, since.0, limit),
            EventsFrom::Tail(count) => (EVENTS_TAIL, 0, limit.min(count as usize)),
        };
        let found =
            query(sql).bind(at).bind(scope(audience)).bind(size(limit)).bind(last).fetch_all(&self.readers).await?;
        let mut events = found.iter().map(event).collect::<Result<Vec<_>>>()?;
        events.sort_by_key(|event| event.cursor);
        Ok(rules::events_page(events, from, last.unsigned_abs(), limit))
    }

    pub(super) async fn keep_events(&self, events: Vec<NewEvent>) -> Result<()> {
        let mut tx = self.write().await?;
        insert_events(&mut tx.connection, tx.now, &events).await?;
        tx.commit().await
    }

    pub(super) async fn audit_lines(&self, audience: &Audience, wanted: &ListAudit) -> Result<Vec<AuditLine>> {
        let found = query(AUDIT)
            .bind(int(wanted.before.unwrap_or(u64::MAX)))
            .bind(scope(audience))
            .bind(wanted.since.map_or(i64::MIN, |since| since.0))
            .bind(&wanted.principal)
            .bind(&wanted.action)
            .bind(&wanted.about)
            .bind(wanted.refused)
            .bind(wanted.limit)
            .fetch_all(&self.readers)
            .await?;
        found.iter().map(audit_line).collect()
    }

    pub(super) async fn keep_bounds(&self, identity: &str, bounds: &WorkerBounds) -> Result<()> {
        let mut tx = self.write().await?;
        match rules::bounds_text(bounds) {
            Some(text) => {
                query("INSERT OR REPLACE INTO bound (identity, bounds) VALUES (?, ?)").bind(identity).bind(text)
            }
            None => query("DELETE FROM bound WHERE identity = ?").bind(identity),
        }
        .execute(&mut tx.connection)
        .await?;
        tx.commit().await
    }

    pub(super) async fn read_bounds(&self, identity: &str) -> Result<WorkerBounds> {
        let found = query("SELECT bounds FROM bound WHERE identity = ?").bind(identity);
        let found = found.fetch_optional(&self.readers).await?;
        rules::bounds(found.as_ref().map(|columns| columns.try_get(0)).transpose()?)
    }

    pub(super) async fn delete_outlived(&self) -> Result<()> {
        let mut tx = self.write().await?;
        for (sql, before) in [
            ("DELETE FROM request WHERE at < ?", rules::cutoff(tx.now, KEY_RETENTION)),
            ("DELETE FROM event WHERE at < ?", rules::cutoff(tx.now, EVENT_RETENTION)),
            ("DELETE FROM breaker WHERE at < ?", rules::cutoff(tx.now, EVENT_RETENTION)),
            ("DELETE FROM audit WHERE at < ?", rules::cutoff(tx.now, AUDIT_RETENTION)),
            ("DELETE FROM token WHERE expires_at <= ?", tx.now),
            ("DELETE FROM certificate WHERE not_after <= ?", tx.now),
            ("DELETE FROM controller WHERE seen_at < ?", rules::cutoff(tx.now, EVENT_RETENTION)),
            ("DELETE FROM report WHERE at < ?", rules::cutoff(tx.now, EVENT_RETENTION)),
            // Whoever has no certificate joins anew.
            ("DELETE FROM bound WHERE identity NOT IN (SELECT identity FROM certificate WHERE not_after > ?)", tx.now),
            (
                "DELETE FROM worker WHERE lost AND seen_at < ? \
                 AND NOT EXISTS (SELECT 1 FROM task WHERE lease_worker = worker.id)",
                rules::cutoff(tx.now, EVENT_RETENTION),
            ),
        ] {
            query(sql).bind(before.0).execute(&mut tx.connection).await?;
        }
        tx.commit().await
    }
}

fn event(columns: &SqliteRow) -> Result<SystemEvent> {
    let task: Option<&[u8]> = columns.try_get(3)?;
    let worker: Option<&[u8]> = columns.try_get(4)?;
    Ok(SystemEvent {
        cursor: columns.try_get::<i64, _>(0)?.unsigned_abs(),
        time: Timestamp(columns.try_get(1)?),
        kind: columns.try_get(2)?,
        task: task.map(uuid).transpose()?.map(TaskId),
        worker: worker.map(uuid).transpose()?.map(WorkerId),
        text: columns.try_get(5)?,
    })
}

fn audit_line(columns: &SqliteRow) -> Result<AuditLine> {
    Ok(AuditLine {
        no: columns.try_get::<i64, _>(0)?.unsigned_abs(),
        time: Timestamp(columns.try_get(1)?),
        namespace: Namespace(columns.try_get(2)?),
        principal: columns.try_get(3)?,
        action: columns.try_get(4)?,
        target: columns.try_get(5)?,
        result: columns.try_get(6)?,
        count: columns.try_get(7)?,
    })
}
