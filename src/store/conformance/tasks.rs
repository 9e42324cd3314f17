//! Changing and finding tasks.

use super::*;
use crate::task::FoldError;

pub(super) async fn a_task_is_created_once_and_changed(bed: Bed) {
    bed.create(task(1)).await;
    let before = bed.row(task(1)).await;
    assert_eq!(before.task.created_at, bed.hand.time());

    let again = bed.commit(vec![create(task(1), with_priority(9))]).await;
    assert_eq!(again, [Outcome::Refused(Refusal::Fold(FoldError::NotTheBeginning), Box::new(before))]);

    bed.hand.advance(Duration::from_secs(1));
    let outcome = bed.run(task(1), claim(worker(1))).await;
    let write = applied(&outcome);
    assert_eq!(write.records[0].time, bed.hand.time());
    assert_eq!(write.row, bed.row(task(1)).await);
    let lease = Lease { worker: worker(1), incarnation: None, expires_at: bed.hand.time().after(LEASE) };
    assert_eq!(write.row.lease, Some(lease));
    assert_eq!(bed.log(task(1)).await.len(), 2);
}

pub(super) async fn what_is_not_there_is_missing(bed: Bed) {
    assert_eq!(bed.run(task(1), claim(worker(1))).await, Outcome::Missing);
    assert_eq!(bed.store.row(task(1)).await.unwrap(), None);
    assert_eq!(bed.store.read(task(1), Offset(0), 100).await.unwrap(), None);
    assert_eq!(bed.store.read_back(task(1), Offset(9), 100).await.unwrap(), None);
    assert_eq!(bed.store.offset_since(task(1), Timestamp(0)).await.unwrap(), None);
}

pub(super) async fn changes_of_a_batch_see_each_other(bed: Bed) {
    let units = vec![
        unit(vec![create(task(1), new_task()), update(task(1), claim(worker(1)))]),
        unit(vec![update(task(1), append(Epoch(1), 0, vec![started(), output("a")]))]),
        unit(vec![update(task(1), append(Epoch(1), 2, vec![output("b")])), update(task(2), claim(worker(1)))]),
    ];
    let committed = bed.store.commit(units).await.unwrap();
    let Committed::Done(last, None) = &committed[2] else { panic!("{committed:?}") };
    assert_eq!(applied(&last[0]).row.task, bed.row(task(1)).await.task);
    assert_eq!(last[1], Outcome::Missing);
    let log = bed.log(task(1)).await;
    assert_eq!(log.len(), 5);
    assert_eq!(log[4].body, output("b"));
}

pub(super) async fn a_refused_change_fails_nothing_else(bed: Bed) {
    bed.create(task(1)).await;
    let outcomes = bed
        .commit(vec![
            update(task(1), append(Epoch(4), 0, vec![started()])),
            create(task(2), new_task()),
            update(task(1), claim(worker(1))),
        ])
        .await;
    assert!(matches!(&outcomes[0], Outcome::Refused(Refusal::Stale { .. }, row) if row.task.id == task(1)));
    applied(&outcomes[1]);
    applied(&outcomes[2]);
    assert_eq!(bed.row(task(2)).await.task.state_word(), "queued");
    assert_eq!(bed.log(task(1)).await.len(), 2);
}

pub(super) async fn a_record_nobody_could_read_again_is_refused(bed: Bed) {
    bed.create(task(1)).await;
    let epoch = bed.start(task(1), worker(1)).await;
    let note = |len| ado_proto::record::Note { text: "x".repeat(len) }.into();
    for (first, body) in
        [(1, note(ado_proto::record::MAX_BODY)), (1, output(vec![0; ado_proto::record::MAX_OUTPUT + 1]))]
    {
        let outcome = bed.run(task(1), append(epoch, first, vec![body])).await;
        assert!(matches!(outcome, Outcome::Refused(Refusal::Fold(FoldError::TooLong(_)), _)), "{outcome:?}");
    }
    let claim_as = |name: String| Command::Claim { worker: Holder { id: worker(1), name } };
    bed.create(task(2)).await;
    let outcome = bed.run(task(2), claim_as("n".repeat(ado_proto::record::MAX_BODY))).await;
    assert!(matches!(outcome, Outcome::Refused(Refusal::Fold(FoldError::TooLong(_)), _)), "{outcome:?}");
    applied(&bed.run(task(1), append(epoch, 1, vec![note(ado_proto::record::MAX_BODY - 8)])).await);
    assert_eq!(bed.log(task(1)).await.len(), 4);
}

pub(super) async fn a_write_that_does_not_continue_the_log_is_refused(bed: Bed) {
    bed.create(task(1)).await;
    let skipping: Decide = Box::new(|row, now| {
        let mut write = write(row, claim(worker(1)), now)?;
        write.records[0].offset = Offset(5);
        Ok(write)
    });
    let longer: Decide = Box::new(|row, now| {
        let mut write = write(row, claim(worker(1)), now)?;
        write.row.task.next_offset = Offset(9);
        Ok(write)
    });
    let changes = [skipping, longer].map(|decide| Change::Update { id: task(1), decide });
    for outcome in bed.commit(changes.into()).await {
        assert!(matches!(outcome, Outcome::Refused(Refusal::Fold(FoldError::Offset { .. }), _)), "{outcome:?}");
    }
    assert_eq!(bed.log(task(1)).await.len(), 1);
    assert_eq!(bed.row(task(1)).await.task.state_word(), "queued");
}

fn key(id: RequestId, body: u8) -> Key {
    Key { principal: "ado://default/user/ann".into(), kind: 20, id, body: [body; 32] }
}

/// A unit that happens once.
fn once(changes: Vec<Change>, id: RequestId, body: u8) -> Unit {
    let answer = |outcomes: &[Outcome]| {
        let words = outcomes.iter().map(|outcome| match outcome {
            Outcome::Applied(_) => "applied",
            Outcome::Refused(..) => "refused",
            _ => "missing",
        });
        Bytes::from(words.collect::<Vec<_>>().join(","))
    };
    let once = Once { key: key(id, body), answer: Box::new(answer) };
    Unit { changes, once: Some(once), audit: Some(audit("Submit")) }
}

pub(super) async fn a_repeated_request_has_one_effect_and_one_answer(bed: Bed) {
    let submit = |n| once(vec![create(task(n), new_task())], request(1), 7);
    let committed = bed.store.commit(vec![submit(1), submit(2)]).await.unwrap();
    assert!(matches!(&committed[0], Committed::Done(outcomes, Some(answer))
        if outcomes.len() == 1 && &answer[..] == b"applied"));
    assert_eq!(committed[1], Committed::Replayed("applied".into()), "in the same batch");
    let committed = bed.store.commit(vec![submit(3)]).await.unwrap();
    assert_eq!(committed, [Committed::Replayed("applied".into())], "in another batch");
    let committed = bed.store.commit(vec![once(vec![create(task(4), new_task())], request(1), 8)]).await.unwrap();
    assert_eq!(committed, [Committed::KeyConflict]);

    for (body, expected) in [(7, Committed::Replayed("applied".into())), (8, Committed::KeyConflict)] {
        assert_eq!(bed.store.answered(&key(request(1), body)).await.unwrap(), Some(expected), "without doing anything");
    }
    assert_eq!(bed.store.answered(&key(request(2), 7)).await.unwrap(), None);
    let others = Key { principal: "ado://default/user/bob".into(), ..key(request(1), 7) };
    assert_eq!(bed.store.answered(&others).await.unwrap(), None, "another's");

    let mut other_user = submit(5);
    other_user.once.as_mut().unwrap().key.principal = "ado://default/user/bob".into();
    let mut other_kind = submit(6);
    other_kind.once.as_mut().unwrap().key.kind = 23;
    for committed in bed.store.commit(vec![other_user, other_kind]).await.unwrap() {
        assert!(matches!(committed, Committed::Done(..)), "another key: {committed:?}");
    }
    let all = ListFilter {
        audience: Audience::Everywhere,
        states: Vec::new(),
        group: None,
        name: None,
        dead: false,
        before: None,
        limit: 10,
    };
    assert_eq!(ids(&bed.store.list(&all).await.unwrap()), [task(6), task(5), task(1)]);
    assert_eq!(bed.audit().await.len(), 3, "what did not happen is not audited");
}

pub(super) async fn a_key_remembers_refusals_too(bed: Bed) {
    bed.create(task(1)).await;
    let ask = || {
        let changes = vec![update(task(1), desire(Desired::Running)), update(task(2), desire(Desired::Paused))];
        once(changes, request(1), 1)
    };
    let committed = bed.store.commit(vec![ask()]).await.unwrap();
    assert!(matches!(&committed[0], Committed::Done(outcomes, Some(answer))
        if matches!(outcomes[0], Outcome::Refused(Refusal::Unchanged, _)) && &answer[..] == b"refused,missing"));
    // The same question later gets the same answer, though the task has changed since.
    applied(&bed.run(task(1), desire(Desired::Paused)).await);
    assert_eq!(bed.store.commit(vec![ask()]).await.unwrap(), [Committed::Replayed("refused,missing".into())]);
    assert_eq!(bed.row(task(1)).await.task.desired, Desired::Paused);
}

pub(super) async fn tasks_are_found_as_people_name_them(bed: Bed) {
    // Short ids are the last ten characters, five bits each.
    let at = |n: u64, tail: u64| TaskId(Uuid::from_u128((u128::from(n) << 80) | u128::from(tail)));
    let (a, b, c) = (at(1, 0x1f << 45), at(2, (0x1f << 45) | (1 << 40)), at(3, 0x1e << 45));
    for (id, name) in [(a, Some("nightly")), (b, None), (c, Some("nightly"))] {
        bed.create_as(id, Submitted { name: name.map(str::to_owned), ..new_task() }).await;
    }
    let find = async |what: Find| ids(&bed.store.find(&Audience::Everywhere, &what, 10).await.unwrap());
    assert_eq!(a.short(), "task-z000000000");
    assert_eq!(find(Find::Id(b)).await, [b]);
    assert_eq!(find(Find::Id(task(9))).await, []);
    assert_eq!(find(Find::Prefix("z0".into())).await, [a]);
    assert_eq!(find(Find::Prefix("z".into())).await, [b, a]);
    assert_eq!(find(Find::Prefix("y".into())).await, [c]);
    assert_eq!(find(Find::Prefix("x".into())).await, []);
    assert_eq!(find(Find::Prefix("%".into())).await, []);
    assert_eq!(find(Find::Prefix("z000000000".into())).await, [a]);
    assert_eq!(find(Find::Name("nightly".into())).await, [c, a]);
    assert_eq!(find(Find::Name("night".into())).await, []);
    let one = bed.store.find(&Audience::Everywhere, &Find::Prefix("z".into()), 1).await.unwrap();
    assert_eq!(ids(&one), [b]);
}

pub(super) async fn groups_are_found_in_order_of_index(bed: Bed) {
    for (id, group, index) in [(1, 100, 2), (2, 100, 0), (3, 200, 0), (4, 100, 1)] {
        bed.create_as(task(id), member(group, index)).await;
    }
    bed.create(task(5)).await;
    let find = async |what: Find| ids(&bed.store.find(&Audience::Everywhere, &what, 10).await.unwrap());
    let group = ado_proto::GroupId(uuid(100));
    assert_eq!(find(Find::Group(group)).await, [task(2), task(4), task(1)]);
    let short = group.short().strip_prefix("group-").unwrap().to_owned();
    assert_eq!(find(Find::GroupPrefix(short.clone())).await, [task(2), task(4), task(1)]);
    assert_eq!(find(Find::GroupPrefix(short[..6].into())).await, [task(2), task(4), task(1), task(3)]);
    assert_eq!(find(Find::GroupPrefix("zzzz".into())).await, []);
}

pub(super) async fn another_namespace_finds_nothing(bed: Bed) {
    let submitted = Submitted { namespace: namespace("red"), name: Some("n".into()), ..member(7, 0) };
    bed.create_as(task(1), submitted).await;
    let short = |text: String| text.rsplit_once('-').unwrap().1[..6].to_owned();
    let group = ado_proto::GroupId(uuid(7));
    for what in [
        Find::Id(task(1)),
        Find::Prefix(short(task(1).short())),
        Find::Group(group),
        Find::GroupPrefix(short(group.short())),
        Find::Name("n".into()),
    ] {
        let seen_by = async |audience| bed.store.find(&audience, &what, 10).await.unwrap().len();
        assert_eq!(seen_by(only("red")).await, 1, "{what:?}");
        assert_eq!(seen_by(only("blue")).await, 0, "{what:?}");
        assert_eq!(seen_by(Audience::Everywhere).await, 1, "{what:?}");
    }
}

pub(super) async fn lists_are_newest_first_and_paged(bed: Bed) {
    for n in [3, 1, 5, 2, 4] {
        bed.create(task(n)).await;
    }
    let mut filter = ListFilter {
        audience: Audience::Everywhere,
        states: Vec::new(),
        group: None,
        name: None,
        dead: false,
        before: None,
        limit: 2,
    };
    let mut pages = Vec::new();
    for states in [vec![], vec!["queued".to_owned(), "running".to_owned()]] {
        filter.states = states;
        filter.before = None;
        loop {
            let page = ids(&bed.store.list(&filter).await.unwrap());
            let Some(last) = page.last() else { break };
            filter.before = Some(*last);
            pages.push(page);
        }
    }
    let once = [vec![task(5), task(4)], vec![task(3), task(2)], vec![task(1)]];
    assert_eq!(pages, [&once[..], &once[..]].concat());
}

pub(super) async fn lists_are_of_states_and_namespaces(bed: Bed) {
    for n in 1..=4 {
        let name = if n % 2 == 0 { "even" } else { "odd" };
        bed.create_as(task(n), Submitted { namespace: namespace(name), ..new_task() }).await;
    }
    bed.start(task(1), worker(1)).await;
    applied(&bed.run(task(2), desire(Desired::Cancelled)).await);
    applied(&bed.run(task(3), desire(Desired::Paused)).await);
    let list = async |audience: Audience, states: &[&str]| {
        let states = states.iter().map(|state| (*state).to_owned()).collect();
        let filter = ListFilter { audience, states, group: None, name: None, dead: false, before: None, limit: 10 };
        ids(&bed.store.list(&filter).await.unwrap())
    };
    assert_eq!(list(Audience::Everywhere, &["running"]).await, [task(1)]);
    assert_eq!(list(Audience::Everywhere, &["cancelled", "queued", "queued"]).await, [task(4), task(2)]);
    assert_eq!(list(Audience::Everywhere, &["paused"]).await, [task(3)]);
    assert_eq!(list(Audience::Everywhere, &["no such"]).await, []);
    assert_eq!(list(only("even"), &[]).await, [task(4), task(2)]);
    assert_eq!(list(only("even"), &["running", "queued"]).await, [task(4)]);
    assert_eq!(list(only("none"), &[]).await, []);
}

pub(super) async fn lists_are_of_groups_and_names(bed: Bed) {
    let member = |n, index| Submitted { name: Some("nightly".into()), ..member(n, index) };
    for (n, submitted) in [(1, member(70, 0)), (2, member(80, 0)), (3, member(70, 1)), (4, new_task())] {
        bed.create_as(task(n), submitted).await;
    }
    bed.create_as(task(5), Submitted { name: Some("nightly".into()), namespace: namespace("red"), ..new_task() }).await;
    applied(&bed.run(task(2), desire(Desired::Cancelled)).await);
    let all = ListFilter {
        audience: Audience::Everywhere,
        states: Vec::new(),
        group: None,
        name: None,
        dead: false,
        before: None,
        limit: 10,
    };
    let list = async |filter: ListFilter| ids(&bed.store.list(&filter).await.unwrap());
    let group = |n| ListFilter { group: Some(GroupId(uuid(n))), ..all.clone() };
    let name = |name: &str| ListFilter { name: Some(name.into()), ..all.clone() };
    assert_eq!(list(group(70)).await, [task(3), task(1)]);
    assert_eq!(list(ListFilter { before: Some(task(3)), ..group(70) }).await, [task(1)]);
    assert_eq!(list(ListFilter { limit: 1, ..group(70) }).await, [task(3)]);
    assert_eq!(list(group(90)).await, []);
    assert_eq!(list(name("nightly")).await, [5, 3, 2, 1].map(task));
    assert_eq!(list(ListFilter { limit: 2, before: Some(task(5)), ..name("nightly") }).await, [3, 2].map(task));
    assert_eq!(list(name("night")).await, []);
    assert_eq!(list(ListFilter { audience: only("red"), ..name("nightly") }).await, [task(5)]);
    assert_eq!(list(ListFilter { audience: only("red"), ..group(70) }).await, []);
    let states = |states: &[&str]| states.iter().map(|state| (*state).to_owned()).collect();
    assert_eq!(list(ListFilter { states: states(&["queued"]), ..name("nightly") }).await, [5, 3, 1].map(task));
    assert_eq!(list(ListFilter { states: states(&["cancelled", "running"]), ..group(80) }).await, [task(2)]);
    assert_eq!(list(ListFilter { states: states(&["running"]), ..group(70) }).await, []);
    let both = |n| ListFilter { name: Some("nightly".into()), ..group(n) };
    assert_eq!(
        (list(both(80)).await, list(ListFilter { name: Some("x".into()), ..group(80) }).await),
        (vec![task(2)], vec![])
    );
}

pub(super) async fn claims_come_in_order_of_score(bed: Bed) {
    bed.create_as(task(1), with_priority(0)).await;
    bed.create_as(task(2), with_priority(-1)).await;
    bed.create_as(task(3), with_priority(0)).await;
    // A step of priority is worth a minute of waiting.
    bed.hand.advance(Duration::from_secs(59));
    bed.create_as(task(4), with_priority(1)).await;
    bed.hand.advance(Duration::from_secs(2));
    bed.create_as(task(5), with_priority(1)).await;
    bed.create_as(task(6), with_priority(0)).await;
    let order = [4, 1, 3, 5, 2, 6].map(task);
    let waiting = async |after, limit| bed.store.waiting(after, limit).await.unwrap();
    let ids = |waiting: &[Waiting]| waiting.iter().map(|waiting| waiting.id).collect::<Vec<_>>();
    let all = waiting(None, 10).await;
    assert_eq!(ids(&all), order);
    assert_eq!(
        (all[0].pool.as_str(), all[0].agent.as_str(), &all[0].namespace),
        ("default", "shell", &namespace("default"))
    );
    assert_eq!(waiting(None, 2).await, all[..2]);
    for (index, one) in all.iter().enumerate() {
        assert_eq!(
            waiting(Some((one.score, one.id)), 2).await,
            all[index + 1..].iter().take(2).cloned().collect::<Vec<_>>()
        );
    }
    bed.start(task(4), worker(1)).await;
    assert_eq!(waiting(None, 10).await, all[1..]);
}

pub(super) async fn what_shall_run_waits_whether_due_or_not(bed: Bed) {
    let waiting = async || {
        let waiting = bed.store.waiting(None, 10).await.unwrap();
        waiting.iter().map(|waiting| waiting.id).collect::<Vec<_>>()
    };
    for n in 1..=3 {
        bed.create(task(n)).await;
    }
    applied(&bed.run(task(1), desire(Desired::Paused)).await);
    for n in [2, 3] {
        let epoch = bed.start(task(n), worker(1)).await;
        applied(&bed.run(task(n), append(epoch, 1, vec![exited(3)])).await);
        bed.hand.advance(Duration::from_millis(100));
    }
    assert!(!is_claimable(&bed.row(task(2)).await.task, bed.hand.time()));
    assert_eq!(waiting().await, [task(2), task(3)]);
    applied(&bed.run(task(3), desire(Desired::Paused)).await);
    applied(&bed.run(task(1), desire(Desired::Running)).await);
    assert_eq!(waiting().await, [task(1), task(2)]);
}

pub(super) async fn what_waits_is_counted_by_kind(bed: Bed) {
    let backlog = async || {
        let of_each = |kind: Backlog| (kind.namespace.0, kind.pool, kind.agent, kind.tasks, kind.oldest);
        bed.store.backlog().await.unwrap().into_iter().map(of_each).collect::<Vec<_>>()
    };
    assert_eq!(backlog().await, []);
    let of = |pool: &str, agent: &str, priority| {
        let mut submitted = with_priority(priority);
        (submitted.spec.pool, submitted.spec.agent) = (pool.into(), agent.into());
        submitted
    };
    // What comes first in order is not what is oldest.
    for (n, submitted) in [(1, of("b", "shell", 0)), (2, of("b", "shell", 9)), (3, of("a", "noop", 0))] {
        bed.create_as(task(n), submitted).await;
    }
    bed.create_as(task(4), Submitted { namespace: namespace("alpha"), ..of("b", "shell", 0) }).await;
    let kind = |namespace: &str, pool: &str, agent: &str, tasks, n| {
        (namespace.to_owned(), pool.to_owned(), agent.to_owned(), tasks, task(n))
    };
    let others = [kind("alpha", "b", "shell", 1, 4), kind("default", "a", "noop", 1, 3)];
    assert_eq!(backlog().await, [&others[..], &[kind("default", "b", "shell", 2, 1)]].concat());
    applied(&bed.run(task(1), desire(Desired::Paused)).await);
    assert_eq!(backlog().await, [&others[..], &[kind("default", "b", "shell", 1, 2)]].concat());
    bed.start(task(2), worker(1)).await;
    assert_eq!(backlog().await, others);
}

pub(super) async fn rows_come_back_whole(bed: Bed) {
    let mut submitted = Submitted { name: Some("n".into()), ..member(8, 1) };
    submitted.spec.env.insert("KEY".into(), "ü\0x".into());
    submitted.spec.labels.insert("gpu".into(), "yes".into());
    submitted.spec.input = Input::Text("p".repeat(100_000));
    bed.create_as(task(1), submitted.clone()).await;
    bed.start(task(1), worker(1)).await;
    let row = bed.row(task(1)).await;
    assert_eq!((&row.task.spec, &row.task.name, row.task.group), (&submitted.spec, &submitted.name, submitted.group));
    assert_eq!(row.task, Task::replay(task(1), &bed.log(task(1)).await));
    assert_eq!(row.task.worker.as_ref().map(|holder| holder.id), Some(worker(1)));
}

impl Task {
    /// The fold of a whole log.
    pub(super) fn replay(id: TaskId, log: &[Record]) -> Self {
        let mut task = Self::begin(id, &log[0]).unwrap();
        log[1..].iter().for_each(|record| task.apply(record).unwrap());
        task
    }
}

/// Runs a task of three attempts to its failure.
async fn fail(bed: &Bed, id: TaskId) {
    for _ in 0..3 {
        bed.hand.advance(Duration::from_secs(300));
        let epoch = bed.start(id, worker(1)).await;
        applied(&bed.run(id, append(epoch, 1, vec![exited(3)])).await);
    }
    assert_eq!(bed.row(id).await.task.state_word(), "failed");
}

pub(super) async fn the_dead_letter_holds_what_failed_until_it_is_settled(bed: Bed) {
    bed.create(task(1)).await;
    for (n, space) in [(2, "red"), (3, "red"), (4, "red"), (5, "blue")] {
        let submitted = Submitted { namespace: namespace(space), name: Some("n".into()), ..member(70, 0) };
        bed.create_as(task(n), submitted).await;
        fail(&bed, task(n)).await;
    }
    let dead = async |filter: ListFilter| ids(&bed.store.list(&ListFilter { dead: true, ..filter }).await.unwrap());
    let all = || ListFilter {
        audience: Audience::Everywhere,
        states: Vec::new(),
        group: None,
        name: None,
        dead: true,
        before: None,
        limit: 10,
    };
    let group = || ListFilter { group: Some(GroupId(uuid(70))), ..all() };
    let name = || ListFilter { name: Some("n".into()), ..all() };
    assert_eq!(dead(all()).await, [5, 4, 3, 2].map(task));
    let settled = bed.commit(vec![
        settle(task(3), Settled::Retried(task(9))),
        settle(task(3), Settled::Purged),
        settle(task(4), Settled::Purged),
        settle(task(1), Settled::Purged),
    ]);
    let settled = settled.await;
    assert_eq!(applied(&settled[0]).row.settled, Some(Settled::Retried(task(9))));
    let refused = |outcome: &Outcome| match outcome {
        Outcome::Refused(refusal, _) => refusal.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&settled[1]), Refusal::Settled(Settled::Retried(task(9))), "once");
    assert_eq!(refused(&settled[3]), Refusal::NotOver);
    for (filter, what) in [(all(), "all"), (group(), "a group"), (name(), "a name")] {
        assert_eq!(dead(filter.clone()).await, [5, 2].map(task), "{what}");
        assert_eq!(dead(ListFilter { limit: 1, ..filter.clone() }).await, [task(5)], "{what}");
        assert_eq!(dead(ListFilter { before: Some(task(5)), ..filter.clone() }).await, [task(2)], "{what}");
        assert_eq!(dead(ListFilter { audience: only("red"), ..filter }).await, [task(2)], "{what}");
    }
    assert_eq!(bed.row(task(3)).await.settled, Some(Settled::Retried(task(9))), "read again");
    assert_eq!(bed.row(task(4)).await.settled, Some(Settled::Purged));
    assert_eq!(bed.row(task(2)).await.settled, None);
    let failed = ListFilter { states: vec!["failed".into()], dead: false, ..all() };
    assert_eq!(ids(&bed.store.list(&failed).await.unwrap()), [5, 4, 3, 2].map(task), "they have failed all the same");
}

pub(super) async fn a_task_is_not_made_when_an_earlier_change_says_so(bed: Bed) {
    let not = Change::Create { id: task(1), make: Box::new(|_| None) };
    assert_eq!(bed.commit(vec![not, create(task(2), new_task())]).await[0], Outcome::Missing);
    assert!(bed.store.row(task(1)).await.unwrap().is_none());
    assert!(bed.store.row(task(2)).await.unwrap().is_some());
}

pub(super) async fn what_is_overdue_comes_in_order(bed: Bed) {
    let began = bed.store.now().await.unwrap();
    let at = |seconds| began.after(Duration::from_secs(seconds));
    for n in 1..6 {
        bed.create(task(n)).await;
    }
    applied(&bed.run(task(2), claim(worker(1))).await);
    bed.start(task(3), worker(1)).await;
    applied(&bed.run(task(4), desire(Desired::Paused)).await);
    applied(&bed.run(task(5), desire(Desired::Cancelled)).await);
    let overdue = async |seconds, limit| ids(&bed.store.overdue(at(seconds), limit).await.unwrap());
    assert_eq!(overdue(1, 10).await, []);
    assert_eq!(overdue(3, 10).await, [task(2)], "its agent does not run yet");
    assert_eq!(overdue(30, 10).await, [task(2), task(1)], "running, paused and over: none of these");
    assert_eq!(overdue(30, 1).await, [task(2)]);
    bed.hand.advance(Duration::from_secs(3));
    let expired = bed.run(task(2), Command::Expire).await;
    assert_eq!(applied(&expired).row.lease, None);
    assert_eq!(overdue(30, 10).await, [task(1), task(2)], "it has the time for the whole still");
}
