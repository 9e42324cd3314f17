//! Tokens, certificates, events, audit, sweeping.

use ado_proto::Role;
use ado_proto::request::SystemEvent;

use super::*;

fn token(n: u8, at: Timestamp) -> Token {
    Token {
        id: format!("t{n}"),
        hash: [n; 32],
        role: Role::Worker,
        namespace: Namespace::default(),
        name: n.is_multiple_of(2).then(|| "fixed".into()),
        uses_left: Some(2),
        created_at: at,
        expires_at: at.after(Duration::from_secs(60)),
        created_by: "ado://default/admin/ann".into(),
        bounds: if n.is_multiple_of(2) { bounds() } else { WorkerBounds::default() },
    }
}

fn bounds() -> WorkerBounds {
    WorkerBounds {
        pools: vec!["gpu".into()],
        agents: vec!["shell".into(), "noop".into()],
        labels: [("zone".into(), "a".into())].into(),
        max_slots: Some(8),
    }
}

fn event(audience: Audience, text: &str) -> NewEvent {
    NewEvent { audience, kind: "worker.lost", task: None, worker: Some(worker(1)), text: text.into() }
}

pub(super) async fn tokens_are_used_up(bed: Bed) {
    let now = bed.hand.time();
    let (twice, always) = (token(1, now), Token { uses_left: None, ..token(2, now) });
    bed.store.put_token(twice.clone(), audit("CreateToken")).await.unwrap();
    bed.store.put_token(always.clone(), audit("CreateToken")).await.unwrap();
    let take = async |n| bed.store.take_token(&[n; 32]).await.unwrap();
    assert_eq!(take(1).await, Ok(Token { uses_left: Some(1), ..twice.clone() }));
    assert_eq!(take(1).await, Ok(Token { uses_left: Some(0), ..twice }));
    assert_eq!(take(1).await, Err(TokenRefusal::UsedUp));
    for _ in 0..4 {
        assert_eq!(take(2).await, Ok(always.clone()));
    }
    assert_eq!(take(3).await, Err(TokenRefusal::Unknown));
    assert!(bed.store.revoke_token(&Audience::Everywhere, "t2", None, audit("RevokeToken")).await.unwrap());
    assert_eq!(take(2).await, Err(TokenRefusal::Unknown));
    assert_eq!(bed.audit().await.len(), 3);
}

pub(super) async fn tokens_expire(bed: Bed) {
    let token = token(1, bed.hand.time());
    bed.store.put_token(token.clone(), audit("CreateToken")).await.unwrap();
    bed.hand.set(Timestamp(token.expires_at.0 - 1));
    assert!(bed.store.take_token(&token.hash).await.unwrap().is_ok());
    bed.hand.set(token.expires_at);
    assert_eq!(bed.store.take_token(&token.hash).await.unwrap(), Err(TokenRefusal::Expired));
}

pub(super) async fn tokens_belong_to_a_namespace(bed: Bed) {
    let now = bed.hand.time();
    let red = Token { namespace: namespace("red"), ..token(1, now) };
    let blue = Token { namespace: namespace("blue"), created_at: Timestamp(now.0 + 1), ..token(2, now) };
    for token in [&red, &blue] {
        bed.store.put_token(token.clone(), audit("CreateToken")).await.unwrap();
    }
    assert_eq!(bed.store.tokens(&Audience::Everywhere).await.unwrap(), [blue, red.clone()], "newest first");
    assert_eq!(bed.store.tokens(&only("red")).await.unwrap(), [red]);
    assert!(!bed.store.revoke_token(&only("blue"), "t1", None, audit("RevokeToken")).await.unwrap());
    assert!(!bed.store.revoke_token(&only("blue"), "none", None, audit("RevokeToken")).await.unwrap());
    assert_eq!(bed.audit().await.len(), 2, "nothing happened");
    assert!(bed.store.revoke_token(&only("red"), "t1", None, audit("RevokeToken")).await.unwrap());
    assert_eq!(bed.store.tokens(&only("red")).await.unwrap(), []);
}

pub(super) async fn revoked_identities_are_denied_for_ever(bed: Bed) {
    let (ann, bob) = ("ado://default/user/ann", "ado://default/user/bob");
    let put = async |serial: &str, identity: &str, seconds| {
        let not_after = bed.hand.time().after(Duration::from_secs(seconds));
        let certificate = Certificate { serial: serial.into(), identity: identity.into(), not_after };
        bed.store.put_certificate(certificate).await.unwrap();
    };
    put("a1", ann, 10).await;
    put("a2", ann, 100).await;
    put("b1", bob, 100).await;
    assert!(bed.store.denied().await.unwrap().is_empty());
    bed.hand.advance(Duration::from_secs(10));
    assert_eq!(bed.store.revoke_identity(ann, audit("RevokeIdentity")).await.unwrap(), ["a2"], "a1 has expired");
    assert_eq!(bed.store.revoke_identity(ann, audit("RevokeIdentity")).await.unwrap(), ["a2"], "as often as one likes");
    assert_eq!(bed.store.denied().await.unwrap(), ["a2"]);
    put("a3", ann, 500).await;
    assert_eq!(bed.store.denied().await.unwrap(), ["a2", "a3"], "one that was being issued meanwhile");
    bed.hand.advance(Duration::from_secs(90));
    assert_eq!(bed.store.denied().await.unwrap(), ["a3"], "expired ones need no denying");
    bed.store.sweep().await.unwrap();
    assert_eq!(bed.store.denied().await.unwrap(), ["a3"]);
    let eve = "ado://default/user/eve";
    let lines = bed.audit().await.len();
    assert_eq!(bed.store.revoke_identity(eve, audit("x")).await.unwrap(), Vec::<String>::new());
    assert_eq!(bed.audit().await.len(), lines, "nothing happened");
    put("e1", eve, 100).await;
    assert_eq!(bed.store.denied().await.unwrap(), ["a3"], "who had nothing to lose may come later");
}

pub(super) async fn events_are_seen_by_their_audience_in_order(bed: Bed) {
    bed.create_as(task(1), Submitted { namespace: namespace("red"), ..new_task() }).await;
    bed.hand.advance(Duration::from_secs(1));
    bed.store.add_events(vec![event(only("blue"), "b"), event(Audience::Everywhere, "all")]).await.unwrap();
    bed.create_as(task(2), Submitted { namespace: namespace("red"), ..new_task() }).await;
    bed.events(4).await;
    let events = async |audience: Audience, after, limit| {
        bed.store.events(&audience, EventsFrom::After(after), limit).await.unwrap().events
    };
    let all = events(Audience::Everywhere, 0, 10).await;
    assert_eq!(all.iter().map(|event| event.text.as_str()).collect::<Vec<_>>(), ["submitted", "b", "all", "submitted"]);
    assert!(all.is_sorted_by(|a, b| a.cursor < b.cursor && a.time <= b.time));
    let first = SystemEvent {
        cursor: all[0].cursor,
        time: Timestamp(bed.hand.time().0 - 1_000_000),
        kind: "task.submitted".into(),
        task: Some(task(1)),
        worker: None,
        text: "submitted".into(),
    };
    assert_eq!(all[0], first);
    assert_eq!((all[1].task, all[1].worker), (None, Some(worker(1))));
    assert_eq!(events(only("red"), 0, 10).await, [all[0].clone(), all[3].clone()]);
    assert_eq!(events(only("blue"), 0, 10).await, all[1..2]);
    assert_eq!(events(Audience::Everywhere, all[0].cursor, 2).await, all[1..3]);
    assert_eq!(events(Audience::Everywhere, u64::MAX, 2).await, []);
}

pub(super) async fn events_are_read_from_anywhere(bed: Bed) {
    let page = async |audience: Audience, from, limit| {
        let page = bed.store.events(&audience, from, limit).await.unwrap();
        let texts: Vec<_> = page.events.into_iter().map(|event| event.text).collect();
        (texts.concat(), page.next)
    };
    let red = || only("red");
    assert_eq!(page(red(), EventsFrom::Tail(5), 10).await, (String::new(), 0), "there is nothing yet");
    for (text, audience) in [("a", red()), ("b", only("blue")), ("c", red()), ("d", red()), ("e", only("blue"))] {
        bed.hand.advance(Duration::from_secs(1));
        bed.store.add_events(vec![event(audience, text)]).await.unwrap();
    }
    let cursors: Vec<_> = bed.events(5).await.iter().map(|event| event.cursor).collect();
    let last = bed.store.events(&Audience::Everywhere, EventsFrom::Tail(1), 10).await.unwrap();
    let end = last.next;
    assert_eq!((last.events[0].text.as_str(), last.events[0].cursor), ("e", end));
    let seconds_ago = |seconds: i64| EventsFrom::Since(Timestamp(bed.hand.time().0 - seconds * 1_000_000));
    let text = |text: &str, next| (text.to_owned(), next);

    assert_eq!(page(red(), EventsFrom::Tail(2), 10).await, text("cd", end), "past what it may not see");
    assert_eq!(page(red(), EventsFrom::Tail(9), 10).await, text("acd", end));
    assert_eq!(page(red(), EventsFrom::Tail(9), 2).await, text("cd", end), "the newest of a tail that is too long");
    assert_eq!(page(red(), EventsFrom::Tail(0), 10).await, text("", end));
    assert_eq!(page(red(), seconds_ago(2), 10).await, text("cd", end));
    assert_eq!(page(Audience::Everywhere, seconds_ago(2), 1).await, text("c", cursors[2]), "a page that was cut");
    assert_eq!(page(red(), seconds_ago(99), 10).await, text("acd", end));
    assert_eq!(page(red(), seconds_ago(-1), 10).await, text("", end));
    assert_eq!(page(red(), EventsFrom::After(cursors[2]), 10).await, text("d", end));
    assert_eq!(page(red(), EventsFrom::After(end), 10).await, text("", end));
    assert_eq!(page(red(), EventsFrom::After(end + 7), 10).await, text("", end + 7), "a cursor never goes back");

    bed.hand.advance(EVENT_RETENTION * 2);
    bed.store.sweep().await.unwrap();
    assert_eq!(page(red(), EventsFrom::Tail(9), 10).await, text("", end), "all were deleted");
    bed.store.add_events(vec![event(red(), "f")]).await.unwrap();
    let end_now = bed.events(1).await[0].cursor;
    assert!(end_now > end);
    assert_eq!(page(red(), EventsFrom::After(end), 10).await, text("f", end_now));
}

pub(super) async fn a_revoked_token_is_remembered_with_its_request(bed: Bed) {
    let key = |n| Key { principal: "p".into(), kind: 12, id: request(n), body: [1; 32] };
    bed.store.put_token(token(1, bed.hand.time()), audit("CreateToken")).await.unwrap();
    let revoke = async |id: &str, n| {
        let kept = Some((key(n), Bytes::from_static(b"done")));
        bed.store.revoke_token(&Audience::Everywhere, id, kept, audit("RevokeToken")).await.unwrap()
    };
    assert!(!revoke("none", 1).await);
    assert_eq!(bed.store.answered(&key(1)).await.unwrap(), None);
    assert!(revoke("t1", 2).await);
    assert_eq!(bed.store.answered(&key(2)).await.unwrap(), Some(Committed::Replayed("done".into())));
    assert!(!revoke("t1", 3).await);
    assert_eq!(bed.store.answered(&key(3)).await.unwrap(), None);
}

pub(super) async fn the_audit_log_is_newest_first(bed: Bed) {
    for n in 0..3 {
        let unit = Unit { changes: Vec::new(), once: None, audit: Some(audit(["a", "b", "c"][n])) };
        assert_eq!(bed.store.commit(vec![unit]).await.unwrap(), [Committed::Done(Vec::new(), None)]);
        bed.hand.advance(Duration::from_secs(1));
    }
    let lines = bed.audit().await;
    let (start, actions): (_, Vec<_>) =
        (bed.hand.time().0 - 3_000_000, lines.iter().map(|line| &*line.action).collect());
    assert_eq!(actions, ["c", "b", "a"]);
    let expected = AuditLine {
        no: lines[1].no,
        time: Timestamp(start + 1_000_000),
        namespace: Namespace::default(),
        principal: "ado://default/user/ann".into(),
        action: "b".into(),
        target: "it".into(),
        result: "ok".into(),
        count: 1,
    };
    assert_eq!(lines[1], expected);
}

pub(super) async fn the_audit_log_is_searched(bed: Bed) {
    let lines = [
        ("red", "ado://red/user/ann", "Submit", "task-1", "ok"),
        ("red", "ado://red/user/bob", "SetDesired", "task-1", "that is ann's, 100%"),
        ("blue", "ado://blue/user/ann", "SetDesired", "task-2", "ok"),
    ];
    for (at, principal, action, target, result) in lines {
        let line =
            Audit { result: result.into(), count: 7, ..Audit::done(namespace(at), principal.into(), action, target) };
        bed.store.commit(vec![Unit { changes: Vec::new(), once: None, audit: Some(line) }]).await.unwrap();
        bed.hand.advance(Duration::from_secs(1));
    }
    let all = bed.audit().await;
    assert!(all.is_sorted_by(|a, b| a.no > b.no) && all.iter().all(|line| line.count == 7));
    let found = async |audience: Audience, wanted: ListAudit| {
        let lines = bed.store.audit(&audience, &wanted).await.unwrap();
        lines.iter().map(|line| all.iter().position(|other| other == line).unwrap()).collect::<Vec<_>>()
    };
    let wanted = || ListAudit { limit: 10, ..ListAudit::default() };
    let everywhere = || Audience::Everywhere;
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(found(everywhere(), wanted()).await, [0, 1, 2]);
    assert_eq!(found(only("red"), wanted()).await, [1, 2]);
    assert_eq!(found(everywhere(), ListAudit { principal: some("/ann"), ..wanted() }).await, [0, 2]);
    assert_eq!(found(everywhere(), ListAudit { action: some("SetDesired"), ..wanted() }).await, [0, 1]);
    assert_eq!(found(everywhere(), ListAudit { action: some("Set"), ..wanted() }).await, Vec::<usize>::new());
    assert_eq!(found(everywhere(), ListAudit { about: some("sk-1"), ..wanted() }).await, [1, 2]);
    assert_eq!(found(everywhere(), ListAudit { about: some("100%"), ..wanted() }).await, [1], "no pattern");
    assert_eq!(found(everywhere(), ListAudit { refused: true, ..wanted() }).await, [1]);
    assert_eq!(found(everywhere(), ListAudit { since: Some(all[1].time), ..wanted() }).await, [0, 1]);
    assert_eq!(found(everywhere(), ListAudit { before: Some(all[0].no), limit: 1, ..wanted() }).await, [1]);
}

pub(super) async fn workers_are_bound(bed: Bed) {
    let who = "ado://default/worker/w";
    let bound = async || bed.store.bounds(who).await.unwrap();
    assert_eq!(bound().await, WorkerBounds::default());
    bed.store.bind(who, &bounds()).await.unwrap();
    assert_eq!(bound().await, bounds());
    let fewer = WorkerBounds { max_slots: Some(1), ..WorkerBounds::default() };
    bed.store.bind(who, &fewer).await.unwrap();
    assert_eq!(bound().await, fewer, "by a newer token");
    let not_after = bed.hand.time().after(Duration::from_secs(10));
    let certificate = Certificate { serial: "w1".into(), identity: who.into(), not_after };
    bed.store.put_certificate(certificate).await.unwrap();
    bed.store.sweep().await.unwrap();
    assert_eq!(bound().await, fewer);
    bed.hand.advance(Duration::from_secs(10));
    bed.store.sweep().await.unwrap();
    assert_eq!(bound().await, WorkerBounds::default(), "it has to join anew");
    bed.store.bind(who, &bounds()).await.unwrap();
    bed.store.bind(who, &WorkerBounds::default()).await.unwrap();
    assert_eq!(bound().await, WorkerBounds::default());
}

pub(super) async fn secrets_have_versions_and_owners(bed: Bed) {
    let secret = |at: &str, name: &str, owner: &str, closed: &[u8]| ClosedSecret {
        name: name.into(),
        namespace: namespace(at),
        owner: owner.into(),
        closed: closed.into(),
    };
    let put = async |secret, only| bed.store.put_secret(secret, only, audit("SetSecret")).await.unwrap();
    let start = bed.hand.time();
    let first = put(secret("red", "token", "user/ann", b"1"), Some("user/ann")).await.unwrap();
    let expected = SecretInfo {
        name: "token".into(),
        namespace: namespace("red"),
        version: 1,
        owner: "user/ann".into(),
        created_at: start,
        updated_at: start,
    };
    assert_eq!(first, expected);
    bed.hand.advance(Duration::from_secs(1));
    assert_eq!(put(secret("red", "token", "user/bob", b"b"), Some("user/bob")).await, Err(expected.clone()));
    let read = async |at: &str, name: &str| bed.store.secret(&namespace(at), name).await.unwrap();
    assert_eq!(read("red", "token").await, Some((expected.clone(), b"1".to_vec())), "nothing happened");
    let second = SecretInfo { version: 2, updated_at: bed.hand.time(), ..expected };
    assert_eq!(put(secret("red", "token", "user/ann", b"2\0"), Some("user/ann")).await, Ok(second.clone()));
    let third = SecretInfo { version: 3, owner: "admin/eve".into(), ..second };
    assert_eq!(put(secret("red", "token", "admin/eve", b"3\0"), None).await, Ok(third.clone()));
    let blue = put(secret("blue", "token", "user/cy", b"blue"), Some("user/cy")).await.unwrap();
    let key = put(secret("red", "key", "user/ann", b""), None).await.unwrap();
    assert_eq!(read("red", "token").await, Some((third.clone(), b"3\0".to_vec())));
    assert_eq!((read("red", "none").await, read("green", "token").await), (None, None));
    assert_eq!(bed.store.secrets(&Audience::Everywhere).await.unwrap(), [blue.clone(), key.clone(), third.clone()]);
    assert_eq!(bed.store.secrets(&only("red")).await.unwrap(), [key, third]);
    let remove =
        async |at: &str, name| bed.store.remove_secret(&namespace(at), name, audit("RemoveSecret")).await.unwrap();
    let lines = bed.audit().await.len();
    assert_eq!(lines, 5, "and the one that did not happen is not there");
    assert!(!remove("green", "token").await && !remove("red", "none").await);
    assert_eq!(bed.audit().await.len(), lines);
    assert!(remove("red", "token").await && !remove("red", "token").await);
    assert_eq!(bed.audit().await.len(), lines + 1);
    assert_eq!(read("red", "token").await, None);
    assert_eq!(read("blue", "token").await, Some((blue, b"blue".to_vec())));
    assert_eq!(put(secret("red", "token", "user/bob", b"n"), Some("user/bob")).await.unwrap().version, 1);
}

pub(super) async fn the_audit_log_says_why_nothing_was_done(bed: Bed) {
    bed.create(task(1)).await;
    let cancel = |n| update(task(n), desire(Desired::Cancelled));
    for changes in [vec![cancel(1)], vec![cancel(1)], vec![cancel(2)], vec![cancel(1), create(task(3), new_task())]] {
        bed.store.commit(vec![Unit { changes, once: None, audit: Some(audit("SetDesired")) }]).await.unwrap();
    }
    let results: Vec<_> = bed.audit().await.into_iter().map(|line| line.result).collect();
    assert_eq!(results, ["ok", "no such task", "already cancelled", "ok"]);
}

pub(super) async fn sweeping_deletes_what_has_outlived_its_retention(bed: Bed) {
    let keyed = || {
        let answer = Box::new(|_: &[Outcome]| Bytes::from_static(b"done"));
        let key = Key { principal: "p".into(), kind: 1, id: request(1), body: [1; 32] };
        let once = Once { key, answer };
        Unit { changes: Vec::new(), once: Some(once), audit: None }
    };
    bed.store.commit(vec![keyed()]).await.unwrap();
    bed.store.add_events(vec![event(Audience::Everywhere, "old")]).await.unwrap();
    bed.store.put_token(token(1, bed.hand.time()), audit("CreateToken")).await.unwrap();

    bed.hand.advance(KEY_RETENTION);
    bed.store.sweep().await.unwrap();
    assert!(matches!(bed.store.commit(vec![keyed()]).await.unwrap()[0], Committed::Replayed(_)), "kept so long");
    assert_eq!(bed.store.tokens(&Audience::Everywhere).await.unwrap(), []);
    bed.hand.advance(Duration::from_micros(1));
    bed.store.sweep().await.unwrap();
    assert!(matches!(bed.store.commit(vec![keyed()]).await.unwrap()[0], Committed::Done(..)));

    bed.hand.advance(EVENT_RETENTION - KEY_RETENTION);
    bed.store.add_events(vec![event(Audience::Everywhere, "new")]).await.unwrap();
    bed.events(2).await;
    let events =
        async |after| bed.store.events(&Audience::Everywhere, EventsFrom::After(after), 10).await.unwrap().events;
    let before = events(0).await;
    bed.store.sweep().await.unwrap();
    assert_eq!(events(0).await, before[1..]);
    bed.hand.advance(EVENT_RETENTION * 2);
    bed.store.sweep().await.unwrap();
    bed.store.add_events(vec![event(Audience::Everywhere, "last")]).await.unwrap();
    bed.events(1).await;
    let last = events(before[1].cursor).await;
    assert_eq!(last.len(), 1, "a cursor is not given twice");
}

pub(super) async fn the_store_answers(bed: Bed) {
    bed.store.ping().await.unwrap();
    assert_ne!(bed.store.generation(), 0);
    assert_eq!(bed.store.now().await.unwrap(), bed.hand.time());
    bed.store.close().await;
}
