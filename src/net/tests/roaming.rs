//! Outages and changes of network: what is sent comes, exactly, and soon after the network is back. Time is virtual.

use ado_netsim::link::Rate;
use tokio::time::{Instant, sleep};

use super::simulated::{CLIENT, FIRST, at};
use super::*;

/// One way. A round trip is twice this.
const DELAY: Duration = Duration::from_millis(20);
/// After an outage somebody told us of, and after one nobody did.
const TOLD: Duration = Duration::from_millis(2 * 40 + 200);
const SILENT: Duration = Duration::from_millis(1500);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Flow {
    /// A hundred bytes every 50 ms.
    Sparse,
    /// As much as the link takes.
    Bulk,
}

/// Frames as `flow` says, to whoever reads, until the stream ends; each begins with its number.
async fn pour(tx: &mut Sender, flow: Flow) -> Result<std::convert::Infallible, Error> {
    let mut number = 0;
    loop {
        match flow {
            Flow::Sparse => {
                tx.send(&numbered(number, 100)).await?;
                sleep(Duration::from_millis(50)).await;
            }
            Flow::Bulk => tx.send(&numbered(number, 1000)).await?,
        }
        number += 1;
    }
}

/// Reads numbered frames, in order, and says how long after `from` the first came, and goes on to `until`.
async fn first_after(rx: &mut Receiver, next: &mut u32, size: usize, from: Instant, until: Instant) -> Duration {
    let mut first = None;
    while Instant::now() < until {
        let frame = rx.next().await.expect("the stream stays").expect("it does not end");
        assert_eq!(frame, numbered(*next, size), "frame {next}");
        *next += 1;
        if Instant::now() > from {
            first.get_or_insert_with(|| from.elapsed());
        }
    }
    first.expect("something came after it was back")
}

/// What the reader of a flow in one direction waits once a blackout is over.
async fn wait_after(outage: Duration, flow: Flow, up: bool, told: bool) -> Duration {
    let (mesh, network) = (Mesh::new(), Network::new(11));
    network.set(CLIENT, FIRST, Conditions { delay: DELAY, rate: Rate::Bits(5_000_000), ..Conditions::default() });
    let (receivers, mut received) = mpsc::channel(1);
    let config = ServerConfig { idle_timeout: Duration::from_secs(600), ..mesh.config_at(&network, FIRST) };
    let _server = mesh.serve(config, move |_, incoming| {
        let receivers = receivers.clone();
        async move {
            let mut channel = accepted(incoming).await;
            if up {
                receivers.send(channel).await.ok();
            } else {
                pour(&mut channel.tx, flow).await.ok();
            }
        }
    });
    let config = LinkConfig {
        keep_alive: Duration::from_millis(500),
        idle_timeout: Duration::from_secs(600),
        ..link_config(&[SocketAddr::new(FIRST, 4433)], mesh.client())
    };
    let config = LinkConfig { sockets: Some(at(&network, CLIENT)), ..config };
    let link = Link::start(config, mesh.env(), &mesh.tasks).unwrap();
    let (_, mut ours) = soon(link.open(&follow(), Call::default())).await.unwrap();
    let size = if flow == Flow::Bulk { 1000 } else { 100 };
    let start = Instant::now();
    let (cut_at, back_at) = (start + Duration::from_secs(2), start + Duration::from_secs(2) + outage);
    let weather = async {
        sleep(cut_at - start).await;
        network.set_blackout(CLIENT, FIRST, true);
        sleep(outage).await;
        network.set_blackout(CLIENT, FIRST, false);
        if told {
            link.network_changed();
        }
    };
    let mut theirs = if up { Some(soon(received.recv()).await.unwrap()) } else { None };
    let (until, mut next) = (back_at + Duration::from_secs(3), 0);
    let reading = async {
        match &mut theirs {
            Some(theirs) => {
                tokio::select! {
                    biased;
                    waited = first_after(&mut theirs.rx, &mut next, size, back_at, until) => waited,
                    ended = pour(&mut ours.tx, flow) => panic!("{ended:?}"),
                }
            }
            None => first_after(&mut ours.rx, &mut next, size, back_at, until).await,
        }
    };
    let limit = outage + Duration::from_secs(60);
    timeout(limit, async { tokio::join!(weather, reading).1 }).await.expect("something comes")
}

async fn recovers(outage: u64) {
    for told in [true, false] {
        for up in [false, true] {
            for flow in [Flow::Sparse, Flow::Bulk] {
                let waited = wait_after(Duration::from_secs(outage), flow, up, told).await;
                let limit = if told { TOLD } else { SILENT };
                assert!(waited <= limit, "outage {outage} s, {flow:?}, up: {up}, told: {told}: {waited:?} > {limit:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn three_seconds_without_a_network() {
    recovers(3).await;
}

#[tokio::test(start_paused = true)]
async fn ten_seconds_without_a_network() {
    recovers(10).await;
}

#[tokio::test(start_paused = true)]
async fn twenty_five_seconds_without_a_network() {
    recovers(25).await;
}

#[tokio::test(start_paused = true)]
async fn two_minutes_without_a_network() {
    recovers(120).await;
}
