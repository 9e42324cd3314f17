//! What hints cost: giving and taking them in the process and in a Redis on this machine. `cargo bench --bench queue`. The
//! rows of Redis need a redis-server.

use std::sync::Arc;
use std::time::Duration;

use ado::env::Env;
use ado::queue::{Class, Hint, Local, Queue, Redis, RedisConfig};
use ado::tasks::Tasks;
use ado_proto::{Namespace, TaskId};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;

#[path = "../tests/support/servers/mod.rs"]
mod servers;

/// Hints of one push and of one pop: a task submitted alone, and a claim's batch.
const SIZES: [usize; 2] = [1, 64];

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

async fn in_redis(server: &servers::redis::Redis) -> Redis {
    let config = RedisConfig { url: server.url(), prefix: format!("{}:", Env::system().uuid()) };
    Redis::start(&config, Env::system(), &Tasks::new()).await.expect("it connects")
}

fn queues(c: &mut Criterion) {
    let runtime = runtime();
    let mut all: Vec<(&str, Arc<dyn Queue>)> = vec![("in the process", Arc::new(Local::new()))];
    if let Some(server) = servers::redis::shared() {
        all.push(("in Redis", Arc::new(runtime.block_on(in_redis(server)))));
    }
    let class = Class { namespace: Namespace::default(), pool: "default".into(), agent: "shell".into() };
    let env = Env::system();
    for size in SIZES {
        let mut group = c.benchmark_group(format!("push and pop of {size}"));
        group.throughput(Throughput::Elements(size as u64));
        group.measurement_time(Duration::from_secs(3));
        for (name, queue) in &all {
            let hints: Vec<_> = (0..size).map(|n| Hint { score: n as i64, task: TaskId(env.uuid()) }).collect();
            group.bench_function(*name, |b| {
                b.iter(|| {
                    runtime.block_on(async {
                        queue.push(&class, &hints).await.expect("it takes hints");
                        let popped = queue.pop(&class, size).await.expect("it gives them");
                        assert_eq!(popped.len(), size);
                    })
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, queues);
criterion_main!(benches);
