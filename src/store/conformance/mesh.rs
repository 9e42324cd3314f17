//! Controllers of one mesh: who they are, what they say of workers, what is wanted of those, what all of them need.

use ado_proto::ControllerId;

use super::fleet::registered;
use super::*;

fn controller(n: u64, start: u64) -> Controller {
    Controller {
        id: ControllerId(uuid(n)),
        incarnation: incarnation(start),
        name: format!("controller \"{n}\""),
        addresses: vec!["ado.example.com:4433".into(), "[::1]:4433".into()],
        build: "0.1.0".into(),
        since: Timestamp(0),
        seen_at: Timestamp(0),
        in_touch: Timestamp(7),
        workers: 3,
        viewers: 1,
    }
}

fn report(n: u64, controller: u64) -> Report {
    Report {
        worker: worker(n),
        controller: incarnation(controller),
        busy: 2,
        load: Load { cpus: 4, load_milli: 1_500, memory: 8 << 30, memory_available: 3 << 30 },
        rtt: Duration::from_micros(1_234),
    }
}

pub(super) async fn controllers_are_known_by_what_they_said_last(bed: Bed) {
    let (store, began) = (&bed.store, bed.hand.time());
    assert_eq!(store.report(controller(2, 20), Vec::new()).await.unwrap(), began);
    bed.hand.advance(Duration::from_secs(1));
    store.report(controller(1, 10), Vec::new()).await.unwrap();
    let said = Controller { workers: 9, in_touch: began, ..controller(2, 20) };
    store.report(said.clone(), Vec::new()).await.unwrap();
    let now = bed.hand.time();
    let one = Controller { since: now, seen_at: now, ..controller(1, 10) };
    let two = Controller { since: began, seen_at: now, ..said };
    assert_eq!(store.controllers().await.unwrap(), [one.clone(), two]);

    bed.hand.advance(Duration::from_secs(1));
    store.report(controller(2, 21), Vec::new()).await.unwrap();
    let again = Controller { since: bed.hand.time(), seen_at: bed.hand.time(), ..controller(2, 21) };
    assert_eq!(store.controllers().await.unwrap(), [one.clone(), again], "it was started again");

    store.remove_controller(ControllerId(uuid(2)), incarnation(20)).await.unwrap();
    assert_eq!(store.controllers().await.unwrap().len(), 2, "a former start says nothing of the newer one");
    store.remove_controller(ControllerId(uuid(2)), incarnation(21)).await.unwrap();
    assert_eq!(store.controllers().await.unwrap(), [one]);
    bed.hand.advance(EVENT_RETENTION + Duration::from_secs(1));
    store.sweep().await.unwrap();
    assert_eq!(store.controllers().await.unwrap(), []);
}

pub(super) async fn controllers_say_what_they_know_of_workers(bed: Bed) {
    let store = &bed.store;
    assert_eq!(store.reports().await.unwrap(), []);
    store.report(controller(1, 10), vec![report(2, 10), report(1, 10)]).await.unwrap();
    store.report(controller(2, 20), vec![Report { busy: 0, ..report(2, 20) }]).await.unwrap();
    let said = [report(1, 10), Report { busy: 0, ..report(2, 20) }];
    assert_eq!(store.reports().await.unwrap(), said, "the last word counts");
    store.report(controller(1, 10), Vec::new()).await.unwrap();
    assert_eq!(store.reports().await.unwrap(), said);
    bed.hand.advance(EVENT_RETENTION + Duration::from_secs(1));
    store.sweep().await.unwrap();
    assert_eq!(store.reports().await.unwrap(), []);
}

pub(super) async fn held_loops_are_listed(bed: Bed) {
    let hold = async |name: &str, n| bed.store.hold_loop(name, incarnation(n), LEASE).await.unwrap();
    hold("sweep", 1).await;
    hold("reaper", 2).await;
    hold("retention", 1).await;
    bed.store.release_loop("retention", incarnation(1)).await.unwrap();
    let held = |name: &str, n, term| HeldLoop { name: name.into(), holder: incarnation(n), term };
    assert_eq!(bed.store.loops().await.unwrap(), [held("reaper", 2, 1), held("sweep", 1, 1)]);
    bed.hand.advance(LEASE);
    assert_eq!(bed.store.loops().await.unwrap(), [], "their leases are over");
    hold("sweep", 2).await;
    assert_eq!(bed.store.loops().await.unwrap(), [held("sweep", 2, 2)]);
}

pub(super) async fn wishes_are_kept_and_counted(bed: Bed) {
    let (store, key) =
        (&bed.store, Key { principal: "ado://default/admin/ann".into(), kind: 31, id: request(1), body: [1; 32] });
    assert_eq!(store.wishes().await.unwrap(), BTreeMap::new());
    let event = NewEvent {
        audience: Audience::Namespace(Namespace::default()),
        kind: "worker.drain",
        task: None,
        worker: Some(worker(1)),
        text: "box by admin/ann".into(),
    };
    let within = Some(Duration::from_secs(300));
    let drain = NewWish { desired: WorkerDesired::Drained, within, by: "admin/ann".into() };
    let kept = Some((key.clone(), Bytes::from_static(b"answer")));
    let drained = store.wish(worker(1), drain.clone(), kept, audit("SetWorker"), Some(event)).await.unwrap();
    let expected = Wish {
        desired: WorkerDesired::Drained,
        generation: 1,
        deadline: Some(bed.hand.time().after(Duration::from_secs(300))),
        by: "admin/ann".into(),
    };
    assert_eq!(drained, expected);
    assert_eq!(store.answered(&key).await.unwrap(), Some(Committed::Replayed(Bytes::from_static(b"answer"))));
    assert_eq!(bed.audit().await[0].action, "SetWorker");
    assert_eq!(bed.events(1).await[0].kind, "worker.drain");
    let cordon = NewWish { desired: WorkerDesired::Cordoned, within: None, by: "admin/bob".into() };
    store.wish(worker(2), cordon.clone(), None, audit("SetWorker"), None).await.unwrap();
    assert_eq!(
        store.wishes().await.unwrap(),
        BTreeMap::from([
            (worker(1), drained),
            (
                worker(2),
                Wish { desired: WorkerDesired::Cordoned, generation: 1, deadline: None, by: "admin/bob".into() }
            ),
        ])
    );

    // Neither a new start of the worker nor its end takes it back.
    store.register(registered(1, 10)).await.unwrap();
    store.remove_worker(worker(1)).await.unwrap();
    let active = NewWish { desired: WorkerDesired::Active, within: None, by: "admin/ann".into() };
    let lifted = store.wish(worker(1), active, None, audit("SetWorker"), None).await.unwrap();
    assert_eq!((lifted.desired, lifted.generation, lifted.deadline), (WorkerDesired::Active, 2, None));
    assert_eq!(store.wishes().await.unwrap()[&worker(1)], lifted);
}

pub(super) async fn an_item_is_kept_once(bed: Bed) {
    assert_eq!(bed.store.item("mesh/ca").await.unwrap(), None);
    assert_eq!(bed.store.put_item("mesh/ca", &[0, 1, 255]).await.unwrap(), [0, 1, 255]);
    assert_eq!(
        bed.store.put_item("mesh/ca", &[7]).await.unwrap(),
        [0, 1, 255],
        "whoever comes later gets the first one"
    );
    assert_eq!(bed.store.item("mesh/ca").await.unwrap(), Some(vec![0, 1, 255]));
    assert_eq!(bed.store.item("mesh").await.unwrap(), None);
    let items: Vec<_> = (0..8u8).map(|n| [n]).collect();
    let racing = items.iter().map(|item| bed.store.put_item("race", item));
    let seen = futures_util::future::join_all(racing).await;
    let first = seen[0].as_ref().unwrap();
    assert!(seen.iter().all(|item| item.as_ref().unwrap() == first));
}
