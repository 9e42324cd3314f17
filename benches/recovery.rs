//! How long a task stands still when its worker is killed: from the SIGKILL until its agent runs on another worker, with real
//! processes, PostgreSQL and Redis (both must be installed, or `ADO_TEST=full` installs them). `cargo bench --bench recovery`.
//!
//! 50 trials at a time-out of 2 s, five at a time; with `ADO_BENCH_LONG=1` also 5 at 60 s, side by side. The time-out counts
//! from the last heartbeat, which came up to one interval before the kill.

#[path = "../tests/chaos/mesh.rs"]
mod mesh;
#[path = "../tests/support/processes.rs"]
mod processes;
#[path = "../tests/support/relay.rs"]
mod relay;
#[path = "../tests/support/servers/mod.rs"]
mod servers;

use std::time::Duration;

use ado::client::Client;
use ado_proto::TaskId;
use ado_proto::record::Desired;
use ado_proto::request::Submit;
use ado_proto::spec::{Input, TaskSpec};
use mesh::{Mesh, Size, until};

/// Says when it began, and stays.
const AGENT: &str = r#"echo "$ADO_EPOCH $(date +%s%N)" >>"$NOTES/$ADO_TASK_ID"; exec sleep 3600"#;
/// Killed at a time; as many others are left.
const AT_ONCE: usize = 5;

#[tokio::main]
async fn main() {
    let short = Size {
        controllers: 1,
        workers: 2 * AT_ONCE,
        slots: 2,
        heartbeat: Duration::from_millis(500),
        lost_after: Duration::from_secs(2),
    };
    measure("time-out 2 s, heartbeat 0.5 s", short, 10).await;
    if std::env::var_os("ADO_BENCH_LONG").is_some() {
        let long = Size { heartbeat: Duration::from_secs(5), lost_after: Duration::from_secs(60), ..short };
        measure("time-out 60 s, heartbeat 5 s", long, 1).await;
    }
}

async fn measure(name: &str, size: Size, rounds: usize) {
    let Some(mut mesh) = Mesh::start(size, None).await else { return };
    let client = mesh.client(Duration::from_secs(30));
    for _ in 0..size.workers {
        mesh.add_worker().await;
    }
    let mut took = Vec::new();
    for _ in 0..rounds {
        took.extend(round(&mut mesh, &client).await);
    }
    took.sort();
    let at = |part: f64| took[((took.len() - 1) as f64 * part).round() as usize].as_secs_f64();
    let (least, median, p99, most) = (at(0.0), at(0.5), at(0.99), at(1.0));
    let count = took.len();
    println!("{name}: {count} trials: least {least:.2} s, p50 {median:.2} s, p99 {p99:.2} s, most {most:.2} s");
    mesh.stop().await;
}

/// Gives every worker a task, kills half of them, and waits until their tasks run on the other half.
async fn round(mesh: &mut Mesh, client: &Client) -> Vec<Duration> {
    let mut spec = TaskSpec::new("shell", Input::Text(AGENT.into()));
    spec.env = [("NOTES".to_owned(), mesh.path("notes").display().to_string()), mesh.marker()].into();
    let request = Submit { name: None, specs: vec![spec], copies: u32::try_from(mesh.size.workers).expect("few") };
    let tasks = client.submit(&request, client.request_id()).await.expect("it is accepted").tasks;
    until("all run", async || tasks.iter().all(|task| begun(mesh, *task).len() == 1)).await;
    // Whoever has only just begun is not yet known to be at work.
    tokio::time::sleep(2 * mesh.size.heartbeat).await;
    let mut killed = Vec::new();
    for worker in 0..AT_ONCE {
        let held: Vec<_> = mesh.guards(worker).into_values().collect();
        let now = mesh.env.now().0;
        mesh.workers[worker].kill();
        killed.extend(held.into_iter().map(|task| (task, now)));
    }
    let mut took = Vec::new();
    for (task, at) in killed {
        let task: TaskId = task.parse().expect("an id");
        until("it runs elsewhere", async || begun(mesh, task).len() > 1).await;
        let micros = begun(mesh, task)[1] - at;
        took.push(Duration::from_micros(u64::try_from(micros).expect("it began after the kill")));
    }
    for task in &tasks {
        client.set_desired(&task.to_string(), Desired::Cancelled, true).await.expect("it is there");
    }
    for worker in 0..AT_ONCE {
        mesh.workers[worker].start();
    }
    until("nothing is left", async || mesh.agents().is_empty()).await;
    until("all workers are back", async || {
        let workers = client.workers(None).await.expect("workers");
        workers.len() == mesh.size.workers && workers.iter().all(|worker| worker.state == "ready" && worker.busy == 0)
    })
    .await;
    tokio::time::sleep(2 * mesh.size.heartbeat).await;
    took
}

/// When its agents began, microseconds.
fn begun(mesh: &Mesh, task: TaskId) -> Vec<i64> {
    let notes = std::fs::read_to_string(mesh.path("notes").join(task.to_string())).unwrap_or_default();
    let nanos = notes.lines().filter_map(|line| line.split(' ').nth(1)?.parse::<i64>().ok());
    nanos.map(|nanos| nanos / 1000).collect()
}
