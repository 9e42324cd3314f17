//! What a packet costs: in the engine, and through a relay on loopback. `cargo bench -p ado-netsim`.

use std::hint::black_box;
use std::net::UdpSocket;
use std::time::Duration;

use ado_netsim::link::Packet;
use ado_netsim::proxy::{Config, Proxy, RelayConfig};
use ado_netsim::{Path, Scenario, Way};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const PACKETS: u32 = 1000;
/// Under way at once through the relay; the default buffer of a socket holds some ninety.
const WINDOW: u32 = 50;

fn scenario(text: &str) -> Scenario {
    Scenario::parse(text, &|_| Err("no files".to_owned())).expect("a scenario")
}

fn engine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(u64::from(PACKETS)));
    for (name, text) in [
        ("clear", ""),
        ("delay", "set delay 20ms jitter 5ms loss 1%"),
        ("wifi-flaky", "profile wifi-flaky"),
        ("codel, overloaded", "set rate 5mbit discipline codel queue 1000p"),
    ] {
        let scenario = scenario(text);
        group.bench_function(name, |bencher| {
            let mut path: Path<u32> = Path::new("bench", &scenario);
            let mut now = Duration::ZERO;
            bencher.iter(|| {
                for number in 0..PACKETS {
                    now += Duration::from_millis(1);
                    path.send(now, Way::Up, Packet::udp(1200), number);
                    while let Some(output) = path.poll(now) {
                        black_box(output);
                    }
                }
            });
        });
    }
    group.finish();
}

fn relay(criterion: &mut Criterion) {
    let far = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let near = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    far.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let relays = vec![RelayConfig::udp("link", far.local_addr().expect("an address"))];
    let proxy = runtime.block_on(Proxy::start(Config { relays, ..Config::default() })).expect("a proxy");
    near.connect(proxy.relays()[0].listen).expect("connected");
    let mut group = criterion.benchmark_group("relay");
    group.throughput(Throughput::Elements(u64::from(PACKETS)));
    group.bench_function("udp, 1200 bytes", |bencher| {
        let mut buffer = [0; 2000];
        bencher.iter(|| {
            for _ in 0..PACKETS / WINDOW {
                for _ in 0..WINDOW {
                    near.send(&[0; 1200]).expect("sent");
                }
                for _ in 0..WINDOW {
                    far.recv(&mut buffer).expect("nothing is lost on a clear link");
                }
            }
        });
    });
    group.finish();
}

criterion_group!(benches, engine, relay);
criterion_main!(benches);
