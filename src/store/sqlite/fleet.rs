//! Workers, their heartbeats, and the leases of loops.

use std::collections::BTreeMap;
use std::time::Duration;

use ado_proto::spec::Containment;
use ado_proto::{Incarnation, Namespace, Timestamp, WorkerId};
use rusqlite::params;
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection, query};

use super::super::{Beat, ChangeBreaker, Error, Renewal, Result, Worker, WorkerEvent, rules};
use super::tasks::{self, blob, uuid};
use super::transact::{End, Transaction};
use super::{Sqlite, access};
use crate::task::{Breaker, Scope};

const CONTAINMENTS: [Containment; 3] = [Containment::Cgroup, Containment::Subreaper, Containment::Group];

/// A query for whole workers; [`worker`] reads them.
macro_rules! select {
    ($rest:literal) => {
        query(concat!(
            "SELECT id, incarnation, name, namespace, pool, slots, agents, labels, containment, build, draining, seen_at, \
             resources, via FROM worker ",
            $rest
        ))
    };
}

fn worker(columns: &SqliteRow) -> Result<Worker> {
    let word: &str = columns.try_get(8)?;
    let containment = CONTAINMENTS.into_iter().find(|containment| containment.as_str() == word);
    let Some(containment) = containment else {
        return Err(Error::Damaged(format!("a worker is held by `{word}`")));
    };
    Ok(Worker {
        id: WorkerId(uuid(columns.try_get(0)?)?),
        incarnation: Incarnation(uuid(columns.try_get(1)?)?),
        name: columns.try_get(2)?,
        namespace: Namespace(columns.try_get(3)?),
        pool: columns.try_get(4)?,
        slots: columns.try_get(5)?,
        agents: json(columns.try_get(6)?)?,
        labels: json::<BTreeMap<_, _>>(columns.try_get(7)?)?,
        containment,
        build: columns.try_get(9)?,
        resources: json(columns.try_get(12)?)?,
        draining: columns.try_get(10)?,
        seen_at: Timestamp(columns.try_get(11)?),
        via: columns.try_get::<Option<_>, _>(13)?.map(uuid).transpose()?.map(Incarnation),
    })
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| Error::Damaged(format!("a worker's row: {error}")))
}

async fn one(connection: &mut SqliteConnection, id: WorkerId) -> Result<Option<Worker>> {
    let found = select!("WHERE id = ?").bind(blob(id.0)).fetch_optional(connection).await?;
    found.as_ref().map(worker).transpose()
}

fn renew(tx: &Transaction<'_>, beats: &[Beat], lease: Duration) -> Result<(Vec<Option<Renewal>>, End)> {
    let mut renewals = Vec::with_capacity(beats.len());
    let mut end = End::Undo;
    for beat in beats {
        let (id, incarnation) = (beat.worker.0.as_bytes(), beat.incarnation.0.as_bytes());
        let seen = tx.execute(
            "UPDATE worker SET seen_at = ?, draining = ?, via = ?, lost = 0 WHERE id = ? AND incarnation = ?",
            params![tx.now.0, beat.draining, beat.via.0.as_bytes(), id, incarnation],
        )?;
        if seen == 0 {
            renewals.push(None);
            continue;
        }
        let renewal = rules::renewal(tasks::held(tx, beat.worker)?, beat, tx.now.after(lease));
        for row in &renewal.renewed {
            if let Some(lease) = &row.lease {
                tasks::set_lease(tx, row.task.id, lease)?;
            }
        }
        renewals.push(Some(renewal));
        end = End::Keep;
    }
    Ok((renewals, end))
}

impl Sqlite {
    pub(super) async fn register_worker(&self, worker: Worker) -> Result<Option<Worker>> {
        let mut tx = self.write().await?;
        let former = one(&mut tx.connection, worker.id).await?;
        let draining = worker.draining || rules::still_drains(former.as_ref(), &worker);
        query(
            "INSERT OR REPLACE INTO worker (id, incarnation, name, namespace, pool, slots, agents, labels, containment, \
             build, draining, seen_at, resources, via) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(blob(worker.id.0))
        .bind(blob(worker.incarnation.0))
        .bind(worker.name)
        .bind(worker.namespace.0)
        .bind(worker.pool)
        .bind(worker.slots)
        .bind(serde_json::to_string(&worker.agents).expect("strings are JSON"))
        .bind(serde_json::to_string(&worker.labels).expect("a map of strings is JSON"))
        .bind(worker.containment.as_str())
        .bind(worker.build)
        .bind(draining)
        .bind(tx.now.0)
        .bind(serde_json::to_string(&worker.resources).expect("numbers are JSON"))
        .bind(former.as_ref().and_then(|former| former.via).map(|via| blob(via.0)))
        .execute(&mut tx.connection)
        .await?;
        tx.commit().await?;
        Ok(former)
    }

    pub(super) async fn renew_leases(&self, beats: Vec<Beat>, lease: Duration) -> Result<Vec<Option<Renewal>>> {
        self.transact(move |tx| renew(tx, &beats, lease)).await
    }

    pub(super) async fn all_workers(&self) -> Result<Vec<Worker>> {
        let found = select!("ORDER BY id").fetch_all(&self.readers).await?;
        found.iter().map(worker).collect()
    }

    pub(super) async fn silent_workers(&self, before: Timestamp, event: WorkerEvent<'_>) -> Result<Vec<Worker>> {
        // Asked often, and nearly always in vain: that writes nothing.
        let any = query("SELECT 1 FROM worker WHERE NOT lost AND seen_at < ?").bind(before.0);
        if any.fetch_optional(&self.readers).await?.is_none() {
            return Ok(Vec::new());
        }
        let mut tx = self.write().await?;
        let found = select!("WHERE NOT lost AND seen_at < ? ORDER BY id").bind(before.0);
        let found = found.fetch_all(&mut tx.connection).await?;
        let silent = found.iter().map(worker).collect::<Result<Vec<_>>>()?;
        query("UPDATE worker SET lost = 1 WHERE seen_at < ?").bind(before.0).execute(&mut tx.connection).await?;
        let events: Vec<_> = silent.iter().map(event).collect();
        access::insert_events(&mut tx.connection, tx.now, &events).await?;
        tx.commit().await?;
        Ok(silent)
    }

    pub(super) async fn forget_worker(&self, id: WorkerId) -> Result<()> {
        let mut tx = self.write().await?;
        query("DELETE FROM worker WHERE id = ?").bind(blob(id.0)).execute(&mut tx.connection).await?;
        tx.commit().await
    }

    pub(super) async fn take_loop(&self, name: &str, holder: Incarnation, ttl: Duration) -> Result<Option<u64>> {
        let mut tx = self.write().await?;
        // The holder keeps its term; anybody else takes a new one, once the lease is over.
        let taken = query(
            "INSERT INTO loop (name, holder, term, expires_at) VALUES (?1, ?2, 1, ?3) ON CONFLICT (name) DO UPDATE SET \
             term = CASE WHEN holder IS ?2 THEN term ELSE term + 1 END, holder = ?2, expires_at = ?3 \
             WHERE holder IS NULL OR holder = ?2 OR expires_at <= ?4 RETURNING term",
        )
        .bind(name)
        .bind(blob(holder.0))
        .bind(tx.now.after(ttl).0)
        .bind(tx.now.0)
        .fetch_optional(&mut tx.connection)
        .await?;
        let Some(columns) = taken else {
            tx.undo().await?;
            return Ok(None);
        };
        let term: i64 = columns.try_get(0)?;
        tx.commit().await?;
        Ok(Some(term.unsigned_abs()))
    }

    pub(super) async fn give_back_loop(&self, name: &str, holder: Incarnation) -> Result<()> {
        let mut tx = self.write().await?;
        query("UPDATE loop SET holder = NULL WHERE name = ? AND holder = ?")
            .bind(name)
            .bind(blob(holder.0))
            .execute(&mut tx.connection)
            .await?;
        tx.commit().await
    }

    pub(super) async fn all_breakers(&self) -> Result<BTreeMap<Scope, Breaker>> {
        let found = query("SELECT scope, state FROM breaker").fetch_all(&self.readers).await?;
        found.iter().map(|columns| rules::decode_breaker(columns.try_get(0)?, columns.try_get(1)?)).collect()
    }

    pub(super) async fn one_breaker(&self, scope: &Scope, change: ChangeBreaker) -> Result<Breaker> {
        let name = scope.to_string();
        let mut tx = self.write().await?;
        let found = query("SELECT state FROM breaker WHERE scope = ?").bind(&name);
        let before = match found.fetch_optional(&mut tx.connection).await? {
            Some(columns) => rules::decode_breaker(&name, columns.try_get(0)?)?.1,
            None => Breaker::default(),
        };
        let (after, events) = change(&before, tx.now);
        if after.is_new() {
            query("DELETE FROM breaker WHERE scope = ?").bind(&name).execute(&mut tx.connection).await?;
        } else {
            query("INSERT OR REPLACE INTO breaker (scope, state, at) VALUES (?, ?, ?)")
                .bind(&name)
                .bind(rules::encode_breaker(&after))
                .bind(tx.now.0)
                .execute(&mut tx.connection)
                .await?;
        }
        access::insert_events(&mut tx.connection, tx.now, &events).await?;
        tx.commit().await?;
        Ok(after)
    }
}
