//! Who and what is not let in, and who may stay.

use ado_proto::frame::COMPRESS_FROM;

use super::*;

// ---- peers --------------------------------------------------------------------------------------------------------

/// What a link that is not let in ends with.
async fn refusal(mesh: &Mesh, to: SocketAddr, tls: ClientTls) -> Error {
    let link = mesh.link(&[to], tls);
    let error = ask(&link).await.unwrap_err();
    let closed = LinkState::Closed(error.to_string());
    soon(link.state().wait_for(|state| *state == closed)).await.unwrap();
    error
}

#[tokio::test]
async fn another_mesh_is_not_trusted() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let server = mesh.serve(mesh.config(0), no_tokens);
    let error = refusal(&mesh, server.addresses()[0], other.client()).await;
    assert!(matches!(&error, Error::Certificate(text) if text.contains("no controller of this mesh")), "{error:?}");
}

#[tokio::test]
async fn a_certificate_of_another_mesh_is_not_accepted() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let server = mesh.serve(mesh.config(0), no_tokens);
    let mut tls = (*mesh.client().config()).clone();
    tls.client_auth_cert_resolver = other.client().config().client_auth_cert_resolver.clone();
    let connection = raw(server.addresses()[0], Arc::new(tls)).await.unwrap();
    let error = Error::from(soon(connection.quic.closed()).await);
    assert!(
        matches!(&error, Error::Certificate(text) if text.contains("does not accept our certificate")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_member_without_a_certificate_is_refused_before_any_stream() {
    let mesh = Mesh::new();
    let (tx, mut seen) = mpsc::channel(1);
    let server = mesh.serve(mesh.config(0), move |_, _| {
        let tx = tx.clone();
        async move { tx.send(()).await.unwrap() }
    });
    let tls = with_alpn(&ClientTls::join(mesh.ca.pin()).unwrap(), ALPN_MESH);
    let connection = raw(server.addresses()[0], tls).await.unwrap();
    // The client's handshake is over before the server's: what it sends is in time to be read, if anybody did.
    if let Ok(mut channel) = connection.open(Priority::Control).await {
        let _ = channel.tx.send(&request_frame(MINOR)).await;
    }
    let error = Error::from(soon(connection.quic.closed()).await);
    assert!(matches!(&error, Error::Certificate(text) if text.contains("ado join")), "{error:?}");
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn another_protocol_is_another_version() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), no_tokens);
    let error = raw(server.addresses()[0], with_alpn(&mesh.client(), b"ado/9")).await.err().unwrap();
    assert!(matches!(error, Error::Version(_)), "{error:?}");
}

#[tokio::test]
async fn a_revoked_peer_is_sent_away_and_stays_out() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), no_tokens);
    let tls = mesh.client();
    let (link, bystander) =
        (mesh.link(&server.addresses(), tls.clone()), mesh.link(&server.addresses(), mesh.client()));
    ask(&link).await.unwrap();
    ask(&bystander).await.unwrap();
    mesh.denied.set([tls.identity().unwrap().serial().to_owned()]);
    server.enforce();
    let mut state = link.state();
    soon(state.wait_for(|state| matches!(state, LinkState::Closed(_)))).await.unwrap();
    let error = ask(&link).await.unwrap_err();
    assert!(matches!(&error, Error::Certificate(text) if text.contains("revoked")), "{error:?}");
    ask(&bystander).await.unwrap();
    assert!(matches!(*bystander.state().borrow(), LinkState::Connected { number: 1, .. }));
}

#[tokio::test]
async fn who_has_a_newer_certificate_comes_back_with_it() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), no_tokens);
    let tls = mesh.client();
    let link = mesh.link(&server.addresses(), tls.clone());
    ask(&link).await.unwrap();
    let old = tls.identity().unwrap().serial().to_owned();
    tls.replace(mesh.identity("ado://default/user/ann")).unwrap();
    mesh.denied.set([old]);
    server.enforce();
    // Not by resuming the session of the old one.
    ask(&link).await.unwrap();
}

#[tokio::test]
async fn a_denied_peer_is_not_heard_even_before_its_connection_is_closed() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), no_tokens);
    let tls = mesh.client();
    let link = mesh.link(&server.addresses(), tls.clone());
    ask(&link).await.unwrap();
    mesh.denied.set([tls.identity().unwrap().serial().to_owned()]);
    let error = ask(&link).await.unwrap_err();
    assert!(matches!(error, Error::Certificate(_)), "{error:?}");
}

#[tokio::test]
async fn who_renews_stays_and_who_does_not_goes() {
    let mesh = Mesh::new();
    let certifier = mesh.clone();
    let server = mesh.serve(mesh.config(0), move |connection, mut incoming| {
        let mesh = certifier.clone();
        async move {
            if incoming.header.kind != Renew::KIND {
                return no_tokens(connection, incoming).await;
            }
            let request: Renew = decode_body(&incoming.body).unwrap();
            let chain = mesh.certify("ado://default/user/ann", &request.csr);
            let peer = verify_peer(ALPN_MESH, Some(&chain), &mesh.denied, mesh.env().now()).unwrap();
            let Peer::Verified(renewed) = &peer else { panic!("{peer:?}") };
            let not_after = renewed.not_after();
            connection.renewed(peer);
            let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
            answer(&mut incoming, Ok(Renewed { chain, not_after })).await;
            incoming.channel.tx.finish();
        }
    });
    let tls = mesh.client();
    // Two connections of the one who renews, one of somebody who does not.
    let renewing = mesh.link(&server.addresses(), tls.clone());
    let beside = mesh.link(&server.addresses(), tls.clone());
    let other = mesh.link(&server.addresses(), mesh.client());
    for link in [&renewing, &beside, &other] {
        ask(link).await.unwrap();
    }
    mesh.pass(LIFE * 7 / 10);
    let old = tls.identity().unwrap().serial().to_owned();
    let (tx, mut saved) = mpsc::channel(1);
    let save = move |identity: &Identity| tx.try_send(identity.serial().to_owned()).unwrap();
    tokio::spawn(keep_renewed(renewing.clone(), tls.clone(), save, mesh.env()));
    let new = soon(saved.recv()).await.unwrap();
    assert_ne!(new, old);
    assert_eq!(tls.identity().unwrap().serial(), new);

    mesh.pass(LIFE / 2);
    server.enforce();
    let error = ask(&other).await.unwrap_err();
    assert!(matches!(&error, Error::Certificate(text) if text.contains("expired")), "{error:?}");
    for link in [&renewing, &beside] {
        ask(link).await.unwrap();
        assert!(matches!(*link.state().borrow(), LinkState::Connected { number: 1, .. }));
    }
}

#[tokio::test]
async fn strangers_are_few_and_keep_nobody_out() {
    let mesh = Mesh::new();
    let config = ServerConfig { max_strangers: 2, ..mesh.config(0) };
    let server = mesh.serve(config, no_tokens);
    let to = server.addresses()[0];
    let joining = || ClientTls::join(mesh.ca.pin()).unwrap().config();
    let mut inside = Vec::new();
    for _ in 0..2 {
        let connection = raw(to, joining()).await.unwrap();
        // Answered: it is in.
        let mut channel = connection.open(Priority::Control).await.unwrap();
        channel.tx.send(&request_frame(MINOR)).await.unwrap();
        soon(channel.rx.next()).await.unwrap().unwrap();
        inside.push(connection);
    }
    let third = raw(to, joining()).await.unwrap();
    let error = Error::from(soon(third.quic.closed()).await);
    assert!(matches!(&error, Error::Lost(text) if text.contains("too many are joining")), "{error:?}");
    // Members come in, and the place of a stranger who left is free.
    ask(&mesh.link(&[to], mesh.client())).await.unwrap();
    drop(inside.pop());
    soon(async {
        loop {
            let connection = raw(to, joining()).await.unwrap();
            let Ok(mut channel) = connection.open(Priority::Control).await else { continue };
            let _ = channel.tx.send(&request_frame(MINOR)).await;
            if channel.rx.next().await.is_ok() {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn strangers_may_open_few_streams_and_members_many() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), |_, incoming| async {
        // Answered, and kept open.
        accepted(incoming).await.tx.closed().await;
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let mut open = Vec::new();
    for _ in 0..200 {
        open.push(soon(link.open(&follow(), Call::default())).await.unwrap());
    }
    let joining = ClientTls::join(mesh.ca.pin()).unwrap().config();
    let stranger = raw(server.addresses()[0], joining).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(soon(stranger.open(Priority::Live)).await.unwrap());
    }
    assert!(timeout(Duration::from_millis(50), stranger.open(Priority::Live)).await.is_err());
}

#[tokio::test]
async fn connections_are_bounded() {
    let mesh = Mesh::new();
    let server = mesh.serve(ServerConfig { max_connections: 1, ..mesh.config(0) }, no_tokens);
    let first = mesh.link(&server.addresses(), mesh.client());
    ask(&first).await.unwrap();
    let error = raw(server.addresses()[0], mesh.client().config()).await.err().unwrap();
    assert!(matches!(&error, Error::Lost(text) if text.contains("busy")), "{error:?}");
    ask(&first).await.unwrap();
}

// ---- frames -------------------------------------------------------------------------------------------------------

fn request_frame(minor: u16) -> Vec<u8> {
    let header = Header { minor, kind: ListTokens::KIND, version: ListTokens::VERSION, id: None, namespace: None };
    encode_request(&header, &ListTokens)
}

/// A frame of 1 MiB of zeros, compressed, that says to be of `size` bytes.
fn bomb(size: u32) -> Vec<u8> {
    let mut varint = Vec::new();
    let mut rest = size;
    while rest >= 0x80 {
        varint.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    varint.push(rest as u8);
    // Flag: lz4. Then the decompressed length, and literals that are never looked at.
    let body = [&[1][..], &varint, &[0; COMPRESS_FROM]].concat();
    let length = u16::try_from(body.len()).unwrap();
    [&[length as u8 | 0x80, (length >> 7) as u8][..], &body].concat()
}

/// Sends bytes on a stream of their own; the refusal.
async fn refused(connection: &Arc<Carrier>, bytes: &[u8], finish: bool) -> ErrorReply {
    let (mut tx, rx) = connection.quic.open_bi().await.unwrap();
    let _ = tx.write_all(bytes).await;
    if finish {
        tx.finish().unwrap();
    }
    let (unused, _) = connection.quic.open_bi().await.unwrap();
    let mut channel = connection.channel(unused, rx, Limits::MESH, Priority::Control);
    let answer = soon(channel.rx.next()).await.unwrap().unwrap();
    drop(tx);
    decode_response::<ListTokens>(&answer).unwrap().unwrap_err()
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_the_connection_lives() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), no_tokens);
    let connection = raw(server.addresses()[0], mesh.client().config()).await.unwrap();
    for (bytes, finish, what) in [
        // 2 MiB announced.
        (vec![0x80, 0x80, 0x80, 0x01], false, "exceeds the limit"),
        (bomb(u32::MAX), false, "exceeds the limit"),
        // Announces less than the limit, and is no lz4 data of that size.
        (bomb(1000), false, "malformed frame"),
        (vec![2, 0x80, 0], false, "malformed frame"),
        (vec![0xff; 16], false, "malformed frame"),
        (vec![0], false, "malformed frame"),
        (vec![2, 0, 0xff], false, "malformed request header"),
        (vec![10, 0, 1], true, "ended within a frame"),
        (vec![], true, "ended before a request"),
    ] {
        let refusal = refused(&connection, &bytes, finish).await;
        assert!(refusal.is(ErrorCode::Invalid), "{refusal:?}");
        assert!(refusal.message.contains(what), "{bytes:?}: {refusal:?}");
    }
    let mut channel = connection.open(Priority::Control).await.unwrap();
    channel.tx.send(&request_frame(MINOR)).await.unwrap();
    let answer = soon(channel.rx.next()).await.unwrap().unwrap();
    assert!(decode_response::<ListTokens>(&answer).unwrap().unwrap().is_empty());
}

#[tokio::test]
async fn an_old_minor_version_is_told_both_versions() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), no_tokens);
    let connection = raw(server.addresses()[0], mesh.client().config()).await.unwrap();
    let mut channel = connection.open(Priority::Control).await.unwrap();
    channel.tx.send(&request_frame(0)).await.unwrap();
    let answer = soon(channel.rx.next()).await.unwrap().unwrap();
    let refusal = decode_response::<ListTokens>(&answer).unwrap().unwrap_err();
    assert!(refusal.is(ErrorCode::UnsupportedVersion));
    assert!(refusal.message.contains("1.0") && refusal.message.contains(&format!("1.{MINOR}")), "{refusal:?}");
    // A newer one is for the other side to judge.
    let mut channel = connection.open(Priority::Control).await.unwrap();
    channel.tx.send(&request_frame(MINOR + 1)).await.unwrap();
    let answer = soon(channel.rx.next()).await.unwrap().unwrap();
    decode_response::<ListTokens>(&answer).unwrap().unwrap();
}

#[tokio::test]
async fn a_stranger_who_sends_too_much_is_sent_away() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), no_tokens);
    let connection = raw(server.addresses()[0], ClientTls::join(mesh.ca.pin()).unwrap().config()).await.unwrap();
    let mut channel = connection.open(Priority::Control).await.unwrap();
    // Fine for a member.
    channel.tx.send(&numbered(1, 20_000)).await.unwrap();
    let error = Error::from(soon(connection.quic.closed()).await);
    assert!(matches!(&error, Error::Protocol(text) if text.contains("exceeds the limit")), "{error:?}");
}

#[tokio::test]
async fn garbage_on_the_port_does_no_harm() {
    let mesh = Mesh::new();
    let server = mesh.serve(mesh.config(0), no_tokens);
    let link = mesh.link(&server.addresses(), mesh.client());
    ask(&link).await.unwrap();
    let socket = std::net::UdpSocket::bind((LOOPBACK, 0)).unwrap();
    for number in 0..2000 {
        let mut bytes = numbered(number, 1 + number as usize % 1400);
        // Half of them look like first packets of a connection.
        bytes[0] = if number % 2 == 0 { 0xc0 } else { bytes[0] };
        socket.send_to(&bytes, server.addresses()[0]).unwrap();
    }
    ask(&link).await.unwrap();
    assert!(matches!(*link.state().borrow(), LinkState::Connected { number: 1, .. }));
    ask(&mesh.link(&server.addresses(), mesh.client())).await.unwrap();
}
