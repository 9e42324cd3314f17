//! What every store answers alike, as pure functions of what it holds.

use std::collections::BTreeSet;
use std::time::Duration;

use ado_proto::request::{Events, EventsFrom, SystemEvent, WorkerBounds, WorkerDesired};
use ado_proto::{Audience, Namespace, Timestamp};

use super::{Beat, Error, Lease, NewWish, Renewal, Row, Token, TokenRefusal, Wish, Worker};
use crate::env::Env;
use crate::task::{Breaker, Scope};

/// A new generation id: random, not zero, and small enough for a signed column.
pub(super) fn generation(env: &Env) -> u64 {
    let mut bytes = [0; 8];
    env.fill(&mut bytes);
    (u64::from_le_bytes(bytes) >> 1).max(1)
}

/// Whether an audience may see what belongs to a namespace.
pub(super) fn sees(audience: &Audience, namespace: &Namespace) -> bool {
    match audience {
        Audience::Everywhere => true,
        Audience::Namespace(own) => own == namespace,
    }
}

/// A breaker as it is kept, and back.
pub(super) fn encode_breaker(breaker: &Breaker) -> String {
    serde_json::to_string(breaker).expect("a breaker is numbers and texts")
}

pub(super) fn decode_breaker(scope: &str, breaker: &str) -> super::Result<(Scope, Breaker)> {
    let damaged = |error: &dyn std::fmt::Display| Error::Damaged(format!("the breaker of {scope}: {error}"));
    let breaker = serde_json::from_str::<Breaker>(breaker).map_err(|error| damaged(&error))?;
    Ok((scope.parse::<Scope>().map_err(|error| damaged(&error))?, breaker))
}

/// Whether a task is in the dead letter.
pub(super) fn is_dead(row: &Row) -> bool {
    crate::task::settle(&row.task, row.settled).is_ok()
}

/// Whether a reader may see an event. What belongs to no namespace is about the mesh itself: for administrators.
pub(super) fn may_read(reader: &Audience, event: &Audience) -> bool {
    match event {
        Audience::Everywhere => *reader == Audience::Everywhere,
        Audience::Namespace(namespace) => sees(reader, namespace),
    }
}

/// An answer with these events. `last` is the highest cursor that was given before they were read: the next call begins
/// there when these are all there are, so that nobody reads again what is not for him.
pub(super) fn events_page(events: Vec<SystemEvent>, from: EventsFrom, last: u64, limit: usize) -> Events {
    let reached = match from {
        EventsFrom::After(after) => after,
        EventsFrom::Tail(_) | EventsFrom::Since(_) => 0,
    };
    let newest = events.last().map_or(reached, |event| event.cursor);
    // A full page may have been cut; one that reaches to the end has not.
    let is_cut = !events.is_empty() && events.len() >= limit && !matches!(from, EventsFrom::Tail(_));
    let next = if is_cut { newest } else { newest.max(last) };
    Events { events, next }
}

/// A heartbeat's effect on the tasks that its worker holds here. Everything in order of id.
pub(super) fn renewal(held: Vec<Row>, beat: &Beat, expires_at: Timestamp) -> Renewal {
    let mut named: BTreeSet<_> = beat.holds.iter().copied().collect();
    let incarnation = beat.incarnation;
    let mut renewal = Renewal::default();
    for mut row in held {
        let is_given = row.lease.as_ref().is_some_and(|lease| lease.incarnation == incarnation);
        if is_given && named.remove(&(row.task.id, row.task.epoch)) {
            row.lease = row.lease.map(|lease| Lease { is_known: true, expires_at, ..lease });
            renewal.renewed.push(row);
        } else {
            renewal.unnamed.push(row);
        }
    }
    renewal.lost.extend(named);
    renewal
}

/// Whether a worker that registers is the start that was draining already: it does not take work again.
pub(super) fn still_drains(former: Option<&Worker>, worker: &Worker) -> bool {
    former.is_some_and(|former| former.draining && former.incarnation == worker.incarnation)
}

/// A wish in the place of a former one.
pub(super) fn next_wish(former: Option<&Wish>, wish: NewWish, now: Timestamp) -> Wish {
    Wish {
        desired: wish.desired,
        generation: former.map_or(0, |former| former.generation) + 1,
        deadline: wish.within.map(|within| now.after(within)),
        by: wish.by,
    }
}

/// The wish that a word stands for.
pub(super) fn desired(word: &str) -> Result<WorkerDesired, Error> {
    let all = [WorkerDesired::Active, WorkerDesired::Cordoned, WorkerDesired::Drained];
    let found = all.into_iter().find(|desired| desired.as_str() == word);
    found.ok_or_else(|| Error::Damaged(format!("a worker is wanted `{word}`")))
}

/// A time as columns keep it.
pub(super) fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// The token after one use.
pub(super) fn use_once(mut token: Token, now: Timestamp) -> Result<Token, TokenRefusal> {
    if token.expires_at <= now {
        return Err(TokenRefusal::Expired);
    }
    if let Some(left) = &mut token.uses_left {
        *left = left.checked_sub(1).ok_or(TokenRefusal::UsedUp)?;
    }
    Ok(token)
}

/// A worker's bounds as a database keeps them; `None`: there are none.
pub(super) fn bounds_text(bounds: &WorkerBounds) -> Option<String> {
    (*bounds != WorkerBounds::default()).then(|| serde_json::to_string(bounds).expect("lists of names are JSON"))
}

/// A worker's bounds from a database.
pub(super) fn bounds(text: Option<&str>) -> Result<WorkerBounds, Error> {
    let read = |text| serde_json::from_str(text).map_err(|error| Error::Damaged(format!("a worker's bounds: {error}")));
    text.map_or_else(|| Ok(WorkerBounds::default()), read)
}

/// Ids of tasks made before this instant are lower: their first 48 bits are milliseconds.
pub(super) fn lowest_id(at: Timestamp) -> uuid::Uuid {
    uuid::Uuid::from_u128(u128::try_from(at.0 / 1000).unwrap_or(0) << 80)
}

/// What is older than this has outlived its retention.
pub(super) fn cutoff(now: Timestamp, retention: Duration) -> Timestamp {
    Timestamp(now.0.saturating_sub(i64::try_from(retention.as_micros()).unwrap_or(i64::MAX)))
}
