//! How long a task stands still when its worker is killed: from the SIGKILL until its agent runs on another worker; and how
//! long a viewer sees nothing when its controller is. With real processes, PostgreSQL and Redis (both must be installed, or
//! `ADO_TEST=full` installs them). `cargo bench --bench recovery`.
//!
//! Of a worker 50 trials at a time-out of 2 s, five at a time; with `ADO_BENCH_LONG=1` also 5 at 60 s, side by side. The
//! time-out counts from the last heartbeat, which came up to one interval before the kill. Of a controller 20 trials, one of
//! three at a time; its address stays silent, as that of a machine that is gone.

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
use ado::client::Step;
use ado_proto::record::{Body, Desired};
use ado_proto::request::{StartAt, Submit};
use ado_proto::spec::{Input, TaskSpec};
use ado_proto::{Offset, TaskId, Timestamp};
use mesh::{Mesh, Size, until};

/// Says when it began, and stays.
const AGENT: &str = r#"echo "$ADO_EPOCH $(date +%s%N)" >>"$NOTES/$ADO_TASK_ID"; exec sleep 3600"#;
/// Says what time it is, for ever.
const CLOCK: &str = "while :; do date +%s%N; sleep 0.01; done";
/// Controllers that are killed.
const FAILOVERS: usize = 20;
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
    measure_controllers().await;
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
    print(&format!("worker killed -> runs elsewhere, {name}"), took);
    mesh.stop().await;
}

fn print(name: &str, mut took: Vec<Duration>) {
    took.sort();
    let at = |part: f64| took[((took.len() - 1) as f64 * part).round() as usize].as_secs_f64();
    let (least, median, p99, most) = (at(0.0), at(0.5), at(0.99), at(1.0));
    let count = took.len();
    println!("{name}: {count} trials: least {least:.2} s, p50 {median:.2} s, p99 {p99:.2} s, most {most:.2} s");
}

/// Kills the controller that a viewer looks through, again and again, until it is shown what was written after that.
async fn measure_controllers() {
    let (heartbeat, lost_after) = (Duration::from_secs(5), Duration::from_secs(20));
    let size = Size { controllers: 3, workers: 3, slots: 2, heartbeat, lost_after };
    let Some(mut mesh) = Mesh::start(size, None).await else { return };
    for _ in 0..size.workers {
        mesh.add_worker().await;
    }
    let mut took = Vec::new();
    for _ in 0..FAILOVERS {
        // A new one each time: it is at one of them by chance.
        let client = mesh.client(Duration::from_secs(30));
        let mut spec = TaskSpec::new("shell", Input::Text(CLOCK.into()));
        spec.env = [mesh.marker()].into();
        let request = Submit { name: None, specs: vec![spec], copies: 1 };
        let task = client.submit(&request, client.request_id()).await.expect("it is accepted").tasks[0];
        let mut stream = client.follow(task, StartAt::Offset(Offset(0)), true);
        shown_after(&mut stream, Timestamp(mesh.env.now().0 + 500_000)).await;
        let mut through = None;
        until("it is known who serves the viewer", async || {
            // The stream is read meanwhile: nobody falls behind.
            shown_after(&mut stream, mesh.env.now()).await;
            let all = mesh.json(&["controllers", "list", "-o", "json"]).await;
            let mut all = all.iter().flat_map(|value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]));
            through = all.find(|one| one["viewers"].as_u64() > Some(0)).and_then(|one| {
                let address = one["addresses"][0].as_str()?.to_owned();
                mesh.controllers.iter().position(|known| known.relay.address().to_string() == address)
            });
            through.is_some()
        })
        .await;
        let through = through.expect("found above");
        shown_after(&mut stream, mesh.env.now()).await;
        let killed = mesh.env.now();
        mesh.controllers[through].daemon.kill();
        shown_after(&mut stream, killed).await;
        took.push(mesh.env.now().since(killed));
        mesh.controllers[through].daemon.start();
        client.set_desired(&task.to_string(), Desired::Cancelled, true).await.expect("it is there");
        client.close().await;
        until("nothing is left", async || mesh.agents().is_empty()).await;
        until("all controllers are back", async || {
            let all = mesh.json(&["controllers", "list", "-o", "json"]).await;
            let all = all.iter().flat_map(|value| value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]));
            all.filter(|one| one["state"] == "live").count() == size.controllers
        })
        .await;
    }
    print("controller killed -> its viewer is shown what is new", took);
    mesh.stop().await;
}

/// Reads until something is shown that was written after `after`.
async fn shown_after(stream: &mut ado::client::RecordStream, after: Timestamp) {
    while let Some(step) = stream.next().await {
        let Step::Record(record) = step.expect("it goes on") else { continue };
        let Body::Output(output) = record.body else { continue };
        let line = String::from_utf8_lossy(&output.data);
        let nanos = line.lines().filter_map(|line| line.parse::<i64>().ok()).max();
        if nanos.is_some_and(|nanos| nanos / 1000 > after.0) {
            return;
        }
    }
    panic!("the log ended");
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
