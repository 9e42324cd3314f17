//! Blobs of snapshots, as workers put and get them: each only of the tasks that it holds.

use std::time::Duration;

use ado_certs::VerifiedPeer;
use ado_proto::request::{BlobFollows, ErrorCode, ErrorReply, GetBlob, PutBlob};
use ado_proto::snapshot::MAX_BLOB;
use ado_proto::{BlobId, Epoch, Incarnation, TaskId};
use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Shared;
use super::requests::unavailable;
use super::session::{holds, worker_id};
use crate::blobs::{self, Blobs};
use crate::net::{self, Receiver, Sender};
use crate::store::Row;

/// Blobs that a controller holds in memory at once, each of up to [`MAX_BLOB`] bytes. Others wait: nobody who waits for
/// anything else waits for them.
const AT_ONCE: usize = 8;
/// From a blob's first byte to its last. Who is slower tries again, and others get the place.
const BLOB_WITHIN: Duration = Duration::from_secs(120);
/// Bytes of a blob in one frame: what is more urgent waits for no more than this.
const FRAME: usize = 128 * 1024;

/// Where blobs are kept, and how many are on their way.
pub(super) struct Vault {
    /// `None`: nowhere.
    pub(super) blobs: Option<Blobs>,
    turns: std::sync::Arc<Semaphore>,
}

impl Vault {
    pub(super) fn new(blobs: Option<Blobs>) -> Self {
        Self { blobs, turns: std::sync::Arc::new(Semaphore::new(AT_ONCE)) }
    }

    fn blobs(&self) -> Result<&Blobs, ErrorReply> {
        self.blobs.as_ref().ok_or_else(|| {
            let message = "controllers that share a database keep no snapshots unless they share a place for them: set \
                           controller.blobs.url";
            ErrorReply::new(ErrorCode::Invalid, message).hint("controller.blobs.url: s3://bucket/prefix")
        })
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit, ErrorReply> {
        let turn = self.turns.clone().acquire_owned().await;
        turn.map_err(|_| ErrorReply::new(ErrorCode::Stopping, "the controller stops"))
    }
}

fn failing(error: blobs::Error) -> ErrorReply {
    ErrorReply::new(ErrorCode::Unavailable, error.to_string())
}

/// The row of a task that this start of a worker holds under this epoch.
async fn held(
    shared: &Shared,
    peer: &VerifiedPeer,
    task: TaskId,
    epoch: Epoch,
    incarnation: Incarnation,
) -> Result<Row, ErrorReply> {
    let worker = worker_id(peer)?;
    let row = shared.store.row(task).await.map_err(unavailable)?;
    row.filter(|row| row.task.is_held() && row.task.epoch == epoch && holds(row, worker, incarnation)).ok_or_else(
        || {
            shared.metrics.stale_write();
            ErrorReply::new(ErrorCode::Stale, format!("epoch {epoch} of {task} is over"))
        },
    )
}

/// Whether a blob may be put. The place for it, while it is held.
pub(super) async fn open_put(
    shared: &Shared,
    peer: &VerifiedPeer,
    put: &PutBlob,
) -> Result<OwnedSemaphorePermit, ErrorReply> {
    held(shared, peer, put.task, put.epoch, put.incarnation).await?;
    shared.vault.blobs()?;
    if put.len > MAX_BLOB as u64 {
        let message = format!("a blob has at most {MAX_BLOB} bytes, not {}", put.len);
        return Err(ErrorReply::new(ErrorCode::Invalid, message));
    }
    shared.vault.turn().await
}

/// Takes a blob and makes it durable.
pub(super) async fn take(shared: &Shared, put: &PutBlob, rx: &mut Receiver) -> Result<(), ErrorReply> {
    let bytes = match timeout(BLOB_WITHIN, receive(rx, put.len)).await {
        Ok(received) => received?,
        Err(_) => return Err(ErrorReply::new(ErrorCode::Busy, "the blob did not come in time")),
    };
    let hashed = bytes.clone();
    let found = tokio::task::spawn_blocking(move || hash(&hashed)).await;
    if found.ok() != Some(put.id) {
        let message = format!("what came is not blob {}", put.id);
        return Err(ErrorReply::new(ErrorCode::Invalid, message));
    }
    // A worker that has lost the task meanwhile puts what nobody will name.
    shared.vault.blobs()?.put(put.task, put.id, bytes).await.map_err(failing)
}

async fn receive(rx: &mut Receiver, len: u64) -> Result<Bytes, ErrorReply> {
    let mut bytes = BytesMut::new();
    let wrong = |error: String| ErrorReply::new(ErrorCode::Invalid, error);
    while let Some(frame) = rx.next().await.map_err(|error| wrong(error.to_string()))? {
        if (bytes.len() + frame.len()) as u64 > len {
            return Err(wrong(format!("more than the {len} bytes that were announced")));
        }
        bytes.extend_from_slice(&frame);
    }
    if (bytes.len() as u64) < len {
        return Err(wrong(format!("{} of the {len} bytes that were announced", bytes.len())));
    }
    Ok(bytes.freeze())
}

fn hash(bytes: &[u8]) -> BlobId {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    BlobId(digest.as_ref().try_into().expect("a digest of 32 bytes"))
}

/// A blob of the snapshot that a task goes on from.
pub(super) async fn open_get(
    shared: &Shared,
    peer: &VerifiedPeer,
    get: &GetBlob,
) -> Result<(BlobFollows, (OwnedSemaphorePermit, Bytes)), ErrorReply> {
    let row = held(shared, peer, get.task, get.epoch, get.incarnation).await?;
    let gone = || ErrorReply::new(ErrorCode::NotFound, format!("there is no blob {} for {}", get.id, get.task));
    let snapshot = row.task.checkpoint.and_then(|checkpoint| checkpoint.snapshot).ok_or_else(gone)?;
    let blobs = shared.vault.blobs()?;
    let turn = shared.vault.turn().await?;
    let bytes = blobs.get(snapshot.home, get.id).await.map_err(failing)?.ok_or_else(gone)?;
    Ok((BlobFollows { len: bytes.len() as u64 }, (turn, bytes)))
}

/// Sends it.
pub(super) async fn send(bytes: &Bytes, tx: &mut Sender) -> Result<(), net::Error> {
    let sending = async {
        for part in bytes.chunks(FRAME) {
            tx.send(part).await?;
        }
        tx.finish();
        Ok(())
    };
    timeout(BLOB_WITHIN, sending).await.unwrap_or(Err(net::Error::Closed))
}
