//! The controllers that share a store: says that this one lives, knows the others, and what is wanted of workers.
//!
//! Looked at once a second, so what a lost wake-up or a dead controller leaves behind lasts no longer than that. Who shares
//! its store with nobody asks the store when it starts, and never again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ado_proto::request::ControllerInfo;
use ado_proto::session::Controllers;
use ado_proto::{ControllerId, Incarnation, Timestamp};
use tokio::sync::watch;

use super::{Shared, Timing};
use crate::store::{self, Controller};

/// How often controllers say that they live, at most.
const LOOK: Duration = Duration::from_secs(1);
/// Looks that a controller may miss before it counts as dead.
const MISSED: u32 = 4;

/// See the module.
pub(super) struct Mesh {
    own: Controller,
    look: Duration,
    known: Mutex<Known>,
    /// Rises with every controller that is lost.
    lost: watch::Sender<u64>,
    /// Whether this one has left. Held while it says that it lives.
    left: tokio::sync::Mutex<bool>,
}

#[derive(Default)]
struct Known {
    /// As the store has them, this one among them.
    all: Vec<Controller>,
    /// The store's time then.
    at: Timestamp,
}

impl Mesh {
    /// Of this controller, which knows of no other yet.
    pub(super) fn new(own: Controller, timing: Timing) -> Self {
        let look = (timing.lost_after / 10).clamp(Duration::from_millis(50), LOOK);
        Self {
            own,
            look,
            known: Mutex::default(),
            lost: watch::Sender::default(),
            left: tokio::sync::Mutex::new(false),
        }
    }

    /// `host:port` of the controllers that live, this one first.
    pub(super) fn addresses(&self) -> Vec<String> {
        let known = self.known();
        let others = known.all.iter().filter(|other| other.id != self.own.id && self.lives(other, known.at));
        let mut all = self.own.addresses.clone();
        for address in others.flat_map(|other| &other.addresses) {
            if !all.contains(address) {
                all.push(address.clone());
            }
        }
        all
    }

    /// The controller of a start that lives.
    pub(super) fn live(&self, start: Incarnation) -> Option<ControllerId> {
        if start == self.own.incarnation {
            return Some(self.own.id);
        }
        let known = self.known();
        let of = known.all.iter().find(|other| other.incarnation == start)?;
        self.lives(of, known.at).then_some(of.id)
    }

    /// How many others live.
    pub(super) fn others(&self) -> usize {
        let known = self.known();
        known.all.iter().filter(|other| other.id != self.own.id && self.lives(other, known.at)).count()
    }

    /// Rises with every controller that is lost.
    pub(super) fn losses(&self) -> watch::Receiver<u64> {
        self.lost.subscribe()
    }

    fn lives(&self, controller: &Controller, now: Timestamp) -> bool {
        now.since(controller.seen_at) <= self.look * MISSED
    }

    /// Starts that live, without this one.
    fn living(&self, known: &Known) -> BTreeSet<Incarnation> {
        let others = known.all.iter().filter(|other| other.id != self.own.id && self.lives(other, known.at));
        others.map(|other| other.incarnation).collect()
    }

    /// Takes what the store knows. Whether there are other addresses now.
    fn learn(&self, all: Vec<Controller>, at: Timestamp) -> bool {
        let former = self.addresses();
        let mut known = self.known();
        let living = self.living(&known);
        *known = Known { all, at };
        let gone = living.difference(&self.living(&known)).count();
        drop(known);
        if gone > 0 {
            tracing::warn!(gone, "controllers are gone");
            self.lost.send_modify(|lost| *lost += 1);
        }
        self.addresses() != former
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs until the controller stops.
pub(super) async fn run(shared: Shared) {
    if !shared.shared {
        return;
    }
    if shared.hub.is_alone() && shared.mesh.others() > 0 {
        tracing::error!(
            "other controllers share this database, and there is no Redis: their viewers and workers hear of what happens \
             here late; set ADO_REDIS_URL (controller.redis.url) for all of them"
        );
    }
    loop {
        tokio::time::sleep(shared.mesh.look).await;
        if let Err(error) = look(&shared).await {
            tracing::warn!(%error, "cannot look for other controllers");
        }
    }
}

/// Says that this controller lives, and learns what the others have said.
pub(super) async fn look(shared: &Shared) -> store::Result<()> {
    look_for_wishes(shared).await?;
    let left = shared.mesh.left.lock().await;
    if !shared.shared || *left {
        return Ok(());
    }
    let (workers, viewers) = (shared.fleet.connected().len(), shared.viewers.count());
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let in_touch = shared.bridges.in_touch();
    let own = Controller { workers: count(workers), viewers: count(viewers), in_touch, ..shared.mesh.own.clone() };
    shared.bridges.told(shared.store.report(own, shared.fleet.reports(shared.incarnation)).await?);
    let (all, now) = (shared.store.controllers().await?, shared.store.now().await?);
    if shared.mesh.learn(all, now) {
        shared.fleet.tell_all(&Controllers { addresses: shared.advertised() });
    }
    Ok(())
}

/// Learns what is wanted of workers.
pub(super) async fn look_for_wishes(shared: &Shared) -> store::Result<()> {
    let wishes = shared.store.wishes().await?;
    if !wishes.is_empty() {
        shared.fleet.wish(&wishes, shared.store.now().await?);
    }
    Ok(())
}

/// Tells the others that this controller leaves.
pub(super) async fn leave(shared: &Shared) {
    if !shared.shared {
        return;
    }
    let mut left = shared.mesh.left.lock().await;
    *left = true;
    let told = async {
        for name in super::LOOPS {
            shared.store.release_loop(name, shared.incarnation).await?;
        }
        shared.store.remove_controller(shared.id, shared.incarnation).await
    };
    if let Err(error) = told.await {
        tracing::warn!(%error, "the other controllers are not told that this one leaves");
    }
}

/// All controllers, for people.
pub(super) async fn list(shared: &Shared) -> store::Result<Vec<ControllerInfo>> {
    let mesh = &shared.mesh;
    let now = shared.store.now().await?;
    let (workers, viewers) = (shared.fleet.connected().len(), shared.viewers.count());
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let own = Controller { seen_at: now, workers: count(workers), viewers: count(viewers), ..mesh.own.clone() };
    let mut loops: BTreeMap<Incarnation, Vec<String>> = BTreeMap::new();
    let mut all = Vec::new();
    if shared.shared {
        all = shared.store.controllers().await?;
        for held in shared.store.loops().await? {
            loops.entry(held.holder).or_default().push(held.name);
        }
    } else {
        loops.insert(own.incarnation, super::LOOPS.map(String::from).to_vec());
    }
    all.retain(|other| other.id != own.id);
    all.push(own);
    all.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    let mut info = |controller: Controller| ControllerInfo {
        id: controller.id,
        state: if mesh.lives(&controller, now) { "live" } else { "lost" }.into(),
        addresses: controller.addresses,
        build: controller.build,
        since: controller.since,
        seen_age_ms: u64::try_from(now.since(controller.seen_at).as_millis()).unwrap_or(u64::MAX),
        loops: loops.remove(&controller.incarnation).unwrap_or_default(),
        workers: controller.workers,
        viewers: controller.viewers,
        answers: controller.id == mesh.own.id,
        name: controller.name,
    };
    Ok(all.into_iter().map(&mut info).collect())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn controller(n: u128, seen_at: i64) -> Controller {
        Controller {
            id: ControllerId(Uuid::from_u128(n)),
            incarnation: Incarnation(Uuid::from_u128(n + 100)),
            name: n.to_string(),
            addresses: vec![format!("10.0.0.{n}:1"), "vip:1".into()],
            build: String::new(),
            since: Timestamp(0),
            seen_at: Timestamp(seen_at * 1_000_000),
            in_touch: Timestamp(0),
            workers: 0,
            viewers: 0,
        }
    }

    #[test]
    fn who_is_silent_for_some_looks_is_lost_and_said_so_once() {
        let mesh = Mesh::new(controller(1, 0), Timing::default());
        let mut losses = mesh.losses();
        let at = |second: i64| Timestamp(second * 1_000_000);
        assert!(mesh.learn(vec![controller(1, 10), controller(2, 10), controller(3, 10)], at(10)));
        assert_eq!(mesh.addresses(), ["10.0.0.1:1", "vip:1", "10.0.0.2:1", "10.0.0.3:1"], "this one first, each once");
        assert_eq!(mesh.others(), 2);
        assert!(!mesh.learn(vec![controller(1, 14), controller(2, 10), controller(3, 13)], at(14)));
        assert!(!losses.has_changed().unwrap(), "a look or two may be late");
        assert!(mesh.learn(vec![controller(1, 15), controller(2, 10), controller(3, 14)], at(15)));
        assert!(losses.has_changed().unwrap());
        losses.mark_unchanged();
        assert_eq!(mesh.addresses(), ["10.0.0.1:1", "vip:1", "10.0.0.3:1"]);
        let start = |n: u128| Incarnation(Uuid::from_u128(n + 100));
        assert_eq!([1, 2, 3].map(|n| mesh.live(start(n)).is_some()), [true, false, true]);
        mesh.learn(vec![controller(1, 16), controller(2, 10), controller(3, 16)], at(16));
        assert!(!losses.has_changed().unwrap(), "once");
        // One that says good-bye is gone as well: whoever was connected to it has to move.
        mesh.learn(vec![controller(1, 17)], at(17));
        assert!(losses.has_changed().unwrap());
    }
}
