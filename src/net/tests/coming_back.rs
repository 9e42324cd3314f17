//! Connections that are lost, and what comes after.

use quinn::ConnectionError;

use super::*;

/// A server in a runtime of its own, which can be killed without a word to its peers.
struct Doomed {
    runtime: Option<tokio::runtime::Runtime>,
    server: Option<Arc<Server>>,
    address: SocketAddr,
}

impl Doomed {
    fn start<F, W>(mesh: &Arc<Mesh>, port: u16, handle: F) -> Self
    where
        F: Fn(Connection, Incoming) -> W + Clone + Send + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = {
            let _entered = runtime.enter();
            mesh.serve(mesh.config(port), handle)
        };
        Self { address: server.addresses()[0], runtime: Some(runtime), server: Some(server) }
    }

    /// Without its runtime it cannot say goodbye. Its port is free afterwards.
    async fn kill(mut self) {
        let (runtime, server) = (self.runtime.take().unwrap(), self.server.take());
        tokio::task::spawn_blocking(move || {
            runtime.shutdown_timeout(PATIENCE);
            drop(server);
        })
        .await
        .unwrap();
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[tokio::test]
async fn a_restarted_server_resets_connections_it_does_not_know() {
    let mesh = Mesh::new();
    let first = Doomed::start(&mesh, 0, no_tokens);
    let address = first.address;
    let connection = raw(address, mesh.client().config()).await.unwrap();
    first.kill().await;
    let _second = Doomed::start(&mesh, address.port(), no_tokens);
    let mut channel = connection.open(Priority::Control).await.unwrap();
    channel.tx.send(&[0; 100]).await.unwrap();
    assert_eq!(soon(connection.quic.closed()).await, ConnectionError::Reset);
    let lost = channel.rx.next().await;
    assert!(matches!(lost, Err(Error::Lost(_))), "{lost:?}");
}

#[tokio::test]
async fn a_read_is_asked_again_after_a_restart() {
    let mesh = Mesh::new();
    let (tx, mut seen) = mpsc::channel(1);
    let first = Doomed::start(&mesh, 0, move |_, incoming| {
        let tx = tx.clone();
        async move {
            tx.send(()).await.unwrap();
            // Never answers.
            incoming.channel.tx.closed().await;
        }
    });
    let address = first.address;
    let link = mesh.link(&[address], mesh.client());
    let asking = tokio::spawn({
        let link = link.clone();
        async move { ask(&link).await }
    });
    soon(seen.recv()).await.unwrap();
    first.kill().await;
    let _second = Doomed::start(&mesh, address.port(), no_tokens);
    soon(asking).await.unwrap().unwrap();
    assert!(matches!(*link.state().borrow(), LinkState::Connected { number: 2, .. }));
}

/// A server whose first request costs its connection; the ids of requests.
fn moody(mesh: &Arc<Mesh>) -> (Arc<Server>, mpsc::Receiver<Option<RequestId>>) {
    let (tx, seen) = mpsc::channel(10);
    let first = Arc::new(AtomicUsize::new(0));
    let server = mesh.serve(mesh.config(0), move |connection, mut incoming| {
        let (tx, first) = (tx.clone(), first.clone());
        async move {
            tx.send(incoming.header.id).await.unwrap();
            if first.fetch_add(1, Ordering::Relaxed) == 0 {
                return connection.close("in a bad mood");
            }
            answer(&mut incoming, Ok(RevokedIdentity { certificates: 3 })).await;
            incoming.channel.tx.finish();
        }
    });
    (server, seen)
}

#[tokio::test]
async fn a_mutation_with_an_id_is_sent_again() {
    let mesh = Mesh::new();
    let (server, mut seen) = moody(&mesh);
    let link = mesh.link(&server.addresses(), mesh.client());
    let id = RequestId(mesh.env().uuid());
    let call = Call { id: Some(id), ..Call::default() };
    assert_eq!(soon(link.call(&revoke(), call)).await.unwrap().certificates, 3);
    assert_eq!((seen.recv().await, seen.recv().await), (Some(Some(id)), Some(Some(id))));
}

#[tokio::test]
async fn a_mutation_without_an_id_is_not() {
    let mesh = Mesh::new();
    let (server, mut seen) = moody(&mesh);
    let link = mesh.link(&server.addresses(), mesh.client());
    let lost = soon(link.call(&revoke(), Call::default())).await.unwrap_err();
    assert!(matches!(&lost, Error::Lost(why) if why == "in a bad mood"), "{lost:?}");
    // The link itself comes back.
    assert_eq!(soon(link.call(&revoke(), Call::default())).await.unwrap().certificates, 3);
    assert_eq!((seen.recv().await, seen.recv().await), (Some(None), Some(None)));
}

#[tokio::test]
async fn nobody_there_is_unreachable() {
    let mesh = Mesh::new();
    let port = std::net::UdpSocket::bind((LOOPBACK, 0)).unwrap().local_addr().unwrap();
    let link = mesh.link(&[port], mesh.client());
    let call = Call { timeout: Some(Duration::from_millis(300)), ..Call::default() };
    let error = soon(link.call(&ListTokens, call)).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { addresses, .. } if *addresses == port.to_string()), "{error:?}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_stream_survives_a_change_of_network() {
    let mesh = Mesh::new();
    let (tx, mut remotes) = mpsc::channel(1000);
    let server = mesh.serve(mesh.config(0), move |connection, incoming| {
        let tx = tx.clone();
        async move {
            let mut channel = accepted(incoming).await;
            while let Some(frame) = channel.rx.next().await.unwrap() {
                tx.send(connection.remote()).await.unwrap();
                channel.tx.send(&frame).await.unwrap();
            }
        }
    });
    let link = mesh.link(&server.addresses(), mesh.client());
    let (_, mut channel) = soon(link.open(&follow(), Call::default())).await.unwrap();
    let mut before = None;
    for number in 0..1000 {
        soon(channel.tx.send(&numbered(number, 100))).await.unwrap();
        assert_eq!(soon(channel.rx.next()).await.unwrap().unwrap(), numbered(number, 100));
        let remote = remotes.recv().await.unwrap();
        match before {
            None => {
                before = Some(remote);
                link.network_changed();
            }
            // Moved, and still the same stream.
            Some(before) if before != remote => return,
            Some(_) => {}
        }
    }
    panic!("the connection has not moved");
}
