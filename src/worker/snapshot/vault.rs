//! Where the blobs of a task lie: with the controllers.

use ado_proto::request::{BlobFollows, GetBlob, PutBlob, decode_response};
use ado_proto::snapshot::MAX_BLOB;
use ado_proto::{BlobId, Epoch, ErrorCode, Incarnation, TaskId};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use super::pack::hash;
use crate::net::{self, Call, Channel, Link, Priority};

/// Bytes of a blob in one frame: what is more urgent waits for no more than this.
const FRAME: usize = 128 * 1024;

/// Why a blob was not kept or read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// The attempt is over.
    #[error("the attempt is over")]
    Stale,
    /// There is no such blob.
    #[error("blob {0} is not there any more")]
    Gone(BlobId),
    /// It is refused, and would be again.
    #[error("{0}")]
    Refused(String),
    /// It may go better another time.
    #[error("{0}")]
    Broken(String),
}

/// Keeps the blobs of one attempt's task, durably.
#[async_trait]
pub trait Vault: std::fmt::Debug + Send + Sync {
    /// Keeps a blob; it is durable then.
    async fn put(&self, id: BlobId, bytes: Bytes) -> Result<(), VaultError>;

    /// A blob of the snapshot that the attempt goes on from. It is what its name says.
    async fn get(&self, id: BlobId) -> Result<Bytes, VaultError>;
}

/// At whichever controller can be reached.
pub(in crate::worker) struct LinkVault {
    pub(in crate::worker) link: Link,
    pub(in crate::worker) task: TaskId,
    pub(in crate::worker) epoch: Epoch,
    pub(in crate::worker) incarnation: Incarnation,
}

impl std::fmt::Debug for LinkVault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkVault").field("task", &self.task).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

fn bulk() -> Call {
    Call { priority: Priority::Bulk, ..Call::default() }
}

fn failed(id: BlobId) -> impl Fn(net::Error) -> VaultError {
    move |error| match error {
        net::Error::Closed => VaultError::Stale,
        net::Error::Refused(reply) if reply.is(ErrorCode::Stale) => VaultError::Stale,
        net::Error::Refused(reply) if reply.is(ErrorCode::NotFound) => VaultError::Gone(id),
        net::Error::Refused(reply) => {
            let passes = [ErrorCode::Unavailable, ErrorCode::Busy, ErrorCode::Internal, ErrorCode::Stopping];
            match passes.into_iter().any(|code| reply.is(code)) {
                true => VaultError::Broken(reply.message),
                false => VaultError::Refused(reply.message),
            }
        }
        other => VaultError::Broken(other.to_string()),
    }
}

#[async_trait]
impl Vault for LinkVault {
    async fn put(&self, id: BlobId, bytes: Bytes) -> Result<(), VaultError> {
        let Self { task, epoch, incarnation, .. } = *self;
        let request = PutBlob { task, epoch, incarnation, id, len: bytes.len() as u64 };
        let ((), Channel { mut tx, mut rx }) = self.link.open(&request, bulk()).await.map_err(failed(id))?;
        let mut sent = Ok(());
        for part in bytes.chunks(FRAME) {
            sent = tx.send(part).await;
            if sent.is_err() {
                break;
            }
        }
        tx.finish();
        // Who refuses what comes stops reading it: the answer says why.
        let answer = match (rx.next().await, sent) {
            (Ok(Some(answer)), _) => answer,
            (Ok(None), Ok(())) => return Err(VaultError::Broken("the stream ended without an answer".into())),
            (Ok(None), Err(error)) | (Err(error), _) => return Err(failed(id)(error)),
        };
        let answer = decode_response::<PutBlob>(&answer).map_err(|error| VaultError::Broken(error.to_string()))?;
        answer.map_err(|reply| failed(id)(net::Error::Refused(reply)))
    }

    async fn get(&self, id: BlobId) -> Result<Bytes, VaultError> {
        let Self { task, epoch, incarnation, .. } = *self;
        let request = GetBlob { task, epoch, incarnation, id };
        let (BlobFollows { len }, Channel { tx: _tx, mut rx }) =
            self.link.open(&request, bulk()).await.map_err(failed(id))?;
        if len > MAX_BLOB as u64 {
            return Err(VaultError::Refused(format!("blob {id} has {len} bytes, more than a blob may have")));
        }
        let mut bytes = BytesMut::new();
        while let Some(frame) = rx.next().await.map_err(failed(id))? {
            if (bytes.len() + frame.len()) as u64 > len {
                return Err(VaultError::Broken(format!("blob {id} is longer than was said")));
            }
            bytes.extend_from_slice(&frame);
        }
        if bytes.len() as u64 != len {
            return Err(VaultError::Broken(format!("blob {id} broke off")));
        }
        let bytes = bytes.freeze();
        let hashed = bytes.clone();
        let found = tokio::task::spawn_blocking(move || hash(&hashed)).await;
        match found.is_ok_and(|found| found == id) {
            true => Ok(bytes),
            false => Err(VaultError::Refused(format!("blob {id} is damaged"))),
        }
    }
}
