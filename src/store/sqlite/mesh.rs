//! The controllers of a mesh, what they know for each other, what is wanted of workers, and what all controllers need.

use std::collections::BTreeMap;
use std::time::Duration;

use ado_proto::request::{Load, WorkerDesired};
use ado_proto::{ControllerId, Incarnation, Timestamp, WorkerId};
use bytes::Bytes;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, query};

use super::super::{Audit, Controller, Error, HeldLoop, Key, NewEvent, NewWish, Report, Result, Wish, rules};
use super::access::{insert_audit, insert_events};
use super::commit::remember;
use super::tasks::{blob, uuid};
use super::{Sqlite, int};

fn controller(columns: &SqliteRow) -> Result<Controller> {
    let addresses: &str = columns.try_get(3)?;
    Ok(Controller {
        id: ControllerId(uuid(columns.try_get(0)?)?),
        incarnation: Incarnation(uuid(columns.try_get(1)?)?),
        name: columns.try_get(2)?,
        addresses: serde_json::from_str(addresses)
            .map_err(|error| Error::Damaged(format!("a controller's row: {error}")))?,
        build: columns.try_get(4)?,
        since: Timestamp(columns.try_get(5)?),
        seen_at: Timestamp(columns.try_get(6)?),
        workers: columns.try_get(7)?,
        viewers: columns.try_get(8)?,
        in_touch: Timestamp(columns.try_get(9)?),
    })
}

fn report(columns: &SqliteRow) -> Result<Report> {
    let count = |at: usize| Ok::<u64, sqlx::Error>(columns.try_get::<i64, _>(at)?.unsigned_abs());
    Ok(Report {
        worker: WorkerId(uuid(columns.try_get(0)?)?),
        controller: Incarnation(uuid(columns.try_get(1)?)?),
        busy: columns.try_get(2)?,
        load: Load {
            cpus: columns.try_get(3)?,
            load_milli: columns.try_get(4)?,
            memory: count(5)?,
            memory_available: count(6)?,
        },
        rtt: Duration::from_micros(count(7)?),
    })
}

fn wish(columns: &SqliteRow) -> Result<(WorkerId, Wish)> {
    let wish = Wish {
        desired: rules::desired(columns.try_get(1)?)?,
        generation: columns.try_get::<i64, _>(2)?.unsigned_abs(),
        deadline: columns.try_get::<Option<i64>, _>(3)?.map(Timestamp),
        by: columns.try_get(4)?,
    };
    Ok((WorkerId(uuid(columns.try_get(0)?)?), wish))
}

impl Sqlite {
    pub(super) async fn held_loops(&self) -> Result<Vec<HeldLoop>> {
        let held =
            query("SELECT name, holder, term FROM loop WHERE holder IS NOT NULL AND expires_at > ? ORDER BY name");
        let held = held.bind(self.clock.now().0).fetch_all(&self.readers).await?;
        let each = held.iter().map(|columns| {
            let term: i64 = columns.try_get(2)?;
            Ok(HeldLoop {
                name: columns.try_get(0)?,
                holder: Incarnation(uuid(columns.try_get(1)?)?),
                term: term.unsigned_abs(),
            })
        });
        each.collect()
    }

    pub(super) async fn keep_report(&self, controller: Controller, workers: Vec<Report>) -> Result<Timestamp> {
        let mut tx = self.write().await?;
        query(
            "INSERT INTO controller (id, incarnation, name, addresses, build, since, seen_at, workers, viewers, in_touch) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7, ?8, ?9) ON CONFLICT (id) DO UPDATE SET since = \
             CASE WHEN incarnation = ?2 THEN since ELSE ?6 END, incarnation = ?2, name = ?3, addresses = ?4, build = ?5, \
             seen_at = ?6, workers = ?7, viewers = ?8, in_touch = ?9",
        )
        .bind(blob(controller.id.0))
        .bind(blob(controller.incarnation.0))
        .bind(controller.name)
        .bind(serde_json::to_string(&controller.addresses).expect("strings are JSON"))
        .bind(controller.build)
        .bind(tx.now.0)
        .bind(controller.workers)
        .bind(controller.viewers)
        .bind(controller.in_touch.0)
        .execute(&mut tx.connection)
        .await?;
        for report in workers {
            query(
                "INSERT OR REPLACE INTO report (worker, controller, busy, cpus, load_milli, memory, memory_available, \
                 rtt_us, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(blob(report.worker.0))
            .bind(blob(report.controller.0))
            .bind(report.busy)
            .bind(report.load.cpus)
            .bind(report.load.load_milli)
            .bind(int(report.load.memory))
            .bind(int(report.load.memory_available))
            .bind(rules::micros(report.rtt))
            .bind(tx.now.0)
            .execute(&mut tx.connection)
            .await?;
        }
        let now = tx.now;
        tx.commit().await?;
        Ok(now)
    }

    pub(super) async fn all_controllers(&self) -> Result<Vec<Controller>> {
        let found = query(
            "SELECT id, incarnation, name, addresses, build, since, seen_at, workers, viewers, in_touch FROM controller \
             ORDER BY id",
        );
        found.fetch_all(&self.readers).await?.iter().map(controller).collect()
    }

    pub(super) async fn forget_controller(&self, id: ControllerId, incarnation: Incarnation) -> Result<()> {
        let mut tx = self.write().await?;
        query("DELETE FROM controller WHERE id = ? AND incarnation = ?")
            .bind(blob(id.0))
            .bind(blob(incarnation.0))
            .execute(&mut tx.connection)
            .await?;
        tx.commit().await
    }

    pub(super) async fn all_reports(&self) -> Result<Vec<Report>> {
        let found = query(
            "SELECT worker, controller, busy, cpus, load_milli, memory, memory_available, rtt_us FROM report \
             ORDER BY worker",
        );
        found.fetch_all(&self.readers).await?.iter().map(report).collect()
    }

    pub(super) async fn all_wishes(&self) -> Result<BTreeMap<WorkerId, Wish>> {
        let found = query("SELECT worker, desired, generation, deadline, wished_by FROM wish");
        found.fetch_all(&self.readers).await?.iter().map(wish).collect()
    }

    pub(super) async fn keep_wish(
        &self,
        worker: WorkerId,
        new: NewWish,
        kept: Option<(Key, Bytes)>,
        audit: Audit,
        event: Option<NewEvent>,
    ) -> Result<Wish> {
        let mut tx = self.write().await?;
        let former = query("SELECT worker, desired, generation, deadline, wished_by FROM wish WHERE worker = ?")
            .bind(blob(worker.0))
            .fetch_optional(&mut tx.connection)
            .await?;
        let former = former.as_ref().map(wish).transpose()?;
        let next = rules::next_wish(former.as_ref().map(|(_, wish)| wish), new, tx.now);
        query("INSERT OR REPLACE INTO wish (worker, desired, generation, deadline, wished_by) VALUES (?, ?, ?, ?, ?)")
            .bind(blob(worker.0))
            .bind(WorkerDesired::as_str(next.desired))
            .bind(int(next.generation))
            .bind(next.deadline.map(|deadline| deadline.0))
            .bind(&next.by)
            .execute(&mut tx.connection)
            .await?;
        insert_audit(&mut tx.connection, tx.now, &audit).await?;
        insert_events(&mut tx.connection, tx.now, &event.into_iter().collect::<Vec<_>>()).await?;
        if let Some((key, answer)) = kept {
            remember(&mut tx.connection, &key, &answer, tx.now).await?;
        }
        tx.commit().await?;
        Ok(next)
    }

    pub(super) async fn find_item(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let found = query("SELECT item FROM item WHERE name = ?").bind(name).fetch_optional(&self.readers).await?;
        Ok(found.map(|columns| columns.try_get(0)).transpose()?)
    }

    pub(super) async fn keep_item(&self, name: &str, item: &[u8]) -> Result<Vec<u8>> {
        let mut tx = self.write().await?;
        query("INSERT INTO item (name, item) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(name)
            .bind(item)
            .execute(&mut tx.connection)
            .await?;
        let kept = query("SELECT item FROM item WHERE name = ?").bind(name).fetch_one(&mut tx.connection).await?;
        let kept = kept.try_get(0)?;
        tx.commit().await?;
        Ok(kept)
    }
}
