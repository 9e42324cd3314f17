//! The store's clock: the server's, but it never goes backwards or stands still, so that commit times rise along every
//! log and leases end even when somebody sets the server's clock back.
//!
//! The clock is read after the locks of a transaction. A time below one that is known to have been shown (by a task's last
//! record, or to this process before the clock was asked) means a jump back. Its length is then added to the lead, which
//! is shared by all controllers and goes up only as far as the jump: whoever notices later finds it made up for.

use std::sync::atomic::{AtomicI64, Ordering};

use ado_proto::Timestamp;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _, query};

use super::error::Tried;
use crate::env::Env;

/// The columns of a [`Reading`]; `$1` is the time to show instead of the server's, for tests. Of several rows the last is
/// the latest.
macro_rules! reading {
    () => {
        "coalesce($1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint), (SELECT lead FROM meta)"
    };
}
pub(super) use reading;

/// What the server's clock showed.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    server: i64,
    lead: i64,
}

impl Reading {
    /// Reads the first two columns.
    pub(super) fn of(columns: &PgRow) -> Tried<Self> {
        Ok(Self { server: columns.try_get(0)?, lead: columns.try_get(1)? })
    }

    fn time(self) -> i64 {
        self.server.saturating_add(self.lead)
    }
}

pub(super) struct Clock {
    /// The latest time this process was shown.
    seen: AtomicI64,
    /// Shown instead of the server's clock.
    pub(super) hand: Option<Env>,
}

impl Clock {
    pub(super) fn new(seen: Timestamp, hand: Option<Env>) -> Self {
        Self { seen: AtomicI64::new(seen.0), hand }
    }

    /// What to bind to `$1` of a reading.
    pub(super) fn hand(&self) -> Option<i64> {
        self.hand.as_ref().map(|env| env.now().0)
    }

    /// What a reading that is asked for from now on must not be below.
    pub(super) fn floor(&self) -> Timestamp {
        Timestamp(self.seen.load(Ordering::SeqCst))
    }

    /// The time of a reading, once it is not below `floor`.
    pub(super) async fn settle(
        &self,
        db: &mut PgConnection,
        mut reading: Reading,
        floor: Timestamp,
    ) -> Tried<Timestamp> {
        if reading.time() < floor.0 {
            let raised = query("UPDATE meta SET lead = greatest(lead, $1) RETURNING lead")
                .bind(floor.0.saturating_sub(reading.server))
                .fetch_one(db)
                .await?;
            reading.lead = raised.try_get(0)?;
            tracing::warn!(lead_us = reading.lead, "the database server's clock was set back: its times are moved on");
        }
        self.seen.fetch_max(reading.time(), Ordering::SeqCst);
        Ok(Timestamp(reading.time()))
    }

    /// The time now.
    pub(super) async fn read(&self, db: &mut PgConnection) -> Tried<Timestamp> {
        let floor = self.floor();
        let columns = query(concat!("SELECT ", reading!())).bind(self.hand()).fetch_one(&mut *db).await?;
        self.settle(db, Reading::of(&columns)?, floor).await
    }
}
