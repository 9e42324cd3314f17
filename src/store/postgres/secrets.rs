//! Secrets, closed.

use ado_proto::request::SecretInfo;
use ado_proto::{Audience, Namespace, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{Row as _, query};

use super::super::{Audit, ClosedSecret};
use super::access::insert_audit;
use super::commit::commit;
use super::error::Tried;
use super::{Postgres, scope, text};

/// A query for secrets; [`info`] reads the first columns, `closed` is the last.
macro_rules! select {
    ($rest:literal) => {
        query(concat!("SELECT namespace, name, version, owner, created_at, updated_at, closed FROM secret ", $rest))
    };
}

fn info(columns: &PgRow) -> Tried<SecretInfo> {
    Ok(SecretInfo {
        namespace: Namespace(columns.try_get(0)?),
        name: columns.try_get(1)?,
        version: columns.try_get::<i64, _>(2)?.unsigned_abs(),
        owner: columns.try_get(3)?,
        created_at: Timestamp(columns.try_get(4)?),
        updated_at: Timestamp(columns.try_get(5)?),
    })
}

impl Postgres {
    /// Of two that set the same, the later one sees the earlier one's version.
    pub(super) async fn keep_secret(
        &self,
        secret: ClosedSecret,
        only: Option<&str>,
        audit: Audit,
    ) -> Tried<Result<SecretInfo, SecretInfo>> {
        let mut tx = self.begin().await?;
        let now = self.clock.read(&mut tx).await?;
        let kept = query(
            "INSERT INTO secret (namespace, name, version, owner, created_at, updated_at, closed) \
             VALUES ($1, $2, 1, $3, $4, $4, $5) ON CONFLICT (namespace, name) DO UPDATE SET \
             (version, owner, updated_at, closed) = ROW (secret.version + 1, $3, $4, $5) \
             WHERE $6::text IS NULL OR secret.owner = $6 \
             RETURNING namespace, name, version, owner, created_at, updated_at",
        )
        .bind(text(&secret.namespace.0))
        .bind(text(&secret.name))
        .bind(text(&secret.owner))
        .bind(now.0)
        .bind(secret.closed)
        .bind(only.map(text))
        .fetch_optional(&mut *tx)
        .await?;
        let Some(kept) = kept else {
            let former = select!("WHERE namespace = $1 AND name = $2")
                .bind(text(&secret.namespace.0))
                .bind(text(&secret.name))
                .fetch_one(&mut *tx)
                .await?;
            let former = info(&former)?;
            tx.rollback().await?;
            return Ok(Err(former));
        };
        let kept = info(&kept)?;
        insert_audit(&mut tx, now, audit).await?;
        commit(tx).await?;
        Ok(Ok(kept))
    }

    pub(super) async fn all_secrets(&self, audience: &Audience) -> Tried<Vec<SecretInfo>> {
        let found = select!("WHERE $1::text IS NULL OR namespace = $1 ORDER BY namespace, name").bind(scope(audience));
        found.fetch_all(&self.pool).await?.iter().map(info).collect()
    }

    pub(super) async fn read_secret(&self, namespace: &Namespace, name: &str) -> Tried<Option<(SecretInfo, Vec<u8>)>> {
        let found = select!("WHERE namespace = $1 AND name = $2").bind(text(&namespace.0)).bind(text(name));
        let found = found.fetch_optional(&self.pool).await?;
        found.map(|columns| Ok((info(&columns)?, columns.try_get(6)?))).transpose()
    }

    pub(super) async fn forget_secret(&self, namespace: &Namespace, name: &str, audit: Audit) -> Tried<bool> {
        let mut tx = self.begin().await?;
        let deleted = query("DELETE FROM secret WHERE namespace = $1 AND name = $2")
            .bind(text(&namespace.0))
            .bind(text(name))
            .execute(&mut *tx)
            .await?;
        if deleted.rows_affected() == 0 {
            tx.rollback().await?;
            return Ok(false);
        }
        let now = self.clock.read(&mut tx).await?;
        insert_audit(&mut tx, now, audit).await?;
        commit(tx).await?;
        Ok(true)
    }
}
