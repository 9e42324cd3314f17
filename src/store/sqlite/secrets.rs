//! Secrets, closed.

use ado_proto::request::SecretInfo;
use ado_proto::{Audience, Namespace, Timestamp};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, query};

use super::super::{Audit, ClosedSecret, Result};
use super::access::insert_audit;
use super::{Sqlite, scope};

/// A query for secrets; [`info`] reads the first columns, `closed` is the last.
macro_rules! select {
    ($rest:literal) => {
        query(concat!("SELECT namespace, name, version, owner, created_at, updated_at, closed FROM secret ", $rest))
    };
}

fn info(columns: &SqliteRow) -> Result<SecretInfo> {
    Ok(SecretInfo {
        namespace: Namespace(columns.try_get(0)?),
        name: columns.try_get(1)?,
        version: columns.try_get::<i64, _>(2)?.unsigned_abs(),
        owner: columns.try_get(3)?,
        created_at: Timestamp(columns.try_get(4)?),
        updated_at: Timestamp(columns.try_get(5)?),
    })
}

impl Sqlite {
    pub(super) async fn keep_secret(
        &self,
        secret: ClosedSecret,
        only: Option<&str>,
        audit: Audit,
    ) -> Result<std::result::Result<SecretInfo, SecretInfo>> {
        let mut tx = self.write().await?;
        let former = select!("WHERE namespace = ? AND name = ?").bind(&secret.namespace.0).bind(&secret.name);
        let former = former.fetch_optional(&mut tx.connection).await?.as_ref().map(info).transpose()?;
        if let Some(former) = &former
            && only.is_some_and(|only| only != former.owner)
        {
            let former = former.clone();
            tx.undo().await?;
            return Ok(Err(former));
        }
        let kept = SecretInfo {
            version: former.as_ref().map_or(1, |former| former.version + 1),
            created_at: former.map_or(tx.now, |former| former.created_at),
            updated_at: tx.now,
            name: secret.name,
            namespace: secret.namespace,
            owner: secret.owner,
        };
        query(
            "INSERT OR REPLACE INTO secret (namespace, name, version, owner, created_at, updated_at, closed) \
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&kept.namespace.0)
        .bind(&kept.name)
        .bind(super::int(kept.version))
        .bind(&kept.owner)
        .bind(kept.created_at.0)
        .bind(kept.updated_at.0)
        .bind(secret.closed)
        .execute(&mut tx.connection)
        .await?;
        insert_audit(&mut tx.connection, tx.now, &audit).await?;
        tx.commit().await?;
        Ok(Ok(kept))
    }

    pub(super) async fn all_secrets(&self, audience: &Audience) -> Result<Vec<SecretInfo>> {
        let found = select!("WHERE ?1 IS NULL OR namespace = ?1 ORDER BY namespace, name").bind(scope(audience));
        found.fetch_all(&self.readers).await?.iter().map(info).collect()
    }

    pub(super) async fn read_secret(&self, namespace: &Namespace, name: &str) -> Result<Option<(SecretInfo, Vec<u8>)>> {
        let found = select!("WHERE namespace = ? AND name = ?").bind(&namespace.0).bind(name);
        let found = found.fetch_optional(&self.readers).await?;
        found.map(|columns| Ok((info(&columns)?, columns.try_get(6)?))).transpose()
    }

    pub(super) async fn forget_secret(&self, namespace: &Namespace, name: &str, audit: Audit) -> Result<bool> {
        let mut tx = self.write().await?;
        let deleted = query("DELETE FROM secret WHERE namespace = ? AND name = ?")
            .bind(&namespace.0)
            .bind(name)
            .execute(&mut tx.connection)
            .await?;
        if deleted.rows_affected() == 0 {
            tx.undo().await?;
            return Ok(false);
        }
        insert_audit(&mut tx.connection, tx.now, &audit).await?;
        tx.commit().await?;
        Ok(true)
    }
}
