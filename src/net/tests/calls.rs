//! Calls, streams, and how they end.

use super::*;

#[tokio::test]
async fn a_call_is_answered_or_refused() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), no_tokens);
    let link = mesh.link(&server.addresses(), mesh.client());
    assert!(soon(link.call(&ListTokens, Call::default())).await.unwrap().is_empty());
    let refused = soon(link.call(&revoke(), Call::default())).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused(reply) if reply.is(ErrorCode::NotFound)), "{refused:?}");
    assert_eq!(refused.to_string(), "no such thing");
    assert!(!refused.is_transient());
    assert!(matches!(*link.state().borrow(), LinkState::Connected { number: 1, .. }));
}

#[tokio::test]
async fn a_header_arrives_as_it_was_meant() {
    let mesh = Mesh::new();
    let (tx, mut seen) = mpsc::channel(1);
    let server = mesh.serve(mesh.config(0), move |connection, incoming| {
        let tx = tx.clone();
        async move {
            tx.send((connection.peer(), incoming.header, incoming.body)).await.unwrap();
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let id = RequestId(mesh.env().uuid());
    let call = Call { id: Some(id), timeout: Some(PATIENCE), ..Call::default() };
    let request = revoke();
    let asked = link.call(&request, call);
    let (_, seen) = soon(async { tokio::join!(asked, seen.recv()) }).await;
    let (peer, header, body) = seen.unwrap();
    let Peer::Verified(peer) = peer else { panic!("{peer:?}") };
    assert_eq!(peer.principal().to_string(), "ado://default/user/ann");
    assert_eq!((header.kind, header.id, header.minor), (RevokeIdentity::KIND, Some(id), MINOR));
    assert_eq!(decode_body::<RevokeIdentity>(&body).unwrap(), request);
}

#[tokio::test]
async fn frames_go_both_ways_and_end() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), |_, incoming| async move {
        let mut channel = accepted(incoming).await;
        while let Some(frame) = channel.rx.next().await.unwrap() {
            channel.tx.send(&frame).await.unwrap();
        }
        channel.tx.finish();
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (following, Channel { mut tx, mut rx }) = soon(link.open(&follow(), Call::default())).await.unwrap();
    assert_eq!(following.generation, 1);
    // Also empty, compressible and as large as may be.
    for frame in [&b""[..], &b"one"[..], &[7; 100_000], &numbered(1, Limits::MESH.body - 1)] {
        soon(tx.send(frame)).await.unwrap();
        assert_eq!(soon(rx.next()).await.unwrap().unwrap(), frame);
    }
    let too_large = soon(tx.send(&[0; 2 * 1024 * 1024])).await;
    assert!(matches!(too_large, Err(Error::Protocol(_))), "{too_large:?}");
    tx.finish();
    assert!(soon(rx.next()).await.unwrap().is_none());
    assert!(matches!(tx.send(b"late").await, Err(Error::Closed)));
}

#[tokio::test]
async fn a_stopped_reader_holds_its_stream_only() {
    let mesh = Mesh::new();
    const FRAMES: u32 = 10_000;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let server = mesh.serve(mesh.config(0), move |_, incoming| {
        let sent = counted.clone();
        async move {
            let mut channel = accepted(incoming).await;
            for number in 0..FRAMES {
                channel.tx.send(&numbered(number, 1000)).await.unwrap();
                sent.fetch_add(1, Ordering::Relaxed);
            }
            channel.tx.finish();
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    // Nobody reads the first one: its sender stops somewhere below 10 MB.
    let (_, mut stopped) = soon(link.open(&follow(), Call::default())).await.unwrap();
    let (_, mut running) = soon(link.open(&follow(), Call::default())).await.unwrap();
    expect_numbers(&mut running.rx, 0..FRAMES, 1000).await;
    let in_all = sent.load(Ordering::Relaxed);
    assert!(in_all < 2 * FRAMES as usize - 5000, "{in_all} frames were sent into a stream nobody reads");
    expect_numbers(&mut stopped.rx, 0..FRAMES, 1000).await;
}

#[tokio::test]
async fn a_cancelled_next_loses_nothing() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), |_, incoming| async move {
        let mut channel = accepted(incoming).await;
        for number in 0..300 {
            channel.tx.send(&numbered(number, 5000)).await.unwrap();
            tokio::task::yield_now().await;
        }
        channel.tx.finish();
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (_, mut channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    let (mut number, mut cancelled) = (0, 0);
    soon(async {
        while number < 300 {
            tokio::select! {
                biased;
                frame = channel.rx.next() => {
                    assert_eq!(frame.unwrap().unwrap(), numbered(number, 5000));
                    number += 1;
                }
                () = tokio::task::yield_now() => cancelled += 1,
            }
        }
    })
    .await;
    assert!(cancelled > 0, "nothing was cancelled");
}

#[tokio::test]
async fn a_cancelled_send_breaks_its_stream() {
    let mesh = Mesh::new();
    let (tx, mut ended) = mpsc::channel(1);
    let server = mesh.serve(mesh.config(0), move |_, incoming| {
        let tx = tx.clone();
        async move {
            let mut channel = accepted(incoming).await;
            // Nothing is read until the sender has given up.
            channel.tx.closed().await;
            let end = loop {
                match channel.rx.next().await {
                    Ok(Some(_)) => {}
                    end => break end,
                }
            };
            tx.send(end).await.unwrap();
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (_, Channel { mut tx, rx }) = soon(link.open(&follow(), Call::default())).await.unwrap();
    let big = numbered(1, 900_000);
    while timeout(Duration::from_millis(100), tx.send(&big)).await.is_ok() {}
    assert!(matches!(tx.send(b"more").await, Err(Error::Closed)));
    drop((tx, rx));
    let end = soon(ended.recv()).await.unwrap();
    assert!(matches!(end, Err(Error::Lost(_))), "{end:?}");
}

#[tokio::test]
async fn a_sender_notices_that_nobody_reads() {
    let mesh = Mesh::new();
    let (tx, mut noticed) = mpsc::channel(1);
    let server = mesh.serve(mesh.config(0), move |_, incoming| {
        let tx = tx.clone();
        async move {
            let channel = accepted(incoming).await;
            channel.tx.closed().await;
            tx.send(()).await.unwrap();
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (_, channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    assert!(noticed.try_recv().is_err());
    drop(channel);
    soon(noticed.recv()).await.unwrap();
}

#[tokio::test]
async fn a_dropped_answer_is_no_answer() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), |_, _| async {});
    let link = mesh.link(&server.addresses(), mesh.client());
    // The connection lives, so a read is not sent again and again.
    assert!(matches!(ask(&link).await, Err(Error::Lost(_))));
    assert!(matches!(*link.state().borrow(), LinkState::Connected { number: 1, .. }));
}

#[tokio::test]
async fn a_server_that_closes_delivers_what_it_sent() {
    let mesh = Mesh::new();
    let (tx, mut sent) = mpsc::channel(1);
    let server = mesh.serve(mesh.config(0), move |_, incoming| {
        let tx = tx.clone();
        async move {
            let mut channel = accepted(incoming).await;
            send_numbers(&mut channel, 0..100, 8000).await.unwrap();
            tx.send(()).await.unwrap();
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (_, mut channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    soon(sent.recv()).await.unwrap();
    let (_, ()) = soon(async {
        tokio::join!(server.close(Duration::from_secs(10)), expect_numbers(&mut channel.rx, 0..100, 8000))
    })
    .await;
    assert!(soon(server.accept()).await.is_none());
}

#[tokio::test]
async fn a_link_that_closes_delivers_what_it_sent() {
    let mesh = Mesh::new();
    let (tx, mut done) = mpsc::channel(1);
    let server = mesh.serve(mesh.config(0), move |_, incoming| {
        let tx = tx.clone();
        async move {
            let mut channel = accepted(incoming).await;
            expect_numbers(&mut channel.rx, 0..100, 8000).await;
            tx.send(()).await.unwrap();
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (_, mut channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    soon(send_numbers(&mut channel, 0..100, 8000)).await.unwrap();
    soon(link.close()).await;
    soon(done.recv()).await.unwrap();
    assert!(matches!(ask(&link).await, Err(Error::Closed)));
    assert!(matches!(*link.state().borrow(), LinkState::Closed(_)));
}

#[tokio::test]
async fn a_stopping_server_is_no_reason_to_give_up() {
    let mesh = Mesh::new();
    let first = mesh.serve(mesh.config(0), no_tokens);
    let second = mesh.serve(mesh.config(0), no_tokens);
    let to = [first.addresses()[0], second.addresses()[0]];
    let link = mesh.link(&to, mesh.client());
    ask(&link).await.unwrap();
    soon(first.close(Duration::from_secs(2))).await;
    drop(first);
    ask(&link).await.unwrap();
    let state = link.state().borrow().clone();
    assert!(matches!(state, LinkState::Connected { to, number: 2, .. } if to == second.addresses()[0]), "{state:?}");
}

#[tokio::test]
async fn nobody_waits_for_a_link_whose_owner_stops() {
    let mesh = Mesh::new();
    let nobody = std::net::UdpSocket::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap();
    let link = mesh.link(&[nobody], mesh.client());
    let asking = tokio::spawn({
        let link = link.clone();
        async move { ask(&link).await }
    });
    mesh.tasks.stop(PATIENCE).await;
    let error = soon(asking).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Closed), "{error:?}");
    assert!(Link::start(link_config(&[nobody], mesh.client()), mesh.env(), &mesh.tasks).is_err());
}

#[tokio::test]
async fn the_last_link_dropped_ends_its_connection() {
    let mesh = Mesh::new();
    let server = Server::bind(mesh.config(0), mesh.env(), &mesh.tasks).unwrap();
    let link = mesh.link(&server.addresses(), mesh.client());
    let connection = soon(server.accept()).await.unwrap();
    let clone = link.clone();
    drop(link);
    assert!(timeout(Duration::from_millis(50), connection.closed()).await.is_err());
    drop(clone);
    soon(connection.closed()).await;
    assert!(connection.accept().await.is_none());
}
