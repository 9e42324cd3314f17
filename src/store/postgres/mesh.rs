//! The controllers of a mesh, what they know for each other, what is wanted of workers, and what all controllers need.

use std::collections::BTreeMap;
use std::time::Duration;

use ado_proto::request::{Load, WorkerDesired};
use ado_proto::{ControllerId, Incarnation, Timestamp, WorkerId};
use bytes::Bytes;
use sqlx::postgres::PgRow;
use sqlx::{Row as _, query};

use super::super::{Audit, Controller, Error, HeldLoop, Key, NewEvent, NewWish, Report, Wish, rules};
use super::access::insert_audit;
use super::commit::{commit, remember};
use super::error::Tried;
use super::{Postgres, events, int, text};

fn controller(columns: &PgRow) -> Tried<Controller> {
    let addresses: &str = columns.try_get(3)?;
    Ok(Controller {
        id: ControllerId(columns.try_get(0)?),
        incarnation: Incarnation(columns.try_get(1)?),
        name: columns.try_get(2)?,
        addresses: serde_json::from_str(addresses)
            .map_err(|error| Error::Damaged(format!("a controller's row: {error}")))?,
        build: columns.try_get(4)?,
        since: Timestamp(columns.try_get(5)?),
        seen_at: Timestamp(columns.try_get(6)?),
        workers: number(columns.try_get(7)?),
        viewers: number(columns.try_get(8)?),
        in_touch: Timestamp(columns.try_get(9)?),
    })
}

fn report(columns: &PgRow) -> Tried<Report> {
    let count = |at: usize| Ok::<u64, sqlx::Error>(columns.try_get::<i64, _>(at)?.unsigned_abs());
    Ok(Report {
        worker: WorkerId(columns.try_get(0)?),
        controller: Incarnation(columns.try_get(1)?),
        busy: number(columns.try_get(2)?),
        load: Load {
            cpus: number(columns.try_get(3)?),
            load_milli: number(columns.try_get(4)?),
            memory: count(5)?,
            memory_available: count(6)?,
        },
        rtt: Duration::from_micros(count(7)?),
    })
}

fn wish(columns: &PgRow) -> Tried<(WorkerId, Wish)> {
    let wish = Wish {
        desired: rules::desired(columns.try_get(1)?)?,
        generation: columns.try_get::<i64, _>(2)?.unsigned_abs(),
        deadline: columns.try_get::<Option<i64>, _>(3)?.map(Timestamp),
        by: columns.try_get(4)?,
    };
    Ok((WorkerId(columns.try_get(0)?), wish))
}

fn number(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

impl Postgres {
    pub(super) async fn held_loops(&self) -> Tried<Vec<HeldLoop>> {
        let now = self.read_clock().await?;
        let held =
            query("SELECT name, holder, term FROM loop WHERE holder IS NOT NULL AND expires_at > $1 ORDER BY name");
        let held = held.bind(now.0).fetch_all(&self.pool).await?;
        let each = held.iter().map(|columns| {
            let term: i64 = columns.try_get(2)?;
            Ok(HeldLoop {
                name: columns.try_get(0)?,
                holder: Incarnation(columns.try_get(1)?),
                term: term.unsigned_abs(),
            })
        });
        each.collect()
    }

    pub(super) async fn keep_report(&self, controller: Controller, workers: Vec<Report>) -> Tried<Timestamp> {
        let mut tx = self.begin().await?;
        let now = self.clock.read(&mut tx).await?;
        query(
            "INSERT INTO controller (id, incarnation, name, addresses, build, since, seen_at, workers, viewers, in_touch) \
             VALUES ($1, $2, $3, $4, $5, $6, $6, $7, $8, $9) ON CONFLICT (id) DO UPDATE SET since = \
             CASE WHEN controller.incarnation = $2 THEN controller.since ELSE $6 END, incarnation = $2, name = $3, \
             addresses = $4, build = $5, seen_at = $6, workers = $7, viewers = $8, in_touch = $9",
        )
        .bind(controller.id.0)
        .bind(controller.incarnation.0)
        .bind(text(&controller.name))
        .bind(text(&serde_json::to_string(&controller.addresses).expect("strings are JSON")))
        .bind(text(&controller.build))
        .bind(now.0)
        .bind(i64::from(controller.workers))
        .bind(i64::from(controller.viewers))
        .bind(controller.in_touch.0)
        .execute(&mut *tx)
        .await?;
        if !workers.is_empty() {
            let column = |value: &dyn Fn(&Report) -> i64| workers.iter().map(value).collect::<Vec<_>>();
            query(
                "INSERT INTO report (worker, controller, busy, cpus, load_milli, memory, memory_available, rtt_us, at) \
                 SELECT *, $9::bigint FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::bigint[], $5::bigint[], \
                 $6::bigint[], $7::bigint[], $8::bigint[]) ON CONFLICT (worker) DO UPDATE SET \
                 (controller, busy, cpus, load_milli, memory, memory_available, rtt_us, at) = ROW (excluded.controller, \
                 excluded.busy, excluded.cpus, excluded.load_milli, excluded.memory, excluded.memory_available, \
                 excluded.rtt_us, excluded.at)",
            )
            .bind(workers.iter().map(|report| report.worker.0).collect::<Vec<_>>())
            .bind(workers.iter().map(|report| report.controller.0).collect::<Vec<_>>())
            .bind(column(&|report| report.busy.into()))
            .bind(column(&|report| report.load.cpus.into()))
            .bind(column(&|report| report.load.load_milli.into()))
            .bind(column(&|report| int(report.load.memory)))
            .bind(column(&|report| int(report.load.memory_available)))
            .bind(column(&|report| rules::micros(report.rtt)))
            .bind(now.0)
            .execute(&mut *tx)
            .await?;
        }
        commit(tx).await?;
        Ok(now)
    }

    pub(super) async fn all_controllers(&self) -> Tried<Vec<Controller>> {
        let found = query(
            "SELECT id, incarnation, name, addresses, build, since, seen_at, workers, viewers, in_touch FROM controller \
             ORDER BY id",
        );
        found.fetch_all(&self.pool).await?.iter().map(controller).collect()
    }

    pub(super) async fn forget_controller(&self, id: ControllerId, incarnation: Incarnation) -> Tried<()> {
        query("DELETE FROM controller WHERE id = $1 AND incarnation = $2")
            .bind(id.0)
            .bind(incarnation.0)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    pub(super) async fn all_reports(&self) -> Tried<Vec<Report>> {
        let found = query(
            "SELECT worker, controller, busy, cpus, load_milli, memory, memory_available, rtt_us FROM report \
             ORDER BY worker",
        );
        found.fetch_all(&self.pool).await?.iter().map(report).collect()
    }

    pub(super) async fn all_wishes(&self) -> Tried<BTreeMap<WorkerId, Wish>> {
        let found = query("SELECT worker, desired, generation, deadline, wished_by FROM wish");
        found.fetch_all(&self.pool).await?.iter().map(wish).collect()
    }

    pub(super) async fn keep_wish(
        &self,
        worker: WorkerId,
        new: NewWish,
        kept: Option<(Key, Bytes)>,
        audit: Audit,
        event: Option<NewEvent>,
    ) -> Tried<Wish> {
        let mut tx = self.begin().await?;
        // Whoever wishes at the same time waits here: there may be no row yet to lock.
        let lock = query("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))");
        lock.bind(worker.0.to_string()).execute(&mut *tx).await?;
        let former = query("SELECT worker, desired, generation, deadline, wished_by FROM wish WHERE worker = $1")
            .bind(worker.0)
            .fetch_optional(&mut *tx)
            .await?;
        let former = former.as_ref().map(wish).transpose()?;
        let now = self.clock.read(&mut tx).await?;
        let next = rules::next_wish(former.as_ref().map(|(_, wish)| wish), new, now);
        query(
            "INSERT INTO wish (worker, desired, generation, deadline, wished_by) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (worker) DO UPDATE SET desired = $2, generation = $3, deadline = $4, wished_by = $5",
        )
        .bind(worker.0)
        .bind(WorkerDesired::as_str(next.desired))
        .bind(int(next.generation))
        .bind(next.deadline.map(|deadline| deadline.0))
        .bind(text(&next.by))
        .execute(&mut *tx)
        .await?;
        insert_audit(&mut tx, now, audit).await?;
        if let Some(event) = event {
            events::insert(&mut tx, now, &[event]).await?;
        }
        if let Some((key, answer)) = kept {
            remember(&mut tx, &key, &answer, now).await?;
        }
        commit(tx).await?;
        Ok(next)
    }

    pub(super) async fn find_item(&self, name: &str) -> Tried<Option<Vec<u8>>> {
        let found = query("SELECT item FROM item WHERE name = $1").bind(text(name)).fetch_optional(&self.pool).await?;
        Ok(found.map(|columns| columns.try_get(0)).transpose()?)
    }

    pub(super) async fn keep_item(&self, name: &str, item: &[u8]) -> Tried<Vec<u8>> {
        let insert = query("INSERT INTO item (name, item) VALUES ($1, $2) ON CONFLICT DO NOTHING");
        insert.bind(text(name)).bind(item).execute(&self.pool).await?;
        // Another's may have been there, or been committed while the insertion waited for it.
        let found = self.find_item(name).await?;
        Ok(found.ok_or_else(|| Error::Damaged(format!("`{name}` is gone")))?)
    }
}
