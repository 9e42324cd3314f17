//! Blobs: where snapshots of tasks' folders are kept, a folder per task.
//!
//! Owns: what a blob is called in a store, and when it is durable. One store lies in a folder, another one speaks S3; both
//! pass the same tests.
//! Must never know: what is in a blob, who may ask for it, when it is no longer needed.

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ado_proto::{BlobId, TaskId};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, RetryConfig};

/// How long a store that speaks S3 may take for one blob, with all tries. Whoever wanted it is told, and tries again.
const PATIENCE: Duration = Duration::from_secs(30);
const TRIES: usize = 4;

/// Where blobs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a folder, which is made.
    Folder(PathBuf),
    /// In a bucket of a store that speaks S3.
    Bucket(Bucket),
}

/// Where a bucket is. What is `None` is taken from the variables that other programs know, `AWS_REGION` and its like, or
/// from the machine it runs on, where that gives credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// What all names of blobs begin with; may be empty.
    pub prefix: String,
    /// The server, unless it is Amazon's.
    pub endpoint: Option<String>,
    /// The region.
    pub region: Option<String>,
    /// Who we are, and the secret that proves it.
    pub key: Option<(String, String)>,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, prefix, endpoint, region, .. } = self;
        let mut out = f.debug_struct("Bucket");
        out.field("name", name).field("prefix", prefix).field("endpoint", endpoint).field("region", region);
        out.finish_non_exhaustive()
    }
}

/// What is wrong with the address of a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no place for blobs: it is file:///a/folder or s3://bucket/prefix")]
pub struct NoPlace(pub String);

impl Place {
    /// Reads an address; of a bucket only its name and prefix.
    ///
    /// # Errors
    /// [`NoPlace`].
    pub fn parse(address: &str) -> Result<Self, NoPlace> {
        let wrong = || NoPlace(address.to_owned());
        if let Some(path) = address.strip_prefix("file://") {
            return if path.starts_with('/') { Ok(Self::Folder(path.into())) } else { Err(wrong()) };
        }
        let rest = address.strip_prefix("s3://").ok_or_else(wrong)?;
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
            return Err(wrong());
        }
        let prefix = prefix.trim_matches('/').to_owned();
        Ok(Self::Bucket(Bucket { name: name.into(), prefix, endpoint: None, region: None, key: None }))
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be used as it is configured.
    #[error("cannot use the store of blobs in {place}")]
    Unusable {
        /// Where it is.
        place: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It did not answer, or has no room. Whether it was done is unknown.
    #[error("the store of blobs fails: {0}")]
    Failing(String),
}

fn failing(error: object_store::Error) -> Error {
    Error::Failing(error.to_string())
}

/// What is known of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub id: BlobId,
    /// Its bytes.
    pub bytes: u64,
    /// Another one when it was written again. Of no other meaning: it is of the store's own clock.
    pub written: i64,
}

/// A store of blobs. Clones share it.
#[derive(Debug, Clone)]
pub struct Blobs(Arc<dyn ObjectStore>);

impl Blobs {
    /// Opens one. A bucket is not asked anything yet.
    ///
    /// # Errors
    /// [`Error::Unusable`].
    pub fn open(place: &Place) -> Result<Self, Error> {
        let unusable = |source: Box<dyn std::error::Error + Send + Sync>| Error::Unusable {
            place: match place {
                Place::Folder(path) => path.display().to_string(),
                Place::Bucket(bucket) => format!("s3://{}/{}", bucket.name, bucket.prefix),
            },
            source,
        };
        match place {
            Place::Folder(path) => {
                std::fs::create_dir_all(path).map_err(|error| unusable(error.into()))?;
                let store = LocalFileSystem::new_with_prefix(path).map_err(|error| unusable(error.into()))?;
                Ok(Self(Arc::new(store.with_fsync(true))))
            }
            Place::Bucket(bucket) => {
                let retry = RetryConfig { max_retries: TRIES, retry_timeout: PATIENCE, ..RetryConfig::default() };
                let plain = bucket.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
                let client = ClientOptions::new().with_timeout(PATIENCE).with_allow_http(plain);
                let mut builder = AmazonS3Builder::from_env()
                    .with_bucket_name(&bucket.name)
                    .with_retry(retry)
                    .with_client_options(client);
                if let Some(endpoint) = &bucket.endpoint {
                    builder = builder.with_endpoint(endpoint);
                }
                if let Some(region) = &bucket.region {
                    builder = builder.with_region(region);
                }
                if let Some((id, secret)) = &bucket.key {
                    builder = builder.with_access_key_id(id).with_secret_access_key(secret);
                }
                let store = builder.build().map_err(|error| unusable(error.into()))?;
                Ok(Self(Arc::new(PrefixStore::new(store, bucket.prefix.as_str()))))
            }
        }
    }

    /// Keeps a blob, in the place of one that is there. It is durable then.
    ///
    /// # Errors
    /// [`Error::Failing`].
    pub async fn put(&self, task: TaskId, id: BlobId, bytes: Bytes) -> Result<(), Error> {
        self.0.put(&path(task, id), bytes.into()).await.map(drop).map_err(failing)
    }

    /// A blob; `None`: there is none.
    ///
    /// # Errors
    /// [`Error::Failing`].
    pub async fn get(&self, task: TaskId, id: BlobId) -> Result<Option<Bytes>, Error> {
        match self.0.get(&path(task, id)).await {
            Ok(found) => found.bytes().await.map(Some).map_err(failing),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failing(error)),
        }
    }

    /// Tasks that have blobs.
    ///
    /// # Errors
    /// [`Error::Failing`].
    pub async fn tasks(&self) -> Result<Vec<TaskId>, Error> {
        let found = self.0.list_with_delimiter(None).await.map_err(failing)?;
        let name = |path: &Path| path.parts().next_back()?.as_ref().parse().ok();
        Ok(found.common_prefixes.iter().filter_map(name).collect())
    }

    /// The blobs of a task.
    ///
    /// # Errors
    /// [`Error::Failing`].
    pub async fn of(&self, task: TaskId) -> Result<Vec<Known>, Error> {
        let folder = Path::from(task.to_string());
        let found = self.0.list(Some(&folder)).map_ok(|meta| {
            let id = meta.location.parts().next_back()?.as_ref().parse().ok()?;
            Some(Known { id, bytes: meta.size, written: meta.last_modified.timestamp_micros() })
        });
        found.try_filter_map(|known| async move { Ok(known) }).try_collect().await.map_err(failing)
    }

    /// Removes blobs of a task. What is not there is no error.
    ///
    /// # Errors
    /// [`Error::Failing`]; some may be gone.
    pub async fn remove(&self, task: TaskId, ids: &[BlobId]) -> Result<(), Error> {
        let paths: Vec<_> = ids.iter().map(|id| Ok(path(task, *id))).collect();
        let mut removed = self.0.delete_stream(stream::iter(paths).boxed());
        while let Some(done) = removed.next().await {
            match done {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failing(error)),
            }
        }
        Ok(())
    }
}

fn path(task: TaskId, id: BlobId) -> Path {
    Path::from_iter([task.to_string(), id.to_string()])
}
