//! Workers, leases, loops.

use super::*;

pub(super) fn registered(n: u64, start: u64) -> Worker {
    Worker {
        id: worker(n),
        incarnation: incarnation(start),
        name: format!("worker-{n}"),
        namespace: Namespace::default(),
        pool: "default".into(),
        slots: 4,
        agents: vec!["shell".into(), "noop".into()],
        labels: BTreeMap::from([("zone".into(), "a \"quoted\"".into())]),
        containment: Containment::Subreaper,
        build: "0.1.0".into(),
        resources: Resources { cpu_milli: Some(2500), memory: Some(u64::MAX), pids: None },
        draining: false,
        seen_at: Timestamp(0),
        via: None,
    }
}

pub(super) async fn a_heartbeat_renews_what_is_held(bed: Bed) {
    bed.store.register(registered(1, 10)).await.unwrap();
    for n in 1..=5 {
        bed.create(task(n)).await;
    }
    for n in 1..=3 {
        bed.start(task(n), worker(1)).await;
    }
    bed.start(task(4), worker(2)).await;
    bed.hand.advance(Duration::from_secs(5));
    let renewed_at = bed.hand.time();
    // 1 is held; 2 is held under another epoch; 3 is not named; 4 is another's; 5 is nobody's; 9 is no task.
    let holds = [1, 2, 4, 5, 9].map(|n| (task(n), Epoch(if n == 2 { 7 } else { 1 })));
    let renewal = bed.renew(worker(1), incarnation(10), &holds, true).await.unwrap();
    assert_eq!(ids(&renewal.renewed), [task(1)]);
    assert_eq!(renewal.lost, holds[1..]);
    assert_eq!(ids(&renewal.unnamed), [task(2), task(3)]);

    let row = bed.row(task(1)).await;
    let lease = Lease { is_known: true, ..given(worker(1), renewed_at) };
    assert_eq!(row.lease, Some(lease));
    assert_eq!(renewal.renewed[0], row);
    assert!(!bed.row(task(3)).await.lease.unwrap().is_known, "what it did not name it does not know");
    let known = &bed.store.workers().await.unwrap()[0];
    assert_eq!((known.seen_at, known.draining, known.via), (renewed_at, true, Some(VIA)));

    // A change of the task leaves the lease as it is now.
    applied(&bed.run(task(1), append(Epoch(1), 1, vec![output("x")])).await);
    assert_eq!(bed.row(task(1)).await.lease, row.lease);
    assert_eq!(ids(&bed.store.held_by(worker(1)).await.unwrap()), [1, 2, 3].map(task));
}

pub(super) async fn a_heartbeat_of_another_start_renews_nothing(bed: Bed) {
    bed.create(task(1)).await;
    bed.start(task(1), worker(1)).await;
    let before = bed.row(task(1)).await;
    let holds = [(task(1), Epoch(1))];
    let renew = async |start| bed.renew(worker(1), incarnation(start), &holds, false).await;
    bed.hand.advance(Duration::from_secs(5));
    assert_eq!(renew(10).await, None, "never registered");
    bed.store.register(registered(1, 10)).await.unwrap();
    bed.store.register(registered(1, 11)).await.unwrap();
    assert_eq!(renew(10).await, None, "restarted since");
    assert_eq!(bed.row(task(1)).await, before);
    let renewal = renew(11).await.unwrap();
    assert_eq!((ids(&renewal.unnamed), renewal.lost), (vec![task(1)], holds.to_vec()), "it was given to another start");
    assert_eq!(bed.row(task(1)).await, before);
}

pub(super) async fn heartbeats_that_come_together_count_each_for_itself(bed: Bed) {
    for n in 1..=3 {
        bed.store.register(registered(n, 10 * n)).await.unwrap();
        bed.create(task(n)).await;
        bed.start(task(n), worker(n)).await;
    }
    bed.hand.advance(Duration::from_secs(5));
    let renewed_at = bed.hand.time();
    let beat = |n, start, named: &[u64], draining| Beat {
        worker: worker(n),
        incarnation: incarnation(start),
        via: VIA,
        holds: named.iter().map(|n| (task(*n), Epoch(1))).collect(),
        draining,
    };
    let beats = vec![
        beat(3, 30, &[3], true),
        // Names what another holds.
        beat(1, 10, &[1, 2], false),
        // Another start, and nobody.
        beat(2, 21, &[2], true),
        beat(9, 90, &[], false),
        // A second session of the first one.
        beat(1, 10, &[1], false),
    ];
    let renewals = bed.store.renew(beats, LEASE).await.unwrap();
    assert_eq!(renewals.len(), 5);
    let renewed = |at: usize| renewals[at].as_ref().map(|renewal| ids(&renewal.renewed));
    let of = |n| Some(vec![task(n)]);
    assert_eq!([0, 1, 2, 3, 4].map(renewed), [of(3), of(1), None, None, of(1)]);
    assert_eq!(renewals[1].as_ref().unwrap().lost, [(task(2), Epoch(1))]);
    for (n, is_renewed) in [(1, true), (2, false), (3, true)] {
        let lease = bed.row(task(n)).await.lease.unwrap();
        assert_eq!(lease.expires_at == renewed_at.after(LEASE), is_renewed, "task {n}");
        assert_eq!(lease.is_known, is_renewed, "task {n}");
    }
    let workers = bed.store.workers().await.unwrap();
    let said: Vec<_> = workers.iter().map(|worker| (worker.draining, worker.seen_at == renewed_at)).collect();
    assert_eq!(said, [(false, true), (false, false), (true, true)]);
    assert_eq!(bed.store.renew(Vec::new(), LEASE).await.unwrap(), []);
}

pub(super) async fn leases_expire(bed: Bed) {
    bed.store.register(registered(1, 10)).await.unwrap();
    for n in 1..=3 {
        bed.create(task(n)).await;
        bed.start(task(n), worker(1)).await;
        bed.hand.advance(Duration::from_secs(1));
    }
    let expired = async |before: Timestamp, limit| ids(&bed.store.expired(before, limit).await.unwrap());
    let first = bed.row(task(1)).await.lease.unwrap().expires_at;
    assert_eq!(expired(first, 10).await, [], "not before its end");
    assert_eq!(expired(Timestamp(first.0 + 1), 10).await, [task(1)]);
    assert_eq!(expired(first.after(LEASE), 10).await, [1, 2, 3].map(task));
    assert_eq!(expired(first.after(LEASE), 2).await, [1, 2].map(task));
    bed.renew(worker(1), incarnation(10), &[(task(1), Epoch(1))], false).await.unwrap();
    assert_eq!(expired(Timestamp(first.0 + 1_000_001), 10).await, [task(2)]);
    applied(&bed.run(task(2), append(Epoch(1), 1, vec![exited(0)])).await);
    assert_eq!(expired(first.after(LEASE), 10).await, [3, 1].map(task), "who is over has no lease");
    assert_eq!(ids(&bed.store.held_by(worker(1)).await.unwrap()), [1, 3].map(task));
}

pub(super) async fn workers_are_registered_and_forgotten(bed: Bed) {
    let seen = |worker: Worker, seen_at| Worker { seen_at, ..worker };
    let at = bed.hand.time();
    assert_eq!(bed.store.register(registered(2, 20)).await.unwrap(), None);
    assert_eq!(bed.store.register(registered(1, 10)).await.unwrap(), None);
    bed.hand.advance(Duration::from_secs(1));
    let former = bed.store.register(Worker { slots: 9, ..registered(1, 11) }).await.unwrap();
    assert_eq!(former, Some(seen(registered(1, 10), at)));
    let now = seen(Worker { slots: 9, ..registered(1, 11) }, bed.hand.time());
    assert_eq!(bed.store.workers().await.unwrap(), [now.clone(), seen(registered(2, 20), at)]);
    bed.store.remove_worker(worker(2)).await.unwrap();
    bed.store.remove_worker(worker(3)).await.unwrap();
    assert_eq!(bed.store.workers().await.unwrap(), [now]);
}

pub(super) async fn a_loop_has_one_holder_and_rising_terms(bed: Bed) {
    let ttl = Duration::from_secs(15);
    let hold = async |n| bed.store.hold_loop("reaper", incarnation(n), ttl).await.unwrap();
    assert_eq!(hold(1).await, Some(1));
    bed.hand.advance(Duration::from_secs(10));
    assert_eq!(hold(1).await, Some(1), "kept");
    bed.hand.advance(Duration::from_secs(14));
    assert_eq!(hold(2).await, None, "another holds it");
    assert_eq!(bed.store.hold_loop("sweep", incarnation(2), ttl).await.unwrap(), Some(1), "another loop");
    bed.store.release_loop("reaper", incarnation(2)).await.unwrap();
    assert_eq!(hold(2).await, None, "only its holder gives it back");
    bed.hand.advance(Duration::from_secs(1));
    assert_eq!(hold(2).await, Some(2), "over");
    assert_eq!(hold(1).await, None);
    bed.store.release_loop("reaper", incarnation(2)).await.unwrap();
    assert_eq!(hold(1).await, Some(3), "given back");
    bed.store.release_loop("nothing", incarnation(2)).await.unwrap();
}

pub(super) async fn a_start_that_drains_goes_on_draining(bed: Bed) {
    bed.store.register(registered(1, 10)).await.unwrap();
    bed.renew(worker(1), incarnation(10), &[], true).await.unwrap();
    bed.store.register(registered(1, 10)).await.unwrap();
    assert!(bed.store.workers().await.unwrap()[0].draining, "it has only connected again");
    bed.store.register(registered(1, 11)).await.unwrap();
    let known = &bed.store.workers().await.unwrap()[0];
    assert!(!known.draining, "it has been started again");
    assert_eq!(known.via, Some(VIA), "not before it renews what it holds is that another's");
}

pub(super) async fn a_silent_worker_is_lost_once_a_silence(bed: Bed) {
    let at = bed.hand.time();
    bed.store.register(registered(1, 10)).await.unwrap();
    bed.hand.advance(Duration::from_secs(1));
    bed.store.register(registered(2, 20)).await.unwrap();
    let event = |worker: &Worker| NewEvent {
        audience: Audience::Namespace(worker.namespace.clone()),
        kind: "worker.lost",
        task: None,
        worker: Some(worker.id),
        text: worker.name.clone(),
    };
    let lose = async |before| {
        let lost = bed.store.lose_workers(before, &event).await.unwrap();
        lost.iter().map(|worker| worker.id).collect::<Vec<_>>()
    };
    assert_eq!(lose(at).await, [], "seen since");
    assert_eq!(lose(Timestamp(at.0 + 1)).await, [worker(1)]);
    assert_eq!(lose(Timestamp(at.0 + 1)).await, []);
    assert_eq!(lose(Timestamp(i64::MAX)).await, [worker(2)]);
    bed.renew(worker(1), incarnation(10), &[], false).await.unwrap();
    bed.store.register(registered(2, 20)).await.unwrap();
    assert_eq!(lose(Timestamp(i64::MAX)).await, [worker(1), worker(2)], "they were seen, and are silent again");
    let events = bed.events(4).await;
    let said: Vec<_> = events.iter().map(|event| (event.kind.as_str(), event.worker)).collect();
    assert_eq!(said, [1, 2, 1, 2].map(|n| ("worker.lost", Some(worker(n)))));

    bed.create(task(1)).await;
    bed.start(task(1), worker(2)).await;
    bed.hand.advance(EVENT_RETENTION + Duration::from_secs(1));
    bed.store.sweep().await.unwrap();
    let known: Vec<_> = bed.store.workers().await.unwrap().iter().map(|worker| worker.id).collect();
    assert_eq!(known, [worker(2)], "forgotten, unless it holds something");
}

pub(super) async fn a_breaker_is_kept_while_anything_is_known_of_it(bed: Bed) {
    use crate::task::{Breaker, BreakerPolicy, Gate, Scope, Signal};
    let scope = |n| Scope::Worker(worker(n));
    let hear = async |n, signal: Signal| {
        let change = move |before: &Breaker, now| {
            let event = NewEvent {
                audience: Audience::Everywhere,
                kind: "breaker.opened",
                task: None,
                worker: Some(worker(n)),
                text: "it failed".into(),
            };
            let after = before.after(signal, now, &BreakerPolicy::USUAL);
            let opened = after.open().is_some() && before.open().is_none();
            (after, opened.then_some(event).into_iter().collect())
        };
        bed.store.change_breaker(&scope(n), Box::new(change)).await.unwrap()
    };
    let failed = || Signal::Failed { why: "no space left".into() };
    assert_eq!(bed.store.breakers().await.unwrap(), BTreeMap::new());
    hear(1, Signal::Began).await;
    assert_eq!(bed.store.breakers().await.unwrap(), BTreeMap::new(), "nothing is known against it");
    let mut last = Breaker::default();
    for _ in 0..3 {
        last = hear(1, failed()).await;
    }
    assert_eq!(last.gate(bed.hand.time()), Gate::Shut);
    let other = hear(2, failed()).await;
    let both = BTreeMap::from([(scope(1), last.clone()), (scope(2), other)]);
    assert_eq!(bed.store.breakers().await.unwrap(), both);
    let events = bed.store.events(&Audience::Everywhere, EventsFrom::After(0), 10).await.unwrap().events;
    assert_eq!(events.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(), ["breaker.opened"]);
    hear(2, Signal::Finished).await;
    assert_eq!(bed.store.breakers().await.unwrap(), BTreeMap::from([(scope(1), last)]));
    bed.hand.advance(EVENT_RETENTION + Duration::from_secs(1));
    bed.store.sweep().await.unwrap();
    assert_eq!(bed.store.breakers().await.unwrap(), BTreeMap::new());
}
