//! What every store of blobs must do.

use uuid::Uuid;

use super::*;

fn task(number: u128) -> TaskId {
    TaskId(Uuid::from_u128(number))
}

fn id(byte: u8) -> BlobId {
    BlobId([byte; 32])
}

/// The suite, on an empty store.
async fn conforms(blobs: &Blobs) {
    assert_eq!(blobs.tasks().await.unwrap(), []);
    assert_eq!(blobs.of(task(1)).await.unwrap(), []);
    assert_eq!(blobs.get(task(1), id(1)).await.unwrap(), None);
    blobs.remove(task(1), &[id(1)]).await.unwrap();

    let large = Bytes::from(vec![7; 5 << 20]);
    blobs.put(task(1), id(1), large.clone()).await.unwrap();
    blobs.put(task(1), id(2), Bytes::new()).await.unwrap();
    blobs.put(task(2), id(1), Bytes::from_static(b"other")).await.unwrap();
    assert_eq!(blobs.get(task(1), id(1)).await.unwrap(), Some(large));
    assert_eq!(blobs.get(task(1), id(2)).await.unwrap(), Some(Bytes::new()));
    assert_eq!(blobs.get(task(2), id(1)).await.unwrap().as_deref(), Some(&b"other"[..]));
    assert_eq!(blobs.get(task(2), id(2)).await.unwrap(), None, "another task's");

    let mut tasks = blobs.tasks().await.unwrap();
    tasks.sort();
    assert_eq!(tasks, [task(1), task(2)]);
    let mut known = blobs.of(task(1)).await.unwrap();
    known.sort_by_key(|known| known.id);
    assert_eq!(known.iter().map(|known| (known.id, known.bytes)).collect::<Vec<_>>(), [(id(1), 5 << 20), (id(2), 0)]);

    blobs.put(task(1), id(2), Bytes::from_static(b"again")).await.unwrap();
    assert_eq!(blobs.get(task(1), id(2)).await.unwrap().as_deref(), Some(&b"again"[..]));
    blobs.remove(task(1), &[id(1), id(2), id(3)]).await.unwrap();
    assert_eq!(blobs.of(task(1)).await.unwrap(), []);
    assert_eq!(blobs.of(task(2)).await.unwrap().len(), 1);
    blobs.remove(task(2), &[id(1)]).await.unwrap();
}

#[tokio::test]
async fn a_folder_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("made/by/it");
    let place = Place::parse(&format!("file://{}", folder.display())).unwrap();
    let blobs = Blobs::open(&place).unwrap();
    conforms(&blobs).await;
    blobs.put(task(3), id(3), Bytes::from_static(b"kept")).await.unwrap();
    let again = Blobs::open(&place).unwrap();
    assert_eq!(again.get(task(3), id(3)).await.unwrap().as_deref(), Some(&b"kept"[..]));
}

#[cfg(unix)]
#[tokio::test]
async fn a_bucket_conforms() {
    use crate::servers::s3::{BUCKET, S3};

    let Some(server) = S3::start() else { return };
    // The binary does this; another test of this process may have.
    let _ = rustls::crypto::ring::default_provider().install_default();
    for prefix in ["", "/a/prefix"] {
        let Ok(Place::Bucket(bucket)) = Place::parse(&format!("s3://{BUCKET}{prefix}")) else { panic!("it is one") };
        let key = Some(("name".into(), "secret".into()));
        let bucket = Bucket { endpoint: Some(server.url()), region: Some("us-east-1".into()), key, ..bucket };
        conforms(&Blobs::open(&Place::Bucket(bucket)).unwrap()).await;
    }
}

#[tokio::test]
async fn what_lies_in_the_folder_and_is_no_blob_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(&Place::Folder(dir.path().into())).unwrap();
    let own = dir.path().join(task(1).to_string());
    std::fs::create_dir_all(own.join("folder")).unwrap();
    for other in [dir.path().join("README"), own.join("notes"), own.join("folder/x")] {
        std::fs::write(other, "x").unwrap();
    }
    assert_eq!((blobs.tasks().await.unwrap(), blobs.of(task(1)).await.unwrap()), (vec![task(1)], vec![]));
}

#[test]
fn addresses_are_folders_or_buckets() {
    let bucket = |name: &str, prefix: &str| {
        let (name, prefix) = (name.into(), prefix.into());
        Ok(Place::Bucket(Bucket { name, prefix, endpoint: None, region: None, key: None }))
    };
    assert_eq!(Place::parse("file:///var/blobs"), Ok(Place::Folder("/var/blobs".into())));
    assert_eq!(Place::parse("s3://bucket"), bucket("bucket", ""));
    assert_eq!(Place::parse("s3://bucket/a/b/"), bucket("bucket", "a/b"));
    for wrong in ["", "/var/blobs", "file://var", "s3://", "s3:///x", "s3://a b", "gs://bucket", "http://x"] {
        assert_eq!(Place::parse(wrong), Err(NoPlace(wrong.into())));
    }
}

#[test]
fn a_bucket_keeps_its_secret_to_itself() {
    let key = Some(("name".to_owned(), "hunter2".to_owned()));
    let bucket = Bucket { name: "b".into(), prefix: String::new(), endpoint: None, region: None, key };
    assert!(!format!("{bucket:?}").contains("hunter2"));
}
