//! What every queue must do, run over each of them.

use std::sync::Arc;

use uuid::Uuid;

use super::*;

fn class(agent: &str) -> Class {
    Class { namespace: Namespace::default(), pool: "default".into(), agent: agent.into() }
}

fn hint(score: i64, n: u128) -> Hint {
    Hint { score, task: TaskId(Uuid::from_u128(n)) }
}

async fn hints_come_in_order_of_score_then_id(queue: impl Queue) {
    let shell = class("shell");
    queue.push(&shell, &[hint(5, 2), hint(-7, 9), hint(5, 1)]).await.unwrap();
    queue.push(&shell, &[hint(6, 0)]).await.unwrap();
    let popped = queue.pop(&shell, 10).await.unwrap();
    assert_eq!(popped, [hint(-7, 9), hint(5, 1), hint(5, 2), hint(6, 0)]);
    assert_eq!(queue.pop(&shell, 10).await.unwrap(), []);
}

async fn the_lower_score_is_kept(queue: impl Queue) {
    let shell = class("shell");
    queue.push(&shell, &[hint(5, 1), hint(9, 1), hint(7, 2)]).await.unwrap();
    queue.push(&shell, &[hint(3, 2), hint(8, 1)]).await.unwrap();
    assert_eq!(queue.len(&shell).await.unwrap(), 2);
    assert_eq!(queue.pop(&shell, 10).await.unwrap(), [hint(3, 2), hint(5, 1)]);
    queue.push(&shell, &[hint(8, 1)]).await.unwrap();
    assert_eq!(queue.pop(&shell, 10).await.unwrap(), [hint(8, 1)], "what was taken is forgotten");
}

async fn no_more_than_the_limit_is_taken(queue: impl Queue) {
    let shell = class("shell");
    queue.push(&shell, &[hint(1, 1), hint(2, 2), hint(3, 3)]).await.unwrap();
    assert_eq!(queue.pop(&shell, 0).await.unwrap(), []);
    assert_eq!(queue.pop(&shell, 2).await.unwrap(), [hint(1, 1), hint(2, 2)]);
    assert_eq!(queue.len(&shell).await.unwrap(), 1);
    assert_eq!(queue.pop(&shell, 2).await.unwrap(), [hint(3, 3)]);
}

async fn classes_are_apart(queue: impl Queue) {
    assert_eq!(queue.classes().await.unwrap(), []);
    let (noop, shell) = (class("noop"), class("shell"));
    let other = Class { namespace: Namespace("other".into()), ..class("noop") };
    for class in [&shell, &noop, &other] {
        queue.push(class, &[hint(1, 1)]).await.unwrap();
    }
    queue.push(&class("empty"), &[]).await.unwrap();
    let mut classes = queue.classes().await.unwrap();
    classes.sort();
    assert_eq!(classes, [noop.clone(), shell.clone(), other.clone()]);
    assert_eq!(queue.pop(&noop, 10).await.unwrap(), [hint(1, 1)]);
    assert_eq!(queue.len(&noop).await.unwrap(), 0);
    assert_eq!(queue.len(&other).await.unwrap(), 1);
    assert_eq!(queue.pop(&class("none"), 10).await.unwrap(), []);
    assert_eq!(queue.classes().await.unwrap().len(), 2);
}

async fn a_new_queue_is_not_intact_until_it_is_rebuilt(queue: impl Queue) {
    assert!(!queue.is_intact().await.unwrap());
    queue.push(&class("shell"), &[hint(1, 1)]).await.unwrap();
    assert!(!queue.is_intact().await.unwrap());
    queue.mark_rebuilt().await.unwrap();
    assert!(queue.is_intact().await.unwrap());
    assert_eq!(queue.len(&class("shell")).await.unwrap(), 1);
}

async fn a_push_wakes_who_waits_and_who_will_wait(queue: impl Queue) {
    let queue = Arc::new(queue);
    let shell = class("shell");
    queue.push(&shell, &[hint(1, 1)]).await.unwrap();
    queue.pushed().await;

    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.pushed().await }
    });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished(), "nothing was pushed since");
    queue.push(&shell, &[hint(2, 2)]).await.unwrap();
    waiting.await.unwrap();
}

/// Consumers that take what there is and wait when there is nothing: every push is taken, whatever the interleaving.
async fn no_push_is_missed(queue: impl Queue) {
    const HINTS: usize = 200;
    let queue = Arc::new(queue);
    let consumer = tokio::spawn({
        let queue = queue.clone();
        async move {
            let mut taken = 0;
            while taken < HINTS {
                let popped = queue.pop(&class("shell"), 3).await.unwrap().len();
                taken += popped;
                if popped == 0 {
                    queue.pushed().await;
                }
            }
        }
    });
    for n in 0..HINTS {
        queue.push(&class("shell"), &[hint(1, n as u128)]).await.unwrap();
        if n % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    consumer.await.unwrap();
}

/// Every case over every queue.
macro_rules! suite {
    ($($case:ident)+) => {
        mod local {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() { super::$case(super::Local::new()).await })+
        }

        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                if let Some(queue) = crate::queue::redis::tests::fresh().await {
                    super::$case(queue).await;
                }
            })+
        }
    };
}

suite! {
    hints_come_in_order_of_score_then_id
    the_lower_score_is_kept
    no_more_than_the_limit_is_taken
    classes_are_apart
    a_new_queue_is_not_intact_until_it_is_rebuilt
    a_push_wakes_who_waits_and_who_will_wait
    no_push_is_missed
}

#[tokio::test]
async fn every_handle_is_told_of_a_push() {
    let queue = Local::new();
    let others = [queue.clone(), queue.clone()];
    queue.push(&class("shell"), &[hint(1, 1)]).await.unwrap();
    for handle in &others {
        handle.pushed().await;
    }
    assert_eq!(others[0].pop(&class("shell"), 9).await.unwrap(), [hint(1, 1)], "of the same hints");
}

#[tokio::test]
async fn a_flushed_queue_is_empty_and_not_intact() {
    let queue = Local::new();
    queue.push(&class("shell"), &[hint(1, 1)]).await.unwrap();
    queue.mark_rebuilt().await.unwrap();
    queue.flush();
    assert_eq!(queue.classes().await.unwrap(), []);
    assert!(!queue.is_intact().await.unwrap());
}
