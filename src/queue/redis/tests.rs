//! Over a real redis-server.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::servers::redis as server;

/// Longer than anything here takes on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

async fn handle(server: &server::Redis, prefix: &str) -> Redis {
    let config = RedisConfig { url: server.url(), prefix: prefix.into() };
    Redis::start(&config, Env::system(), &Tasks::new()).await.unwrap()
}

/// An empty queue in the server that tests share. `None`: skip the test.
pub(in crate::queue) async fn fresh() -> Option<Redis> {
    Some(handle(server::shared()?, &format!("{}:", Env::system().uuid())).await)
}

fn class(agent: &str) -> Class {
    Class { namespace: Namespace::default(), pool: "default".into(), agent: agent.into() }
}

fn hint(score: i64, n: u128) -> Hint {
    Hint { score, task: TaskId(Uuid::from_u128(n)) }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn controllers_share_hints_and_wake_each_other() {
    let Some(server) = server::shared() else { return };
    let prefix = format!("{}:", Env::system().uuid());
    let (one, two) = (handle(server, &prefix).await, handle(server, &prefix).await);
    let other = handle(server, &format!("{prefix}other:")).await;
    two.pushed().await;
    one.push(&class("shell"), &[hint(-5, 1), hint(1_790_000_000_123, 2)]).await.unwrap();
    timeout(PATIENCE, two.pushed()).await.expect("the other one is woken");
    assert_eq!(other.classes().await.unwrap(), []);
    assert_eq!(two.pop(&class("shell"), 9).await.unwrap(), [hint(-5, 1), hint(1_790_000_000_123, 2)]);
    assert_eq!(one.len(&class("shell")).await.unwrap(), 0);
    two.mark_rebuilt().await.unwrap();
    assert!(one.is_intact().await.unwrap());
}

#[tokio::test]
async fn names_may_hold_anything() {
    let Some(queue) = fresh().await else { return };
    let odd = Class { namespace: Namespace("a:b".into()), pool: "c%:\n \u{e9}".into(), agent: String::new() };
    let alike = Class { namespace: Namespace("a".into()), pool: "b:c%:\n \u{e9}".into(), agent: String::new() };
    queue.push(&odd, &[hint(1, 1)]).await.unwrap();
    assert_eq!(queue.classes().await.unwrap(), std::slice::from_ref(&odd));
    assert_eq!(queue.len(&alike).await.unwrap(), 0);
    assert_eq!(queue.pop(&odd, 1).await.unwrap(), [hint(1, 1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_hint_is_popped_twice() {
    const HINTS: usize = 5000;
    let Some(server) = server::shared() else { return };
    let prefix = format!("{}:", Env::system().uuid());
    let feeder = handle(server, &prefix).await;
    feeder.push(&class("shell"), &(0..HINTS).map(|n| hint(0, n as u128)).collect::<Vec<_>>()).await.unwrap();
    let mut poppers = Vec::new();
    for _ in 0..3 {
        let queue = handle(server, &prefix).await;
        poppers.push(tokio::spawn(async move {
            let mut popped = Vec::new();
            loop {
                match queue.pop(&class("shell"), 7).await.unwrap() {
                    more if more.is_empty() => return popped,
                    more => popped.extend(more),
                }
            }
        }));
    }
    let mut all = Vec::new();
    for popper in poppers {
        all.extend(popper.await.unwrap());
    }
    assert_eq!(all.len(), HINTS);
    assert_eq!(all.into_iter().map(|hint| hint.task).collect::<BTreeSet<_>>().len(), HINTS);
}

#[tokio::test]
async fn a_hanging_redis_fails_once_slowly_and_then_at_once() {
    let Some(server) = server::Redis::start() else { return };
    let queue = handle(&server, "ado:").await;
    queue.push(&class("shell"), &[hint(1, 1)]).await.unwrap();
    queue.mark_rebuilt().await.unwrap();
    queue.heard().await;
    queue.pushed().await;
    server.freeze();
    timeout(PATIENCE, queue.push(&class("shell"), &[hint(2, 2)])).await.expect("it ends").unwrap_err();
    assert!(!queue.flows());
    // No time may pass in this: nothing is waited for.
    let at_once = async {
        for _ in 0..1000 {
            queue.pop(&class("shell"), 1).await.unwrap_err();
        }
        queue.classes().await.unwrap_err();
        queue.is_intact().await.unwrap_err();
        queue.mark_rebuilt().await.unwrap_err();
    };
    assert!(futures_util::FutureExt::now_or_never(at_once).is_some(), "it is known to hang");
    timeout(PATIENCE, queue.pushed()).await.expect("who waits for hints looks elsewhere");
    assert_eq!(timeout(PATIENCE, queue.heard()).await.unwrap(), News { missed: true, ..News::default() });
    server.thaw();
    until("it is back", async || queue.flows()).await;
    assert!(queue.is_intact().await.unwrap(), "it was only slow");
    assert!(timeout(PATIENCE, queue.heard()).await.unwrap().missed, "what was said meanwhile is not known");
}

#[tokio::test]
async fn a_redis_that_was_restarted_or_flushed_or_replaced_is_not_intact() {
    let Some(mut server) = server::Redis::start() else { return };
    let queue = handle(&server, "ado:").await;
    let rebuild = async || {
        queue.push(&class("shell"), &[hint(1, 1)]).await.unwrap();
        queue.mark_rebuilt().await.unwrap();
        assert!(queue.is_intact().await.unwrap());
    };
    rebuild().await;
    server.ask::<()>(&["FLUSHALL"]);
    assert!(!queue.is_intact().await.unwrap());
    assert_eq!(queue.classes().await.unwrap(), []);

    rebuild().await;
    server.kill();
    until("it is gone", async || !queue.flows()).await;
    queue.push(&class("shell"), &[hint(1, 1)]).await.unwrap_err();
    server.restart();
    until("it is back", async || queue.flows()).await;
    assert!(!queue.is_intact().await.unwrap());

    rebuild().await;
    server.ask::<()>(&["SET", "ado:intact", "the run that this copy is of"]);
    assert!(!queue.is_intact().await.unwrap(), "it has read an older copy");
}

#[tokio::test]
async fn a_redis_that_takes_no_writes_is_not_to_be_had() {
    let Some(server) = server::Redis::start() else { return };
    let queue = handle(&server, "ado:").await;
    queue.push(&class("shell"), &[hint(1, 1)]).await.unwrap();
    server.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    queue.push(&class("shell"), &[hint(2, 2)]).await.unwrap_err();
    // It answers, and is full: several new connections find out.
    for _ in 0..30 {
        assert!(!queue.flows());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    server.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    until("it takes writes again", async || queue.push(&class("shell"), &[hint(2, 2)]).await.is_ok()).await;
}

#[tokio::test]
async fn a_redis_that_comes_later_is_found() {
    let Some(mut server) = server::Redis::start() else { return };
    server.kill();
    let queue = handle(&server, "ado:").await;
    queue.classes().await.unwrap_err();
    assert!(!queue.flows());
    server.restart();
    until("it is there", async || queue.classes().await.is_ok()).await;
}

#[tokio::test]
async fn others_hear_which_logs_have_grown() {
    let Some(server) = server::shared() else { return };
    let prefix = format!("{}:", Env::system().uuid());
    let (one, two) = (handle(server, &prefix).await, handle(server, &prefix).await);
    assert!(one.heard().await.missed && two.heard().await.missed, "what was before is not known");
    let task = |n| TaskId(Uuid::from_u128(n));
    for n in 0..100 {
        one.tell(task(n % 3), Offset(n as u64));
    }
    let mut heard = News::default();
    while heard.grown.values().map(|next| next.0).sum::<u64>() < 99 + 98 + 97 {
        let more = timeout(PATIENCE, two.heard()).await.expect("it is told");
        heard.grown.extend(more.grown);
        assert!(!more.missed);
    }
    // In the order of what is published: had it heard itself, it would have by now.
    two.tell(task(9), Offset(1));
    let heard = timeout(PATIENCE, one.heard()).await.expect("it is told");
    assert_eq!(heard.grown.into_keys().collect::<Vec<_>>(), [task(9)]);
}

#[tokio::test]
async fn who_could_not_tell_says_so_later() {
    let Some(server) = server::shared() else { return };
    let prefix = format!("{}:", Env::system().uuid());
    let other = handle(server, &prefix).await;
    assert!(other.heard().await.missed, "what was before is not known");
    // One that has no connection yet.
    let (keys, own) = (Arc::new(Keys::new(&prefix)), Env::system().uuid());
    let (link, telling) = (Link::new(), Arc::<Gathered>::default());
    telling.add(TaskId(Uuid::from_u128(1)), Offset(1));
    let mut tells = Box::pin(tell(link.clone(), telling, keys.grown.clone(), own));
    assert!(futures_util::FutureExt::now_or_never(&mut tells).is_none(), "it waits for one");
    tokio::spawn(tells);
    let ears = Arc::new(Ears { own, keys: keys.clone(), pushes: Pushes::default(), news: Gathered::default() });
    let channels = vec![keys.grown.clone()];
    let target = Target { client: client(&server.url()).unwrap(), channels, proof: format!("{prefix}proof") };
    link.first(&target, &ears).await;
    assert!(timeout(PATIENCE, other.heard()).await.expect("it is told").missed);
}

#[tokio::test]
async fn a_wrong_url_is_refused_without_being_shown() {
    for url in ["", "localhost", "http://:hunter2@localhost", "redis://:hunter2@localhost:port", "redis://h/hunter2"] {
        let config = RedisConfig { url: url.into(), prefix: "ado:".into() };
        let Err(error) = Redis::start(&config, Env::system(), &Tasks::new()).await else { panic!("{url} is taken") };
        assert!(!format!("{error} {error:?} {config:?}").contains("hunter2"), "{error}");
    }
}
