//! Workers, their heartbeats, and the leases of loops.

use std::collections::BTreeMap;
use std::time::Duration;

use ado_proto::spec::Containment;
use ado_proto::{Incarnation, Namespace, Timestamp, WorkerId};
use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::{Row as _, query};
use uuid::Uuid;

use super::super::{Beat, ChangeBreaker, Error, Renewal, Row, Worker, WorkerEvent, rules};
use super::commit::commit;
use super::error::Tried;
use super::{Postgres, events, tasks, text};
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

fn worker(columns: &PgRow) -> Tried<Worker> {
    let word: &str = columns.try_get(8)?;
    let containment = CONTAINMENTS.into_iter().find(|containment| containment.as_str() == word);
    let Some(containment) = containment else {
        return Err(Error::Damaged(format!("a worker is held by `{word}`")).into());
    };
    Ok(Worker {
        id: WorkerId(columns.try_get(0)?),
        incarnation: Incarnation(columns.try_get(1)?),
        name: columns.try_get(2)?,
        namespace: Namespace(columns.try_get(3)?),
        pool: columns.try_get(4)?,
        slots: u32::try_from(columns.try_get::<i64, _>(5)?).unwrap_or(u32::MAX),
        agents: json(columns.try_get(6)?)?,
        labels: json::<BTreeMap<_, _>>(columns.try_get(7)?)?,
        containment,
        build: columns.try_get(9)?,
        resources: json(columns.try_get(12)?)?,
        draining: columns.try_get(10)?,
        seen_at: Timestamp(columns.try_get(11)?),
        via: columns.try_get::<Option<_>, _>(13)?.map(Incarnation),
    })
}

fn json<T: DeserializeOwned>(text: &str) -> Tried<T> {
    Ok(serde_json::from_str(text).map_err(|error| Error::Damaged(format!("a worker's row: {error}")))?)
}

impl Postgres {
    pub(super) async fn register_worker(&self, worker: Worker) -> Tried<Option<Worker>> {
        let mut tx = self.begin().await?;
        let former = select!("WHERE id = $1 FOR UPDATE").bind(worker.id.0).fetch_optional(&mut *tx).await?;
        let former = former.as_ref().map(self::worker).transpose()?;
        let draining = worker.draining || rules::still_drains(former.as_ref(), &worker);
        let now = self.clock.read(&mut tx).await?;
        query(
            "INSERT INTO worker (id, incarnation, name, namespace, pool, slots, agents, labels, containment, build, \
             draining, seen_at, resources) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT (id) \
             DO UPDATE SET (incarnation, name, namespace, pool, slots, agents, labels, containment, build, draining, \
             seen_at, resources, lost) = ROW ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, false)",
        )
        .bind(worker.id.0)
        .bind(worker.incarnation.0)
        .bind(text(&worker.name))
        .bind(text(&worker.namespace.0))
        .bind(text(&worker.pool))
        .bind(i64::from(worker.slots))
        .bind(serde_json::to_string(&worker.agents).expect("strings are JSON"))
        .bind(serde_json::to_string(&worker.labels).expect("a map of strings is JSON"))
        .bind(worker.containment.as_str())
        .bind(text(&worker.build))
        .bind(draining)
        .bind(now.0)
        .bind(serde_json::to_string(&worker.resources).expect("numbers are JSON"))
        .execute(&mut *tx)
        .await?;
        commit(tx).await?;
        Ok(former)
    }

    pub(super) async fn renew_leases(&self, beats: &[Beat], lease: Duration) -> Tried<Vec<Option<Renewal>>> {
        let mut tx = self.begin().await?;
        let found = query("SELECT id, incarnation FROM worker WHERE id = ANY($1) ORDER BY id FOR UPDATE")
            .bind(beats.iter().map(|beat| beat.worker.0).collect::<Vec<_>>())
            .fetch_all(&mut *tx)
            .await?;
        let registered = found.iter().map(|columns| Ok((columns.try_get(0)?, columns.try_get(1)?)));
        let registered = registered.collect::<Tried<BTreeMap<Uuid, Uuid>>>()?;
        let is_heard = |beat: &&Beat| registered.get(&beat.worker.0) == Some(&beat.incarnation.0);
        let heard: Vec<_> = beats.iter().filter(is_heard).collect();
        if heard.is_empty() {
            tx.rollback().await?;
            return Ok(beats.iter().map(|_| None).collect());
        }
        let workers: Vec<_> = heard.iter().map(|beat| beat.worker.0).collect();
        let locked = tasks::lock_held(&mut tx, self.clock.hand(), &workers).await?;
        let now = self.clock.read(&mut tx).await?;
        query(
            "UPDATE worker SET seen_at = $1, draining = new.draining, via = new.via, lost = false \
             FROM unnest($2, $3, $4) AS new (worker, draining, via) WHERE id = new.worker",
        )
        .bind(now.0)
        .bind(workers)
        .bind(heard.iter().map(|beat| beat.draining).collect::<Vec<_>>())
        .bind(heard.iter().map(|beat| beat.via.0).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await?;
        let mut held: BTreeMap<WorkerId, Vec<Row>> = BTreeMap::new();
        for row in locked.rows {
            if let Some(lease) = &row.lease {
                held.entry(lease.worker).or_default().push(row);
            }
        }
        let renew = |beat: &Beat| {
            let held = held.get(&beat.worker).cloned().unwrap_or_default();
            is_heard(&beat).then(|| rules::renewal(held, beat, now.after(lease)))
        };
        let renewals: Vec<_> = beats.iter().map(renew).collect();
        let renewed: Vec<_> = renewals.iter().flatten().flat_map(|renewal| &renewal.renewed).collect();
        if !renewed.is_empty() {
            tasks::set_leases(&mut tx, &renewed).await?;
        }
        commit(tx).await?;
        Ok(renewals)
    }

    pub(super) async fn all_workers(&self) -> Tried<Vec<Worker>> {
        let found = select!("ORDER BY id").fetch_all(&self.pool).await?;
        found.iter().map(worker).collect()
    }

    pub(super) async fn silent_workers(&self, before: Timestamp, event: WorkerEvent<'_>) -> Tried<Vec<Worker>> {
        // Asked often, and nearly always in vain: that writes nothing.
        let any = query("SELECT 1 FROM worker WHERE NOT lost AND seen_at < $1").bind(before.0);
        if any.fetch_optional(&self.pool).await?.is_none() {
            return Ok(Vec::new());
        }
        let mut tx = self.begin().await?;
        // One that is locked is just being heard, or is said to be lost by another controller.
        let found = select!("WHERE NOT lost AND seen_at < $1 ORDER BY id FOR UPDATE SKIP LOCKED").bind(before.0);
        let found = found.fetch_all(&mut *tx).await?;
        let silent = found.iter().map(worker).collect::<Tried<Vec<_>>>()?;
        let now = self.clock.read(&mut tx).await?;
        query("UPDATE worker SET lost = true WHERE id = ANY($1)")
            .bind(silent.iter().map(|worker| worker.id.0).collect::<Vec<_>>())
            .execute(&mut *tx)
            .await?;
        let events: Vec<_> = silent.iter().map(event).collect();
        events::insert(&mut tx, now, &events).await?;
        commit(tx).await?;
        Ok(silent)
    }

    pub(super) async fn forget_worker(&self, id: WorkerId) -> Tried<()> {
        query("DELETE FROM worker WHERE id = $1").bind(id.0).execute(&self.pool).await?;
        Ok(())
    }

    pub(super) async fn take_loop(&self, name: &str, holder: Incarnation, ttl: Duration) -> Tried<Option<u64>> {
        let mut tx = self.begin().await?;
        query("SELECT FROM loop WHERE name = $1 FOR UPDATE").bind(text(name)).execute(&mut *tx).await?;
        let now = self.clock.read(&mut tx).await?;
        // The holder keeps its term; anybody else takes a new one, once the lease is over.
        let taken = query(
            "INSERT INTO loop (name, holder, term, expires_at) VALUES ($1, $2, 1, $3) ON CONFLICT (name) DO UPDATE SET \
             term = CASE WHEN loop.holder IS NOT DISTINCT FROM $2 THEN loop.term ELSE loop.term + 1 END, holder = $2, \
             expires_at = $3 WHERE loop.holder IS NULL OR loop.holder = $2 OR loop.expires_at <= $4 RETURNING term",
        )
        .bind(text(name))
        .bind(holder.0)
        .bind(now.after(ttl).0)
        .bind(now.0)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(columns) = taken else {
            tx.rollback().await?;
            return Ok(None);
        };
        let term: i64 = columns.try_get(0)?;
        commit(tx).await?;
        Ok(Some(term.unsigned_abs()))
    }

    pub(super) async fn give_back_loop(&self, name: &str, holder: Incarnation) -> Tried<()> {
        query("UPDATE loop SET holder = NULL WHERE name = $1 AND holder = $2")
            .bind(text(name))
            .bind(holder.0)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(super) async fn all_breakers(&self) -> Tried<BTreeMap<Scope, Breaker>> {
        let found = query("SELECT scope, state FROM breaker").fetch_all(&self.pool).await?;
        found.iter().map(|columns| Ok(rules::decode_breaker(columns.try_get(0)?, columns.try_get(1)?)?)).collect()
    }

    pub(super) async fn one_breaker(&self, scope: &Scope, change: ChangeBreaker) -> Tried<Breaker> {
        let name = scope.to_string();
        let name = text(&name);
        let mut tx = self.begin().await?;
        // A row to lock: of two controllers that hear of the same failure the second one counts it on.
        let new = rules::encode_breaker(&Breaker::default());
        query("INSERT INTO breaker (scope, state, at) VALUES ($1, $2, 0) ON CONFLICT DO NOTHING")
            .bind(&*name)
            .bind(&*new)
            .execute(&mut *tx)
            .await?;
        let found = query("SELECT state FROM breaker WHERE scope = $1 FOR UPDATE").bind(&*name);
        // Gone again already: another one has just been closed.
        let found = found.fetch_optional(&mut *tx).await?;
        let before = match &found {
            Some(columns) => rules::decode_breaker(&name, columns.try_get(0)?)?.1,
            None => Breaker::default(),
        };
        let now = self.clock.read(&mut tx).await?;
        let (after, events) = change(&before, now);
        if after.is_new() {
            query("DELETE FROM breaker WHERE scope = $1").bind(&*name).execute(&mut *tx).await?;
        } else {
            query(
                "INSERT INTO breaker (scope, state, at) VALUES ($1, $2, $3) \
                 ON CONFLICT (scope) DO UPDATE SET state = $2, at = $3",
            )
            .bind(&*name)
            .bind(rules::encode_breaker(&after))
            .bind(now.0)
            .execute(&mut *tx)
            .await?;
        }
        events::insert(&mut tx, now, &events).await?;
        commit(tx).await?;
        Ok(after)
    }
}
