//! What only a store in a file can do wrong; the rest is the conformance suite's.

use std::path::PathBuf;
use std::time::Duration;

use ado_proto::{Audience, Epoch, Incarnation, Offset, WorkerId};
use sqlx::{ConnectOptions, Row as _, raw_sql};
use tempfile::TempDir;

use super::super::conformance::{Hand, append, claim, create, exited, new_task, output, started, task, unit, update};
use super::*;
use crate::store::{Outcome, Token};

struct File {
    directory: TempDir,
    hand: Hand,
}

impl File {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), hand: Hand::new() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("ado.db")
    }

    async fn open(&self) -> Result<Sqlite> {
        Sqlite::open(&self.path(), Env::new(self.hand.clone())).await
    }

    /// Runs SQL on the file as another program would.
    async fn meddle(&self, sql: &'static str) {
        let options = SqliteConnectOptions::new().filename(self.path()).create_if_missing(true);
        let mut connection = options.connect().await.unwrap();
        raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
}

async fn commit_all(store: &Sqlite, units: Vec<Unit>) {
    for committed in store.commit(units).await.unwrap() {
        let Committed::Done(outcomes, _) = committed else { panic!("{committed:?}") };
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Applied(_))), "{outcomes:?}");
    }
}

/// A task that is created, claimed, and has written some output.
fn busy(n: u64) -> Unit {
    unit(vec![
        create(task(n), new_task()),
        update(task(n), claim(WorkerId(task(9).0))),
        update(task(n), append(Epoch(1), 0, vec![started(), output("x".repeat(5_000))])),
    ])
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let file = File::new();
    let store = file.open().await.unwrap();
    commit_all(&store, vec![busy(1), busy(2)]).await;
    store.hold_loop("reaper", Incarnation(task(3).0), Duration::from_secs(9)).await.unwrap();
    let row = store.row(task(1)).await.unwrap();
    let page = store.read(task(1), Offset(0), 1 << 20).await.unwrap();
    let events = store.events(&Audience::Everywhere, EventsFrom::After(0), 10).await.unwrap();
    let (generation, now) = (store.generation(), store.now().await.unwrap());
    store.close().await;
    assert!(matches!(store.commit(vec![busy(3)]).await, Err(Error::Unavailable(_))), "closed is closed");
    assert!(store.ping().await.is_err());

    file.hand.set(Timestamp(now.0 - 1_000_000));
    let store = file.open().await.unwrap();
    assert_eq!(store.generation(), generation);
    assert_eq!(store.now().await.unwrap(), now, "the clock goes on from the last commit");
    assert_eq!(store.row(task(1)).await.unwrap(), row);
    assert_eq!(store.read(task(1), Offset(0), 1 << 20).await.unwrap(), page);
    assert_eq!(store.events(&Audience::Everywhere, EventsFrom::After(0), 10).await.unwrap(), events);
    commit_all(&store, vec![unit(vec![update(task(1), append(Epoch(1), 2, vec![exited(0)]))])]).await;
    assert_eq!(store.row(task(1)).await.unwrap().unwrap().task.state_word(), "completed");
}

#[tokio::test]
async fn what_was_committed_is_there_without_a_clean_end() {
    let file = File::new();
    let store = file.open().await.unwrap();
    commit_all(&store, vec![busy(1)]).await;
    // A copy of the files as a crash would leave them: nothing was closed, no log checkpointed.
    let crashed = File::new();
    for end in ["ado.db", "ado.db-wal"] {
        std::fs::copy(file.directory.path().join(end), crashed.directory.path().join(end)).unwrap();
    }
    let survivor = crashed.open().await.unwrap();
    assert_eq!(survivor.row(task(1)).await.unwrap(), store.row(task(1)).await.unwrap());
}

#[tokio::test]
async fn a_commit_waits_for_the_disk() {
    let file = File::new();
    let store = file.open().await.unwrap();
    commit_all(&store, vec![busy(1)]).await;
    store.hold_loop("reaper", Incarnation(task(3).0), Duration::from_secs(9)).await.unwrap();
    // With a write-ahead log, NORMAL (1) syncs at checkpoints only: the last commits would go with the power.
    let is_full = |synchronous: i64| assert!(synchronous >= 2, "FULL is 2, found {synchronous}");
    let mut writer = store.writer.lock().await;
    let connection = writer.connection.as_mut().expect("it is put back after a commit");
    is_full(sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut *connection).await.unwrap());
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut *connection).await.unwrap();
    assert_eq!(journal, "wal");
    drop(writer);
    let pragma = async |name| store.transactor.pragma(name).await;
    let rusqlite::types::Value::Integer(synchronous) = pragma("synchronous").await else { panic!("no number") };
    is_full(synchronous);
    assert_eq!(pragma("journal_mode").await, rusqlite::types::Value::Text("wal".into()));
    assert_eq!(pragma("foreign_keys").await, rusqlite::types::Value::Integer(1));
}

#[tokio::test]
async fn a_new_generation_is_kept() {
    let file = File::new();
    let store = file.open().await.unwrap();
    let first = store.generation();
    let second = store.regenerate().await.unwrap();
    assert_ne!(first, second);
    assert_eq!(store.generation(), second);
    store.close().await;
    assert_eq!(file.open().await.unwrap().generation(), second);
}

#[tokio::test]
async fn a_newer_schema_is_refused_naming_both_versions() {
    let file = File::new();
    file.open().await.unwrap().close().await;
    file.meddle("PRAGMA user_version = 4711").await;
    let Err(Error::Unusable(why)) = file.open().await else { panic!("it was opened") };
    assert!(why.contains("4711") && why.contains("up to 1"), "{why}");
}

#[tokio::test]
async fn another_programs_file_is_refused_and_left_alone() {
    let file = File::new();
    file.meddle("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1)").await;
    let before = std::fs::read(file.path()).unwrap();
    assert!(matches!(file.open().await, Err(Error::Unusable(_))));
    assert_eq!(std::fs::read(file.path()).unwrap(), before);

    let text = File::new();
    std::fs::write(text.path(), "hello, I am not a database at all. ".repeat(100)).unwrap();
    assert!(matches!(text.open().await, Err(Error::Unusable(_))));

    let nowhere = Path::new("/nonexistent/ado.db");
    assert!(matches!(Sqlite::open(nowhere, Env::new(Hand::new())).await, Err(Error::Unusable(_))));
}

#[cfg(unix)]
#[tokio::test]
async fn only_the_owner_reads_the_files() {
    use std::os::unix::fs::PermissionsExt;
    let file = File::new();
    let store = file.open().await.unwrap();
    commit_all(&store, vec![busy(1)]).await;
    for entry in std::fs::read_dir(file.directory.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
    }
}

#[tokio::test]
async fn many_open_a_new_file_at_once() {
    let file = File::new();
    let (a, b, c) = tokio::join!(file.open(), file.open(), file.open());
    let stores = [a.unwrap(), b.unwrap(), c.unwrap()];
    assert!(stores.iter().all(|store| store.generation() == stores[0].generation()));
    for (n, store) in (1..).zip(&stores) {
        commit_all(store, vec![busy(n)]).await;
    }
    assert!(stores[0].row(task(3)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_full_disk_stops_writes_until_there_is_space() {
    let file = File::new();
    let store = file.open().await.unwrap();
    commit_all(&store, vec![busy(1)]).await;
    let before = (store.row(task(1)).await.unwrap(), store.read(task(1), Offset(0), 1 << 20).await.unwrap());
    let random = |_| {
        let mut bytes = vec![0; 32 * 1024];
        crate::env::Source::fill(&file.hand, &mut bytes);
        output(bytes)
    };
    let flood = || {
        let bodies = (0..64).map(random).collect();
        vec![unit(vec![create(task(2), new_task()), update(task(1), append(Epoch(1), 2, bodies))])]
    };
    store.limit_pages(100).await;
    for _ in 0..2 {
        let full = store.commit(flood()).await.err();
        assert!(matches!(&full, Some(Error::Full(_))), "{full:?}");
    }
    assert_eq!(store.row(task(2)).await.unwrap(), None, "nothing of it was written");
    let after = (store.row(task(1)).await.unwrap(), store.read(task(1), Offset(0), 1 << 20).await.unwrap());
    assert_eq!(after, before);
    commit_all(&store, vec![unit(vec![create(task(3), new_task())])]).await;

    store.limit_pages(u32::MAX - 1).await;
    commit_all(&store, flood()).await;
    assert_eq!(store.read(task(1), Offset(0), 1 << 23).await.unwrap().unwrap().records.len(), 68);
}

#[tokio::test]
async fn the_log_of_writes_stays_short() {
    const MIB: u64 = 1024 * 1024;
    let file = File::new();
    let store = file.open().await.unwrap();
    commit_all(&store, vec![busy(1)]).await;
    let wal = || std::fs::metadata(file.directory.path().join("ado.db-wal")).unwrap().len();
    let mut written = 0;
    for commit in 0..48 {
        let random = |_| {
            let mut bytes = vec![0; 32 * 1024];
            crate::env::Source::fill(&file.hand, &mut bytes);
            output(bytes)
        };
        let bodies: Vec<_> = (0..64).map(random).collect();
        written += bodies.len() as u64 * 32 * 1024;
        commit_all(&store, vec![unit(vec![update(task(1), append(Epoch(1), 2 + 64 * commit, bodies))])]).await;
    }
    // It waits at 32 MiB, and a commit may have found the thread at work.
    assert!(written > 90 * MIB && wal() < 64 * MIB, "{} MiB of {}", wal() / MIB, written / MIB);
    assert_eq!(store.row(task(1)).await.unwrap().unwrap().task.next_offset, Offset(4 + 64 * 48));
    store.close().await;
    assert!(!file.directory.path().join("ado.db-wal").exists(), "it is moved at the end");
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_nothing_behind() {
    let file = File::new();
    let store = file.open().await.unwrap();
    commit_all(&store, vec![busy(1)]).await;
    for polls in 1..12 {
        let mut commit = Box::pin(store.commit(vec![unit(vec![create(task(10 + polls), new_task())])]));
        for _ in 0..polls {
            let waker = std::task::Waker::noop();
            let _ = commit.as_mut().poll(&mut std::task::Context::from_waker(waker));
            tokio::task::yield_now().await;
        }
        drop(commit);
        commit_all(&store, vec![busy(100 + polls)]).await;
    }
    // Whole or not at all.
    for n in 11..22 {
        let row = store.row(task(n)).await.unwrap();
        assert_eq!(row.is_some(), store.read(task(n), Offset(0), 100).await.unwrap().is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_at_once_are_serialised() {
    let file = File::new();
    let store = std::sync::Arc::new(file.open().await.unwrap());
    commit_all(&store, vec![busy(1)]).await;
    let token = |uses| Token {
        id: "t".into(),
        hash: [1; 32],
        role: ado_proto::Role::Worker,
        namespace: Default::default(),
        name: None,
        uses_left: Some(uses),
        created_at: Timestamp(0),
        expires_at: Timestamp(i64::MAX),
        created_by: String::new(),
        bounds: Default::default(),
    };
    let audit = Audit::done(Default::default(), String::new(), "x", String::new());
    store.put_token(token(5), audit).await.unwrap();
    let work = (0..10).map(|n| {
        let store = store.clone();
        tokio::spawn(async move {
            commit_all(&store, vec![busy(10 + n)]).await;
            store.take_token(&[1; 32]).await.unwrap().is_ok()
        })
    });
    let mut taken = 0;
    for one in work.collect::<Vec<_>>() {
        taken += usize::from(one.await.unwrap());
    }
    assert_eq!(taken, 5);
}

#[tokio::test]
async fn damage_is_said_not_shown() {
    let file = File::new();
    let store = file.open().await.unwrap();
    commit_all(&store, vec![busy(1), busy(2), busy(3)]).await;
    store.close().await;
    file.meddle(
        "DELETE FROM lifecycle WHERE task = 1 AND offset = 1; UPDATE chunk SET data = x'ff0000' WHERE task = 2; \
         UPDATE task SET fold = x'0900' WHERE no = 3",
    )
    .await;
    let store = file.open().await.unwrap();
    let read = async |n| store.read(task(n), Offset(0), 1 << 20).await;
    assert!(matches!(read(1).await, Err(Error::Damaged(_))));
    assert!(matches!(store.read_back(task(1), Offset(4), 1 << 20).await, Err(Error::Damaged(_))));
    assert!(matches!(read(2).await, Err(Error::Damaged(_))));
    assert!(matches!(store.row(task(3)).await, Err(Error::Damaged(_))));
}

#[tokio::test]
async fn questions_asked_often_use_indexes() {
    let file = File::new();
    let store = file.open().await.unwrap();
    use super::access::{EVENTS_AFTER, EVENTS_SINCE, EVENTS_TAIL};
    use super::logs::{CHUNKS_SINCE, ENDED};
    use super::tasks::*;
    let tasks =
        [LOAD, BY_PREFIX, BY_GROUP, BY_GROUP_PREFIX, BY_NAME, LIST, LIST_STATE, LIST_DEAD, LIST_GROUP, LIST_NAME];
    let others = [WAITING, EXPIRED, OVERDUE, HELD, CHUNKS_SINCE, ENDED, EVENTS_AFTER, EVENTS_SINCE, EVENTS_TAIL];
    for sql in tasks.into_iter().chain(others) {
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
        let plan: Vec<String> = query(explain)
            .fetch_all(&store.readers)
            .await
            .unwrap()
            .iter()
            .map(|row| row.try_get("detail").unwrap())
            .collect();
        let plan = plan.join("; ");
        assert!(["INDEX", "USING INTEGER PRIMARY KEY"].iter().any(|way| plan.contains(way)), "{sql}: {plan}");
        // What a prefix finds is little, and so is a group; everything else comes in the order of its index.
        let sorts = plan.contains("TEMP B-TREE") && ![BY_PREFIX, BY_GROUP_PREFIX, LIST_GROUP].contains(&sql);
        assert!(!sorts, "{sql}: {plan}");
    }
}
