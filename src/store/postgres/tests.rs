//! What only a store that others share can do wrong; the rest is the conformance suite's.
#![cfg(unix)]

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use ado_proto::{Epoch, Namespace, RequestId};
use sqlx::{AssertSqlSafe, raw_sql};

use super::super::conformance::{
    append, claim, create, exited, new_task, output, postgres_database, started, task, unit, update, worker,
};
use super::*;
use crate::servers::postgres::{Cluster, Database, database};
use crate::store::{Once, Outcome};
use crate::task::Refusal;

/// Two controllers' stores over one database.
struct Two {
    a: Arc<Postgres>,
    b: Arc<Postgres>,
    database: Database,
}

impl Two {
    /// `None`: skip the test.
    async fn open() -> Option<Self> {
        let database = postgres_database().await?;
        let (a, b) = (open(&database.url()).await, open(&database.url()).await);
        Some(Self { a, b, database })
    }
}

async fn open(url: &str) -> Arc<Postgres> {
    Arc::new(Postgres::open(url, Env::system()).await.unwrap())
}

async fn one(store: &Postgres, unit: Unit) -> Vec<Outcome> {
    match store.commit(vec![unit]).await.unwrap().remove(0) {
        Committed::Done(outcomes, _) => outcomes,
        other => panic!("{other:?}"),
    }
}

fn is_applied(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Applied(_))
}

/// A task that is created, claimed, and whose agent has started.
async fn busy(store: &Postgres, n: u64) {
    let changes = vec![
        create(task(n), new_task()),
        update(task(n), claim(worker(1))),
        update(task(n), append(Epoch(1), 0, vec![started()])),
    ];
    assert!(one(store, unit(changes)).await.iter().all(is_applied));
}

async fn log(store: &Postgres, n: u64) -> Page {
    store.read(task(n), Offset(0), usize::MAX).await.unwrap().unwrap()
}

fn event(text: String) -> NewEvent {
    NewEvent { audience: Audience::Everywhere, kind: "task.ended", task: None, worker: None, text }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_appends_at_once_one_counts() {
    let Some(two) = Two::open().await else { return };
    busy(&two.a, 1).await;
    for seq in 1..25 {
        let write = |store: &Arc<Postgres>, who: &'static str| {
            let store = store.clone();
            tokio::spawn(async move {
                one(&store, unit(vec![update(task(1), append(Epoch(1), seq, vec![output(who)]))])).await
            })
        };
        let (a, b) = tokio::join!(write(&two.a, "a"), write(&two.b, "b"));
        let outcomes = [a.unwrap().remove(0), b.unwrap().remove(0)];
        assert_eq!(outcomes.iter().filter(|outcome| is_applied(outcome)).count(), 1, "{outcomes:?}");
        // Whoever came too late says the same seq again: nothing of it is appended, or it could not be tried.
        let other = outcomes.iter().find(|outcome| !is_applied(outcome)).unwrap();
        assert!(matches!(other, Outcome::Locked | Outcome::Refused(..)), "{other:?}");
    }
    let page = log(&two.a, 1).await;
    assert_eq!(page.records.len(), 3 + 24, "each seq once");
    assert!(page.records.is_sorted_by_key(|record| record.time), "times rise, whoever wrote");
    assert_eq!(log(&two.b, 1).await, page);
}

#[tokio::test]
async fn a_row_that_another_holds_is_locked_and_holds_up_nobody_else() {
    let Some(two) = Two::open().await else { return };
    for n in [1, 2] {
        busy(&two.a, n).await;
    }
    let mut other = two.database.connect().await;
    let mut holding = other.begin().await.unwrap();
    query("SELECT FROM ado.task WHERE id = $1 FOR UPDATE").bind(task(1).0).execute(&mut *holding).await.unwrap();
    let write = |n| update(task(n), append(Epoch(1), 1, vec![output("x")]));
    let key = Key { principal: "p".into(), kind: 1, id: RequestId(task(7).0), body: [1; 32] };
    let keyed = || {
        let once = Once { key: key.clone(), answer: Box::new(|_: &[Outcome]| Bytes::from_static(b"done")) };
        Unit { changes: vec![write(2), write(1)], once: Some(once), audit: None }
    };
    let committed = two.a.commit(vec![unit(vec![write(1)]), keyed(), unit(vec![write(2)])]).await.unwrap();
    let locked = |count| Committed::Done(vec![Outcome::Locked; count], None);
    assert_eq!(committed[..2], [locked(1), locked(2)], "a unit is done whole or not at all");
    assert!(matches!(&committed[2], Committed::Done(outcomes, None) if is_applied(&outcomes[0])), "{committed:?}");
    assert_eq!(two.a.answered(&key).await.unwrap(), None, "nothing was done that could be remembered");
    holding.rollback().await.unwrap();
    assert!(is_applied(&one(&two.b, unit(vec![write(1)])).await[0]));
}

#[tokio::test]
async fn a_row_that_is_free_in_a_moment_is_waited_for() {
    let Some(two) = Two::open().await else { return };
    busy(&two.a, 1).await;
    let mut other = two.database.connect().await;
    // Held until the committer is seen to wait for it.
    let mut holding = other.begin().await.unwrap();
    query("SELECT FROM ado.task WHERE id = $1 FOR UPDATE").bind(task(1).0).execute(&mut *holding).await.unwrap();
    let store = two.a.clone();
    let change = tokio::spawn(async move {
        loop {
            let write = update(task(1), append(Epoch(1), 1, vec![output("x")]));
            match one(&store, unit(vec![write])).await.remove(0) {
                Outcome::Locked => {}
                other => break other,
            }
        }
    });
    let mut watch = two.database.connect().await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut watch).await.unwrap() == 0 {
        tokio::task::yield_now().await;
    }
    holding.rollback().await.unwrap();
    assert!(is_applied(&change.await.unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_claimed_once_however_many_want_it() {
    const TASKS: u64 = 16;
    let Some(two) = Two::open().await else { return };
    let created = (1..=TASKS).map(|n| unit(vec![create(task(n), new_task())])).collect();
    two.a.commit(created).await.unwrap();
    let claimers = [&two.a, &two.b, &two.a, &two.b].map(Clone::clone).into_iter().zip(1..).map(|(store, who)| {
        tokio::spawn(async move {
            let mut claimed = BTreeSet::new();
            // Each in an order of its own.
            for n in (0..TASKS).map(|n| (n * (2 * who - 1)) % TASKS + 1) {
                match one(&store, unit(vec![update(task(n), claim(worker(who)))])).await.remove(0) {
                    Outcome::Applied(_) => drop(claimed.insert(n)),
                    Outcome::Locked | Outcome::Refused(Refusal::NotClaimable, _) => {}
                    other => panic!("{other:?}"),
                }
            }
            claimed
        })
    });
    let mut all = Vec::new();
    for claimer in claimers.collect::<Vec<_>>() {
        all.extend(claimer.await.unwrap());
    }
    all.sort();
    let distinct: BTreeSet<_> = all.iter().copied().collect();
    assert_eq!(all.len(), distinct.len(), "claimed twice: {all:?}");
    for n in 1..=TASKS {
        let row = two.b.row(task(n)).await.unwrap().unwrap();
        assert_eq!(row.task.epoch, Epoch(u64::from(distinct.contains(&n))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_has_one_effect_on_many_controllers() {
    let Some(two) = Two::open().await else { return };
    for round in 0..8 {
        let submit = |store: &Arc<Postgres>, n: u64| {
            let store = store.clone();
            let answer = Box::new(move |_: &[Outcome]| Bytes::from(n.to_string()));
            let key = Key { principal: "p".into(), kind: 20, id: RequestId(task(1_000 + round).0), body: [1; 32] };
            let once = Some(Once { key, answer });
            let unit = Unit { changes: vec![create(task(n), new_task())], once, audit: None };
            tokio::spawn(async move { store.commit(vec![unit]).await.unwrap().remove(0) })
        };
        let (first, second) = (round * 2 + 1, round * 2 + 2);
        let (a, b) = tokio::join!(submit(&two.a, first), submit(&two.b, second));
        let mut answers = Vec::new();
        let mut done = 0;
        for committed in [a.unwrap(), b.unwrap()] {
            match committed {
                Committed::Done(_, Some(answer)) => {
                    done += 1;
                    answers.push(answer);
                }
                Committed::Replayed(answer) => answers.push(answer),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((done, &answers[0]), (1, &answers[1]));
        let there = [first, second].map(async |n| two.a.row(task(n)).await.unwrap().is_some());
        let [x, y] = there;
        assert_ne!(x.await, y.await, "one of the two tasks was made");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_passes_over_no_event_while_others_write() {
    const WRITERS: u64 = 8;
    const EACH: u64 = 12;
    let Some(two) = Two::open().await else { return };
    let ended = Arc::new(AtomicBool::new(false));
    let writers = (0..WRITERS).map(|who| {
        let store = if who % 2 == 0 { two.a.clone() } else { two.b.clone() };
        tokio::spawn(async move {
            for n in 0..EACH {
                // One or several; some as part of a commit.
                let events = (0..=n % 3).map(|part| event(format!("{who}/{n}/{part}"))).collect();
                store.add_events(events).await.unwrap();
                one(&store, unit(vec![create(task(who * 1_000 + n + 1), new_task())])).await;
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let reader = {
        let (store, ended) = (two.b.clone(), ended.clone());
        tokio::spawn(async move {
            let mut read = Vec::new();
            let mut next = 0;
            loop {
                let last_round = ended.load(Ordering::SeqCst);
                let page = store.events(&Audience::Everywhere, EventsFrom::After(next), 7).await.unwrap();
                assert!(page.events.is_sorted_by(|a, b| a.cursor < b.cursor));
                assert!(page.events.iter().all(|event| event.cursor > next) && page.next >= next);
                next = page.next;
                let over = page.events.is_empty() && last_round && read.len() as u64 >= WRITERS * EACH;
                read.extend(page.events.into_iter().map(|event| (event.text, event.task)));
                if over {
                    break read;
                }
            }
        })
    };
    for writer in writers {
        writer.await.unwrap();
    }
    // Other tests' transactions may hide the last ones for a moment.
    let count = |page: Events| page.events.len() as u64;
    let all: u64 = WRITERS * (0..EACH).map(|n| n % 3 + 2).sum::<u64>();
    while count(two.a.events(&Audience::Everywhere, EventsFrom::After(0), usize::MAX).await.unwrap()) < all {
        tokio::task::yield_now().await;
    }
    ended.store(true, Ordering::SeqCst);
    let mut read = reader.await.unwrap();
    assert_eq!(read.len() as u64, all);
    read.sort();
    read.dedup();
    assert_eq!(read.len() as u64, all, "none twice");
}

#[tokio::test]
async fn an_event_is_not_shown_while_an_older_transaction_runs() {
    let Some(two) = Two::open().await else { return };
    let mut other = two.database.connect().await;
    let mut older = other.begin().await.unwrap();
    let insert = "INSERT INTO ado.event SELECT ((pg_current_xact_id()::text::bigint + event_base) << 20) + 1, 0, NULL, 'x', \
                  NULL, NULL, 'older' FROM ado.meta";
    query(insert).execute(&mut *older).await.unwrap();
    two.a.add_events(vec![event("younger".into())]).await.unwrap();
    let read = async |after| two.b.events(&Audience::Everywhere, EventsFrom::After(after), 10).await.unwrap();
    assert!(read(0).await.events.is_empty());
    two.a.sweep().await.unwrap();
    let next = read(0).await.next;
    older.commit().await.unwrap();
    while read(next).await.events.len() < 2 {
        tokio::task::yield_now().await;
    }
    let texts: Vec<_> = read(next).await.events.into_iter().map(|event| event.text).collect();
    assert_eq!(texts, ["older", "younger"], "also for who goes on from where it was");
}

#[tokio::test]
async fn cursors_rise_after_a_dump_was_restored_elsewhere() {
    let Some(two) = Two::open().await else { return };
    two.a.add_events(vec![event("old".into())]).await.unwrap();
    // As in a server whose transactions were counted further.
    two.database.meddle("UPDATE ado.event SET cursor = cursor + (1::bigint << 50)").await;
    assert!(two.a.events(&Audience::Everywhere, EventsFrom::After(0), 10).await.unwrap().events.is_empty());
    let restored = open(&two.database.url()).await;
    restored.add_events(vec![event("new".into())]).await.unwrap();
    let texts = async || {
        let events = restored.events(&Audience::Everywhere, EventsFrom::After(0), 10).await.unwrap().events;
        events.into_iter().map(|event| event.text).collect::<Vec<_>>()
    };
    while texts().await.len() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(texts().await, ["old", "new"]);
}

#[tokio::test]
async fn terminated_sessions_cost_one_call() {
    let Some(two) = Two::open().await else { return };
    busy(&two.a, 1).await;
    let mut sessions = Vec::new();
    for _ in 0..CONNECTIONS {
        sessions.push(two.a.pool.acquire().await.unwrap());
    }
    drop(sessions);
    two.database
        .meddle("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'ado' AND datname = current_database()")
        .await;
    let mut failed = 0;
    for seq in 1..20 {
        match two.a.commit(vec![unit(vec![update(task(1), append(Epoch(1), seq, vec![output("x")]))])]).await {
            Ok(_) => {}
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                failed += 1;
            }
        }
    }
    assert!(failed <= 1, "{failed} calls failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_is_made_once_however_many_want_it() {
    let Some(two) = Two::open().await else { return };
    for day in 100..110 {
        let make = |store: &Arc<Postgres>| {
            let store = store.clone();
            tokio::spawn(async move { store.make_days([day].into()).await })
        };
        let (a, b, c) = tokio::join!(make(&two.a), make(&two.b), make(&two.b));
        for made in [a, b, c] {
            made.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_that_was_acknowledged() {
    let Some(mut cluster) = Cluster::start() else { return };
    let url = cluster.url("postgres");
    let store = open(&url).await;
    busy(&store, 1).await;
    // As a committer does: after an unknown outcome it asks how far the log is.
    let (cut, crash) = (Arc::new(AtomicBool::new(false)), Arc::new(tokio::sync::Notify::new()));
    let writer = {
        let (store, cut, crash) = (store.clone(), cut.clone(), crash.clone());
        tokio::spawn(async move {
            let (mut acknowledged, mut failures, mut after) = (0u64, 0, 0);
            while after < 30 {
                let seq = acknowledged + 1;
                let text = format!("{seq}");
                let write = update(task(1), append(Epoch(1), seq, vec![output(text)]));
                match store.commit(vec![unit(vec![write])]).await {
                    Ok(_) => acknowledged += 1,
                    Err(error) => {
                        assert!(error.is_transient(), "{error}");
                        failures += 1;
                        let row = loop {
                            match store.row(task(1)).await {
                                Ok(row) => break row.unwrap(),
                                Err(error) => assert!(error.is_transient(), "{error}"),
                            }
                        };
                        let next = row.task.next_seq.0;
                        assert!(next > acknowledged, "{next} is there, {acknowledged} was acknowledged");
                        acknowledged = next - 1;
                    }
                }
                if acknowledged == 20 {
                    crash.notify_one();
                }
                after += u64::from(cut.load(Ordering::SeqCst));
            }
            (acknowledged, failures)
        })
    };
    crash.notified().await;
    cluster.crash();
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.launch();
        cluster
    })
    .await
    .unwrap();
    cut.store(true, Ordering::SeqCst);
    let (acknowledged, failures) = writer.await.unwrap();
    assert!(failures > 0, "it was noticed");
    let page = log(&store, 1).await;
    let texts: Vec<_> = page.records[3..].iter().map(|record| record.body.clone()).collect();
    assert_eq!(texts, (1..=acknowledged).map(|seq| output(format!("{seq}"))).collect::<Vec<_>>());
    store.close().await;
    cluster.crash();
}

#[tokio::test]
async fn a_newer_schema_is_refused_naming_both_versions() {
    let Some(two) = Two::open().await else { return };
    two.database.meddle("UPDATE ado.meta SET version = 4711").await;
    let refused = Postgres::open(&two.database.url(), Env::system()).await.err();
    let Some(Error::Unusable(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("4711") && why.contains("up to 1"), "{why}");
}

#[tokio::test]
async fn what_is_not_ours_is_refused_and_left_alone() {
    let Some(theirs) = database().await else { return };
    theirs.meddle("CREATE SCHEMA ado; CREATE TABLE ado.meta (x int); INSERT INTO ado.meta VALUES (1)").await;
    let open = async |url: &str| Postgres::open(url, Env::system()).await.err();
    assert!(matches!(open(&theirs.url()).await, Some(Error::Unusable(_))));
    theirs.meddle("ALTER TABLE ado.meta RENAME TO other").await;
    assert!(matches!(open(&theirs.url()).await, Some(Error::Unusable(_))));
    theirs.meddle("DROP TABLE ado.other; CREATE TABLE public.neighbour (x int)").await;
    assert!(open(&theirs.url()).await.is_none(), "a neighbour is no harm");

    let nowhere = theirs.url().replace("/test_", "/none_");
    assert!(matches!(open(&nowhere).await, Some(Error::Unusable(_))), "no such database");
    assert!(matches!(open("mysql://x").await, Some(Error::Unusable(_))));
    assert!(matches!(open("postgres://ado@127.0.0.1:1/x").await, Some(Error::Unavailable(_))), "nobody listens");
}

#[tokio::test]
async fn many_open_a_new_database_at_once() {
    let Some(database) = database().await else { return };
    let url = database.url();
    let (a, b, c) = tokio::join!(open(&url), open(&url), open(&url));
    assert!([&b, &c].iter().all(|store| store.generation() == a.generation()));
    for (n, store) in (1..).zip([&a, &b, &c]) {
        busy(store, n).await;
    }
    assert!(a.row(task(3)).await.unwrap().is_some());
    let second = a.regenerate().await.unwrap();
    assert_ne!(second, b.generation());
    assert_eq!(open(&url).await.generation(), second, "a new generation is kept");
}

#[tokio::test]
async fn everything_survives_a_restart_and_a_clock_that_was_set_back() {
    let Some(two) = Two::open().await else { return };
    busy(&two.a, 1).await;
    let before = log(&two.a, 1).await;
    // As if the server's clock had been an hour ahead when this was written.
    two.database.meddle("UPDATE ado.task SET last_time = last_time + 3600000000").await;
    let ahead = Timestamp(before.records[2].time.0 + 3_600_000_000);
    assert!(is_applied(&one(&two.b, unit(vec![update(task(1), append(Epoch(1), 1, vec![exited(0)]))])).await[0]));
    let last = log(&two.a, 1).await.records.last().unwrap().time;
    assert!(last >= ahead, "times do not fall along a log");
    let (now, other) = (two.a.now().await.unwrap(), two.b.now().await.unwrap());
    assert!(now >= last && other >= last, "nor between controllers");
    assert!(two.a.now().await.unwrap() > now, "it goes on");
    let again = open(&two.database.url()).await;
    assert!(again.now().await.unwrap() > now);
    assert_eq!(log(&again, 1).await.records[..3], before.records[..]);
}

#[tokio::test]
async fn a_commit_waits_for_the_disk_and_everything_has_a_limit() {
    let Some(two) = Two::open().await else { return };
    for (name, expected) in [
        ("synchronous_commit", "on"),
        ("statement_timeout", "15s"),
        ("lock_timeout", "2s"),
        ("idle_in_transaction_session_timeout", "5s"),
        ("transaction_isolation", "read committed"),
        ("search_path", "ado"),
        // With it a commit takes a fifth of a second.
        ("jit", "off"),
    ] {
        let shown: String =
            sqlx::query_scalar("SELECT current_setting($1)").bind(name).fetch_one(&two.a.pool).await.unwrap();
        assert_eq!(shown, expected, "{name}");
    }
}

#[tokio::test]
async fn a_log_lies_in_the_partition_of_its_day() {
    let Some(two) = Two::open().await else { return };
    let env = Env::system();
    let today = TaskId(env.uuid());
    for id in [task(1), today] {
        let changes = vec![
            create(id, new_task()),
            update(id, claim(worker(1))),
            update(id, append(Epoch(1), 0, vec![started(), output("x")])),
        ];
        assert!(one(&two.a, unit(changes)).await.iter().all(is_applied));
        assert_eq!(two.b.read(id, Offset(0), 1 << 20).await.unwrap().unwrap().records.len(), 4);
    }
    let parts: Vec<String> = sqlx::query_scalar("SELECT tableoid::regclass::text FROM chunk ORDER BY day")
        .fetch_all(&two.a.pool)
        .await
        .unwrap();
    assert_eq!(parts.len(), 2);
    assert_eq!(parts[0], "chunk_19700101");
    let all: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_inherits WHERE inhparent = 'chunk'::regclass")
        .fetch_one(&two.a.pool)
        .await
        .unwrap();
    assert!(all >= 2 + i64::from(DAYS_AHEAD), "days ahead have theirs");
}

#[tokio::test]
async fn text_that_postgres_cannot_keep_is_kept_all_the_same() {
    let Some(two) = Two::open().await else { return };
    let submitted =
        ado_proto::record::Submitted { name: Some("a\0b".into()), namespace: Namespace("n\0".into()), ..new_task() };
    assert!(is_applied(&one(&two.a, unit(vec![create(task(1), submitted)])).await[0]));
    let row = two.b.row(task(1)).await.unwrap().unwrap();
    assert_eq!(row.task.name.as_deref(), Some("a\0b"));
    let found = two.b.find(&Audience::Namespace(Namespace("n\0".into())), &Find::Name("a\0b".into()), 9).await.unwrap();
    assert_eq!(found, [row]);
}

#[tokio::test]
async fn damage_is_said_not_shown() {
    let Some(two) = Two::open().await else { return };
    for n in [1, 2, 3] {
        busy(&two.a, n).await;
        one(&two.a, unit(vec![update(task(n), append(Epoch(1), 1, vec![output("x".repeat(5_000))]))])).await;
    }
    let damage = format!(
        "DELETE FROM ado.lifecycle WHERE task = '{}' AND record_offset = 1; \
         UPDATE ado.chunk SET data = '\\xff0000' WHERE task = '{}'; UPDATE ado.task SET fold = '\\x0900' WHERE id = '{}'",
        task(1).0,
        task(2).0,
        task(3).0
    );
    raw_sql(AssertSqlSafe(damage)).execute(&mut two.database.connect().await).await.unwrap();
    let read = async |n| two.a.read(task(n), Offset(0), 1 << 20).await;
    assert!(matches!(read(1).await, Err(Error::Damaged(_))));
    assert!(matches!(two.a.read_back(task(1), Offset(4), 1 << 20).await, Err(Error::Damaged(_))));
    assert!(matches!(read(2).await, Err(Error::Damaged(_))));
    assert!(matches!(two.a.row(task(3)).await, Err(Error::Damaged(_))));
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_nothing_behind() {
    let Some(two) = Two::open().await else { return };
    busy(&two.a, 1).await;
    for polls in 1..10 {
        let mut commit = Box::pin(two.a.commit(vec![unit(vec![create(task(10 + polls), new_task())])]));
        for _ in 0..polls {
            let waker = std::task::Waker::noop();
            if commit.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_ready() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(commit);
        busy(&two.a, 100 + polls).await;
    }
    // Whole or not at all.
    for n in 11..20 {
        let row = two.b.row(task(n)).await.unwrap();
        assert_eq!(row.is_some(), two.b.read(task(n), Offset(0), 100).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn questions_asked_often_use_indexes() {
    let Some(two) = Two::open().await else { return };
    use super::events::{EVENTS_AFTER, EVENTS_TAIL};
    use super::logs::{CHUNKS_BEFORE, CHUNKS_FROM, CHUNKS_SINCE};
    use super::tasks::*;
    let tasks =
        [BY_ID, BY_PREFIX, BY_GROUP, BY_GROUP_PREFIX, BY_NAME, LIST, LIST_STATE, LIST_DEAD, LIST_GROUP, LIST_NAME];
    let others = [WAITING, EXPIRED, OVERDUE, HELD, CHUNKS_FROM, CHUNKS_BEFORE, CHUNKS_SINCE, EVENTS_AFTER, EVENTS_TAIL];
    busy(&two.a, 1).await;
    let mut connection = two.a.pool.acquire().await.unwrap();
    for sql in tasks.into_iter().chain(others) {
        // A plan for any parameters, as a prepared statement may get one. It sorts only if no index has the order.
        let name = "PREPARE asked AS ";
        raw_sql(AssertSqlSafe(format!("SET plan_cache_mode = force_generic_plan; SET enable_sort = off; {name}{sql}")))
            .execute(&mut *connection)
            .await
            .unwrap();
        let count = (1..9).rev().find(|n| sql.contains(&format!("${n}"))).unwrap();
        // A day that has a partition: no other is looked at.
        let first = if sql.contains("FROM chunk") { "0" } else { "NULL" };
        let explain = format!("EXPLAIN EXECUTE asked ({first}{})", ", NULL".repeat(count - 1));
        let plan: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_all(&mut *connection).await.unwrap();
        raw_sql("DEALLOCATE asked").execute(&mut *connection).await.unwrap();
        let plan = plan.join("\n");
        assert!(plan.contains("Index") && !plan.contains("Seq Scan"), "{sql}:\n{plan}");
        // What a prefix finds is little, and so is a group; everything else comes in the order of its index.
        let sorts = plan.contains("Sort") && ![BY_PREFIX, BY_GROUP_PREFIX, LIST_GROUP].contains(&sql);
        assert!(!sorts, "{sql}:\n{plan}");
    }
}
