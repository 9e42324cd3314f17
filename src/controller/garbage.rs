//! Blobs that no checkpoint needs any more go. One controller at a time sees to it.
//!
//! Needed is the last snapshot of every task that is not over or is in the dead letter, wherever its blobs lie. Others stay
//! for a grace, since a worker sends all blobs of a snapshot before it says so: they were found unneeded twice, at least
//! that far apart by this controller's own clock, and were not written again in between. In doubt nothing is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ado_proto::snapshot::Manifest;
use ado_proto::{Audience, BlobId, TaskId};
use tokio::time::Instant;

use super::Shared;
use super::leased::Leased;
use crate::blobs::{self, Blobs};
use crate::store::{self, ListFilter};

/// The lease of the loop.
const LOOP: &str = "garbage";
/// Rows that are looked at at once.
const PAGE: usize = 500;
/// Between two looks, at most: less where the grace is shorter.
const LOOK_EVERY: Duration = Duration::from_secs(15 * 60);
/// States of tasks that are not over.
const LIVE: [&str; 4] = ["queued", "paused", "starting", "running"];

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Blobs(#[from] blobs::Error),
}

/// Runs until the controller stops.
pub(super) async fn run(shared: Shared, grace: Duration) {
    let Some(blobs) = shared.vault.blobs.clone() else { return };
    let round = (grace / 2).min(LOOK_EVERY);
    let mut lease = Leased::new(LOOP, round.max(Duration::from_secs(1)) * 5);
    let mut garbage = Garbage::default();
    loop {
        match lease.hold(&shared).await {
            Ok(Some(_)) => match garbage.sweep(&shared, &blobs, grace).await {
                Ok(0) => {}
                Ok(removed) => tracing::info!(removed, "blobs that no checkpoint needs are gone"),
                Err(error) => tracing::warn!(%error, "cannot look after the blobs"),
            },
            // Another one sees to it.
            Ok(None) => garbage = Garbage::default(),
            Err(error) => tracing::warn!(%error, "cannot look after the blobs"),
        }
        tokio::time::sleep(round).await;
    }
}

/// Blobs that were not needed: when they were last written, and since when they are known not to be.
#[derive(Default)]
struct Garbage(BTreeMap<(TaskId, BlobId), (i64, Instant)>);

impl Garbage {
    async fn sweep(&mut self, shared: &Shared, blobs: &Blobs, grace: Duration) -> Result<usize, Error> {
        let homes = blobs.tasks().await?;
        if homes.is_empty() {
            self.0.clear();
            return Ok(0);
        }
        let wanted = wanted(shared).await?;
        let mut unneeded = BTreeMap::new();
        let mut removed = 0;
        for home in homes {
            let needed = match wanted.get(&home) {
                Some(manifests) => match needed(blobs, home, manifests).await? {
                    Some(needed) => needed,
                    None => continue,
                },
                None => BTreeSet::new(),
            };
            let now = Instant::now();
            let mut over = Vec::new();
            for known in blobs.of(home).await?.into_iter().filter(|known| !needed.contains(&known.id)) {
                let key = (home, known.id);
                let since = match self.0.get(&key) {
                    Some((written, since)) if *written == known.written => *since,
                    _ => now,
                };
                if now.duration_since(since) >= grace && since < now {
                    over.push(known.id);
                } else {
                    unneeded.insert(key, (known.written, since));
                }
            }
            blobs.remove(home, &over).await?;
            removed += over.len();
        }
        self.0 = unneeded;
        Ok(removed)
    }
}

/// Manifests of the snapshots that somebody may go on from, by where they lie.
async fn wanted(shared: &Shared) -> store::Result<BTreeMap<TaskId, BTreeSet<BlobId>>> {
    let mut wanted: BTreeMap<TaskId, BTreeSet<BlobId>> = BTreeMap::new();
    for dead in [false, true] {
        let states = if dead { Vec::new() } else { LIVE.map(String::from).to_vec() };
        let audience = Audience::Everywhere;
        let mut filter = ListFilter { audience, states, group: None, name: None, dead, before: None, limit: PAGE };
        loop {
            let rows = shared.store.list(&filter).await?;
            for snapshot in rows.iter().filter_map(|row| row.task.checkpoint.as_ref()?.snapshot) {
                wanted.entry(snapshot.home).or_default().insert(snapshot.manifest);
            }
            match rows.last() {
                Some(last) if rows.len() == PAGE => filter.before = Some(last.task.id),
                _ => break,
            }
        }
    }
    Ok(wanted)
}

/// Blobs of these snapshots; `None`: one cannot be read, and who knows what it needs.
async fn needed(
    blobs: &Blobs,
    home: TaskId,
    manifests: &BTreeSet<BlobId>,
) -> Result<Option<BTreeSet<BlobId>>, blobs::Error> {
    let mut needed = BTreeSet::new();
    for id in manifests {
        needed.insert(*id);
        let read = match blobs.get(home, *id).await? {
            Some(bytes) => tokio::task::spawn_blocking(move || Manifest::decode(&bytes)).await.ok(),
            None => None,
        };
        match read {
            Some(Ok(manifest)) => needed.extend(manifest.packs.iter().map(|pack| pack.id)),
            Some(Err(error)) => {
                tracing::error!(task = %home, manifest = %id, %error, "the snapshot of a checkpoint cannot be read");
                return Ok(None);
            }
            None => {
                tracing::error!(task = %home, manifest = %id, "the snapshot of a checkpoint is not there");
                return Ok(None);
            }
        }
    }
    Ok(Some(needed))
}
