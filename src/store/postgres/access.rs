//! Tokens, certificates, audit, retention: who may do what, who did, and for how long that is known.

use ado_proto::request::{AuditLine, ListAudit, WorkerBounds};
use ado_proto::{Audience, Namespace, Timestamp};
use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, QueryBuilder, Row as _, query, raw_sql};

use super::super::{
    AUDIT_RETENTION, Audit, Certificate, EVENT_RETENTION, Error, KEY_RETENTION, Key, Token, TokenRefusal, rules,
};
use super::commit::{commit, remember};
use super::error::Tried;
use super::write::push_audit;
use super::{Postgres, int, scope, text};

/// A query for whole tokens; [`token`] reads them.
macro_rules! select {
    ($rest:literal) => {
        query(concat!(
            "SELECT id, hash, role, namespace, name, uses_left, created_at, expires_at, created_by, bounds FROM token ",
            $rest
        ))
    };
}

fn token(columns: &PgRow) -> Tried<Token> {
    let hash: &[u8] = columns.try_get(1)?;
    Ok(Token {
        id: columns.try_get(0)?,
        hash: hash.try_into().map_err(|_| Error::Damaged("a token's hash".into()))?,
        role: columns.try_get::<&str, _>(2)?.parse().map_err(Error::Damaged)?,
        namespace: Namespace(columns.try_get(3)?),
        name: columns.try_get(4)?,
        uses_left: uses(columns.try_get(5)?),
        created_at: Timestamp(columns.try_get(6)?),
        expires_at: Timestamp(columns.try_get(7)?),
        created_by: columns.try_get(8)?,
        bounds: rules::bounds(columns.try_get(9)?)?,
    })
}

fn uses(left: Option<i64>) -> Option<u32> {
    left.map(|left| u32::try_from(left).unwrap_or(0))
}

// `$1` is the number that all are below, `$2` restricts to a namespace.
pub(super) const AUDIT: &str = "SELECT no, at, namespace, principal, action, target, result, count FROM audit \
     WHERE no < $1 AND ($2::text IS NULL OR namespace = $2) AND at >= $3 \
     AND ($4::text IS NULL OR strpos(principal, $4) > 0) AND ($5::text IS NULL OR action = $5) \
     AND ($6::text IS NULL OR strpos(target, $6) > 0 OR strpos(result, $6) > 0) \
     AND (NOT $7 OR result <> 'ok') ORDER BY no DESC LIMIT $8";

pub(super) async fn insert_audit(db: &mut PgConnection, now: Timestamp, audit: Audit) -> Tried<()> {
    let mut sql = QueryBuilder::new("");
    push_audit(&mut sql, now, &[audit]);
    sql.build().execute(db).await?;
    Ok(())
}

/// Whoever issues to an identity and whoever revokes it take turns.
async fn lock_identity(db: &mut PgConnection, identity: &str) -> Tried<()> {
    query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))").bind(text(identity)).execute(db).await?;
    Ok(())
}

impl Postgres {
    pub(super) async fn keep_token(&self, token: Token, audit: Audit) -> Tried<()> {
        let mut tx = self.begin().await?;
        let now = self.clock.read(&mut tx).await?;
        query(
            "INSERT INTO token (id, hash, role, namespace, name, uses_left, created_at, expires_at, created_by, bounds) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id) DO UPDATE SET \
             (hash, role, namespace, name, uses_left, created_at, expires_at, created_by, bounds) = \
             ROW ($2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(text(&token.id))
        .bind(&token.hash[..])
        .bind(token.role.as_str())
        .bind(text(&token.namespace.0))
        .bind(token.name.as_deref().map(text))
        .bind(token.uses_left.map(i64::from))
        .bind(token.created_at.0)
        .bind(token.expires_at.0)
        .bind(text(&token.created_by))
        .bind(rules::bounds_text(&token.bounds))
        .execute(&mut *tx)
        .await?;
        insert_audit(&mut tx, now, audit).await?;
        commit(tx).await
    }

    pub(super) async fn use_token(&self, hash: &[u8; 32]) -> Tried<Result<Token, TokenRefusal>> {
        let mut tx = self.begin().await?;
        let found = select!("WHERE hash = $1 FOR UPDATE").bind(&hash[..]).fetch_optional(&mut *tx).await?;
        let found = found.as_ref().map(token).transpose()?;
        let now = self.clock.read(&mut tx).await?;
        let used = found.ok_or(TokenRefusal::Unknown).and_then(|token| rules::use_once(token, now));
        let Ok(token) = &used else {
            tx.rollback().await?;
            return Ok(used);
        };
        query("UPDATE token SET uses_left = $1 WHERE id = $2")
            .bind(token.uses_left.map(i64::from))
            .bind(&token.id)
            .execute(&mut *tx)
            .await?;
        commit(tx).await?;
        Ok(used)
    }

    pub(super) async fn all_tokens(&self, audience: &Audience) -> Tried<Vec<Token>> {
        let found = select!("WHERE $1::text IS NULL OR namespace = $1 ORDER BY created_at DESC, id DESC")
            .bind(scope(audience))
            .fetch_all(&self.pool)
            .await?;
        found.iter().map(token).collect()
    }

    pub(super) async fn forget_token(
        &self,
        audience: &Audience,
        id: &str,
        kept: Option<(Key, Bytes)>,
        audit: Audit,
    ) -> Tried<bool> {
        let mut tx = self.begin().await?;
        let deleted = query("DELETE FROM token WHERE id = $1 AND ($2::text IS NULL OR namespace = $2)")
            .bind(text(id))
            .bind(scope(audience))
            .execute(&mut *tx)
            .await?;
        if deleted.rows_affected() == 0 {
            tx.rollback().await?;
            return Ok(false);
        }
        let now = self.clock.read(&mut tx).await?;
        insert_audit(&mut tx, now, audit).await?;
        if let Some((key, answer)) = kept {
            remember(&mut tx, &key, &answer, now).await?;
        }
        commit(tx).await?;
        Ok(true)
    }

    pub(super) async fn keep_certificate(&self, certificate: Certificate) -> Tried<bool> {
        let mut tx = self.begin().await?;
        lock_identity(&mut tx, &certificate.identity).await?;
        let revoked = query("SELECT 1 FROM revoked WHERE identity = $1")
            .bind(text(&certificate.identity))
            .fetch_optional(&mut *tx)
            .await?
            .is_some();
        query(
            "INSERT INTO certificate (serial, identity, not_after) VALUES ($1, $2, $3) \
             ON CONFLICT (serial) DO UPDATE SET identity = $2, not_after = $3",
        )
        .bind(text(&certificate.serial))
        .bind(text(&certificate.identity))
        .bind(certificate.not_after.0)
        .execute(&mut *tx)
        .await?;
        commit(tx).await?;
        Ok(!revoked)
    }

    pub(super) async fn deny_identity(&self, identity: &str, audit: Audit) -> Tried<Vec<String>> {
        let mut tx = self.begin().await?;
        lock_identity(&mut tx, identity).await?;
        let now = self.clock.read(&mut tx).await?;
        let live = query("SELECT serial FROM certificate WHERE identity = $1 AND not_after > $2 ORDER BY serial")
            .bind(text(identity))
            .bind(now.0)
            .fetch_all(&mut *tx)
            .await?;
        if live.is_empty() {
            tx.rollback().await?;
            return Ok(Vec::new());
        }
        query("INSERT INTO revoked (identity, at) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(text(identity))
            .bind(now.0)
            .execute(&mut *tx)
            .await?;
        insert_audit(&mut tx, now, audit).await?;
        commit(tx).await?;
        live.iter().map(|columns| Ok(columns.try_get(0)?)).collect()
    }

    /// A certificate is denied because its identity is: one that was being issued meanwhile is denied too.
    pub(super) async fn denied_serials(&self) -> Tried<Vec<String>> {
        let now = self.read_clock().await?;
        let denied =
            query("SELECT serial FROM certificate JOIN revoked USING (identity) WHERE not_after > $1 ORDER BY serial")
                .bind(now.0)
                .fetch_all(&self.pool)
                .await?;
        denied.iter().map(|columns| Ok(columns.try_get(0)?)).collect()
    }

    pub(super) async fn audit_lines(&self, audience: &Audience, wanted: &ListAudit) -> Tried<Vec<AuditLine>> {
        let found = query(AUDIT)
            .bind(int(wanted.before.unwrap_or(u64::MAX)))
            .bind(scope(audience))
            .bind(wanted.since.map_or(i64::MIN, |since| since.0))
            .bind(wanted.principal.as_deref().map(text))
            .bind(wanted.action.as_deref().map(text))
            .bind(wanted.about.as_deref().map(text))
            .bind(wanted.refused)
            .bind(i64::from(wanted.limit))
            .fetch_all(&self.pool)
            .await?;
        found.iter().map(audit_line).collect()
    }

    pub(super) async fn keep_bounds(&self, identity: &str, bounds: &WorkerBounds) -> Tried<()> {
        match rules::bounds_text(bounds) {
            Some(bounds) => query(
                "INSERT INTO bound (identity, bounds) VALUES ($1, $2) ON CONFLICT (identity) DO UPDATE SET bounds = $2",
            )
            .bind(text(identity))
            .bind(bounds),
            None => query("DELETE FROM bound WHERE identity = $1").bind(text(identity)),
        }
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    pub(super) async fn read_bounds(&self, identity: &str) -> Tried<WorkerBounds> {
        let found = query("SELECT bounds FROM bound WHERE identity = $1").bind(text(identity));
        let found = found.fetch_optional(&self.pool).await?;
        let bounds = found.as_ref().map(|columns| columns.try_get(0)).transpose()?;
        Ok(rules::bounds(bounds)?)
    }

    pub(super) async fn delete_outlived(&self) -> Tried<()> {
        let now = self.read_clock().await?;
        self.make_ahead(now).await?;
        // What is kept of what is deleted: times do not begin below, cursors are not given again.
        query(
            "UPDATE meta SET clock = greatest(clock, $1), \
             event_last = greatest(event_last, (SELECT max(cursor) FROM event))",
        )
        .bind(now.0)
        .execute(&self.pool)
        .await?;
        for (sql, before) in [
            ("DELETE FROM request WHERE at < $1", rules::cutoff(now, KEY_RETENTION)),
            ("DELETE FROM event WHERE at < $1", rules::cutoff(now, EVENT_RETENTION)),
            ("DELETE FROM breaker WHERE at < $1", rules::cutoff(now, EVENT_RETENTION)),
            ("DELETE FROM audit WHERE at < $1", rules::cutoff(now, AUDIT_RETENTION)),
            ("DELETE FROM token WHERE expires_at <= $1", now),
            ("DELETE FROM certificate WHERE not_after <= $1", now),
            ("DELETE FROM controller WHERE seen_at < $1", rules::cutoff(now, EVENT_RETENTION)),
            ("DELETE FROM report WHERE at < $1", rules::cutoff(now, EVENT_RETENTION)),
            // Whoever has no certificate joins anew.
            ("DELETE FROM bound WHERE identity NOT IN (SELECT identity FROM certificate WHERE not_after > $1)", now),
            (
                "DELETE FROM worker WHERE lost AND seen_at < $1 \
                 AND NOT EXISTS (SELECT 1 FROM task WHERE lease_worker = worker.id)",
                rules::cutoff(now, EVENT_RETENTION),
            ),
        ] {
            // One by one: whoever waits for a row waits for one table's, and what was done stays done.
            let mut tx = self.begin().await?;
            raw_sql("SET LOCAL statement_timeout = 0").execute(&mut *tx).await?;
            query(sql).bind(before.0).execute(&mut *tx).await?;
            commit(tx).await?;
        }
        Ok(())
    }
}

fn audit_line(columns: &PgRow) -> Tried<AuditLine> {
    Ok(AuditLine {
        no: columns.try_get::<i64, _>(0)?.unsigned_abs(),
        time: Timestamp(columns.try_get(1)?),
        namespace: Namespace(columns.try_get(2)?),
        principal: columns.try_get(3)?,
        action: columns.try_get(4)?,
        target: columns.try_get(5)?,
        result: columns.try_get(6)?,
        count: u32::try_from(columns.try_get::<i64, _>(7)?).unwrap_or(u32::MAX),
    })
}
