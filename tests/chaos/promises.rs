//! What is promised for one fault each, judged by the same oracle.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use ado::client::Client;
use ado_proto::TaskId;
use ado_proto::record::{Body, Record};
use ado_proto::request::Submit;
use ado_proto::spec::{Input, TaskSpec};
use nix::sys::signal::Signal;
use sqlx::Row as _;

use crate::evidence::{Sources, database, notes};
use crate::mesh::{Mesh, Size, until};
use crate::oracle::{AGENT, Evidence, judge};
use crate::variable;

fn size(slots: usize, lost_after: Duration) -> Size {
    Size { controllers: 1, workers: 0, slots, heartbeat: Duration::from_millis(200), lost_after }
}

/// A mesh with a worker. `None`: skip the test.
async fn mesh(size: Size, disk: Option<&str>) -> Option<Mesh> {
    if !crate::servers::full() {
        eprintln!("SKIPPED: set ADO_TEST=full");
        return None;
    }
    let mut mesh = Mesh::start(size, disk).await?;
    mesh.add_worker().await;
    Some(mesh)
}

/// How long a server is away: short here, as long as promised when asked (`ADO_CHAOS_AWAY_SECONDS`).
fn away(seconds: u64) -> Duration {
    Duration::from_secs(variable("ADO_CHAOS_AWAY_SECONDS", seconds))
}

/// The agent of the oracle, with this many lines.
fn agent(mesh: &Mesh, lines: u64, wait: &str) -> TaskSpec {
    let mut spec = TaskSpec::new("shell", Input::Text(AGENT.into()));
    let notes = mesh.path("notes").display().to_string();
    let own = [("LINES", lines.to_string()), ("BURST", "0".into()), ("KEEP", "20".into()), ("WAIT", wait.into())];
    let own = own.into_iter().chain([("NOTES", notes), ("ADO", env!("CARGO_BIN_EXE_ado").into())]);
    spec.env = own.map(|(name, value)| (name.to_owned(), value)).chain([mesh.marker()]).collect();
    spec
}

async fn submit(client: &Client, specs: Vec<TaskSpec>) -> Vec<TaskId> {
    let request = Submit { name: None, specs, copies: 1 };
    client.submit(&request, client.request_id()).await.expect("it is accepted").tasks
}

/// How many notes the agents of a task have made.
fn noted(mesh: &Mesh, task: TaskId) -> usize {
    notes(mesh, task).lines().count()
}

async fn reaches(mesh: &Mesh, task: TaskId, count: usize) {
    until("the agent goes on", async || noted(mesh, task) >= count).await;
}

async fn ends(client: &Client, tasks: &[TaskId]) {
    for task in tasks {
        let over = async || {
            let info = client.tasks(&task.to_string()).await;
            info.is_ok_and(|info| ["completed", "failed", "cancelled"].contains(&info[0].state.as_str()))
        };
        until("the task ends", over).await;
    }
}

/// All there is of a task, after the oracle has seen it.
async fn judged(mesh: &Mesh, sources: &mut Sources, task: TaskId) -> Evidence {
    let evidence = sources.gather(mesh, task).await.expect("its log can be read");
    assert_eq!(judge(&evidence), [""; 0], "{task}");
    evidence
}

fn epochs(log: &[Record]) -> Vec<(u64, String)> {
    let assigned = |record: &Record| match &record.body {
        Body::Assigned(assigned) => Some((assigned.epoch.0, assigned.worker_name.clone())),
        _ => None,
    };
    log.iter().filter_map(assigned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_stopped_beyond_its_lease_is_fenced_and_its_agent_is_killed_on_waking() {
    let Some(mut mesh) = mesh(size(1, Duration::from_secs(2)), None).await else { return };
    let client = mesh.client(Duration::from_secs(30));
    let task = submit(&client, vec![agent(&mesh, 60, "0.03")]).await[0];
    reaches(&mesh, task, 30).await;
    mesh.workers[0].signal(Signal::SIGSTOP);
    until("its guard froze the agent", async || mesh.are_frozen()).await;
    let frozen_at = noted(&mesh, task);
    mesh.add_worker().await;
    ends(&client, &[task]).await;
    let mut sources = Sources::of(&mesh).await;
    let before = judged(&mesh, &mut sources, task).await;
    assert_eq!(epochs(&before.log), [(1, "w0".into()), (2, "w1".into())]);
    let first = notes(&mesh, task).lines().filter(|line| line.starts_with("1 ")).count();
    assert_eq!(first, frozen_at, "it did nothing more");
    assert!(mesh.are_frozen(), "frozen, not dead");

    mesh.workers[0].signal(Signal::SIGCONT);
    until("its agent is killed", async || mesh.agents().is_empty()).await;
    // Once it runs something, it has said all it had to say.
    mesh.workers[1].stop().await;
    let last = submit(&client, vec![agent(&mesh, 1, "0")]).await[0];
    ends(&client, &[last]).await;
    assert_eq!(epochs(&judged(&mesh, &mut sources, last).await.log), [(1, "w0".into())]);
    let after = judged(&mesh, &mut sources, task).await;
    assert!(after.log == before.log, "nothing it said later is recorded");
    sources.close().await;
    mesh.workers.truncate(1);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_tasks_are_dispatched_all_the_same() {
    let Some(mut mesh) = mesh(size(4, Duration::from_secs(5)), None).await else { return };
    let client = mesh.client(Duration::from_secs(30));
    let mut tasks = submit(&client, (0..8).map(|_| agent(&mesh, 20, "0.05")).collect()).await;
    mesh.redis.kill();
    let gone = tokio::time::Instant::now();
    while gone.elapsed() < away(5) {
        let more = submit(&client, (0..4).map(|_| agent(&mesh, 2, "0.01")).collect()).await;
        ends(&client, &more).await;
        tasks.extend(more);
    }
    ends(&client, &tasks).await;
    mesh.redis.revive();
    let last = submit(&client, vec![agent(&mesh, 2, "0.01")]).await;
    ends(&client, &last).await;
    tasks.extend(last);
    let mut sources = Sources::of(&mesh).await;
    for task in &tasks {
        assert_eq!(epochs(&judged(&mesh, &mut sources, *task).await.log).len(), 1, "nobody began twice");
    }
    eprintln!("{} tasks, nearly all of them without Redis", tasks.len());
    sources.close().await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_queued_when_redis_was_flushed_is_dispatched_in_order_of_its_score() {
    const SLOTS: usize = 8;
    let Some(mut mesh) = mesh(size(SLOTS, Duration::from_secs(10)), None).await else { return };
    let client = mesh.client(Duration::from_secs(60));
    mesh.workers[0].stop().await;
    let queued = usize::try_from(variable("ADO_CHAOS_QUEUED", 1000)).expect("a number");
    // One step of priority is a minute: none of these is overtaken for its age.
    let spec = |number: usize| {
        let mut spec = TaskSpec::new("noop", Input::Text(String::new()));
        spec.priority = i32::try_from(number * 7919 % 1009).expect("small");
        spec
    };
    let mut expected = Vec::new();
    for first in (0..queued).step_by(500) {
        let numbers = first..queued.min(first + 500);
        let tasks = submit(&client, numbers.clone().map(spec).collect()).await;
        expected.extend(numbers.map(|number| -spec(number).priority).zip(tasks));
    }
    assert!(mesh.redis.flush());
    mesh.workers[0].start();
    let mut tables = database(&mesh).await.expect("it is there");
    let mut flushed = false;
    loop {
        let ended = "SELECT count(*) FROM ado.task WHERE ended_at IS NOT NULL";
        let ended: i64 = sqlx::query(ended).fetch_one(&mut tables).await.expect("a count").get(0);
        let ended = usize::try_from(ended).expect("a count");
        if !flushed && ended > queued / 2 {
            flushed = mesh.redis.flush();
        }
        if ended == queued {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let order = "SELECT task FROM ado.event WHERE kind = 'task.assigned' ORDER BY cursor";
    let order = sqlx::query(order).fetch_all(&mut tables).await.expect("events");
    let order: Vec<_> = order.iter().map(|row| TaskId(row.get(0))).collect();
    assert_eq!(order.len(), queued, "each was assigned once");
    let priority: std::collections::BTreeMap<_, _> = expected.iter().map(|(score, task)| (*task, *score)).collect();
    let mut scores: Vec<_> = order.iter().map(|task| priority[task]).collect();
    let given = scores.clone();
    scores.sort_unstable();
    // What several slots ask for at once is one claim: within it there is no order.
    let late = given.iter().enumerate().filter(|(place, score)| {
        let around = place.saturating_sub(2 * SLOTS)..(place + 2 * SLOTS + 1).min(queued);
        !(scores[around.start]..=scores[around.end - 1]).contains(score)
    });
    let late: Vec<_> = late.collect();
    assert!(late.is_empty(), "{} of {queued} came out of their order: {:?}", late.len(), &late[..late.len().min(9)]);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_gone_agents_go_on_and_submissions_fail_clearly_or_wait() {
    let away = away(3);
    // It is away for longer than a lease (whoever asks it for something waits five seconds for a connection): what goes on is
    // bridged. When it is away for 30 s, the numbers are the default ones.
    let lost_after = (away * 2 / 3).max(Duration::from_secs(8));
    let heartbeat = lost_after / 4;
    let Some(mut mesh) = mesh(Size { heartbeat, ..size(2, lost_after) }, None).await else { return };
    let client = mesh.client(Duration::from_secs(30));
    let task = submit(&client, vec![agent(&mesh, 20 * away.as_secs() + 60, "0.05")]).await[0];
    reaches(&mesh, task, 10).await;
    mesh.postgres.crash();
    let gone = tokio::time::Instant::now();
    let noted_before = noted(&mesh, task);

    let refused = mesh.ado(&["run", "--detach", "true"]).await;
    let stderr = String::from_utf8(refused.stderr).expect("text");
    assert_eq!(refused.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("the store is unavailable") && stderr.contains("--retry-for"), "{stderr}");
    let mut waits = mesh.command(&["run", "--detach", "--retry-for", "2m", "--name", "waited", "true"]);
    let mut waits = waits.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("ado starts");
    let mut says = BufReader::new(waits.stderr.take().expect("it is piped"));
    let mut said = String::new();
    tokio::task::block_in_place(|| says.read_line(&mut said).expect("a line"));
    assert!(said.starts_with("trying for 2m: error: the store is unavailable"), "{said}");
    // Looked at until the time is over: whatever it is frozen for would be seen.
    until("it is gone for as long as was asked", async || {
        assert!(!mesh.are_frozen(), "an agent noticed");
        gone.elapsed() >= away
    })
    .await;
    assert!(noted(&mesh, task) > noted_before + 10, "the agent went on");
    assert!(waits.try_wait().expect("it is ours").is_none(), "whoever wants to wait still waits");
    mesh.postgres.launch();
    let waited =
        tokio::task::spawn_blocking(move || waits.wait_with_output().expect("it ends")).await.expect("no panic");
    assert!(waited.status.success(), "{waited:?}");
    ends(&client, &[task]).await;
    let mut sources = Sources::of(&mesh).await;
    let evidence = judged(&mesh, &mut sources, task).await;
    assert_eq!(epochs(&evidence.log), [(1, "w0".into())], "nothing began anew");
    assert_eq!(sources.tasks().await.len(), 2, "what was refused was not accepted, what waited happened once");
    sources.close().await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_gone_for_longer_than_a_lease_costs_time_and_nothing_else() {
    let Some(mut mesh) = mesh(size(2, Duration::from_secs(2)), None).await else { return };
    let client = mesh.client(Duration::from_secs(30));
    let task = submit(&client, vec![agent(&mesh, 100, "0.02")]).await[0];
    reaches(&mesh, task, 10).await;
    mesh.postgres.crash();
    until("its lease ends", async || mesh.are_frozen()).await;
    // Longer than anybody may be silent.
    tokio::time::sleep(2 * mesh.size.lost_after).await;
    mesh.postgres.launch();
    ends(&client, &[task]).await;
    let mut sources = Sources::of(&mesh).await;
    let evidence = judged(&mesh, &mut sources, task).await;
    assert_eq!(epochs(&evidence.log), [(1, "w0".into())], "nobody is judged by what could not be written");
    sources.close().await;
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_the_database_loses_nothing() {
    let Some(mut mesh) = mesh(size(2, Duration::from_secs(20)), Some("256m")).await else { return };
    if mesh.disk.is_none() {
        return mesh.stop().await;
    }
    let client = mesh.client(Duration::from_secs(30));
    let before = submit(&client, vec![agent(&mesh, 5, "0.01")]).await[0];
    ends(&client, &[before]).await;
    let task = submit(&client, vec![agent(&mesh, 150, "0.03")]).await[0];
    reaches(&mesh, task, 10).await;
    mesh.disk.as_ref().expect("looked at above").fill();
    // What is reserved already takes some more.
    let mut accepted = Vec::new();
    let big =
        || vec![TaskSpec { pool: "nobody".into(), ..TaskSpec::new("shell", Input::Text("x".repeat(100_000))) }; 5];
    let refusal = loop {
        let request = Submit { name: None, specs: big(), copies: 1 };
        match client.submit(&request, client.request_id()).await {
            Ok(submitted) => accepted.extend(submitted.tasks),
            Err(error) => break error,
        }
        assert!(accepted.len() < 5000, "the disk is not full");
    };
    assert!(refusal.is_transient(), "{refusal}");
    let text = refusal.to_string();
    assert!(text.contains("out of space") || text.contains("unavailable"), "{text}");
    let noted_before = noted(&mesh, task);
    reaches(&mesh, task, noted_before + 10).await;
    mesh.heal();
    ends(&client, &[task]).await;
    let mut sources = Sources::of(&mesh).await;
    let evidence = judged(&mesh, &mut sources, task).await;
    assert_eq!(epochs(&evidence.log), [(1, "w0".into())]);
    judged(&mesh, &mut sources, before).await;
    let there = sources.tasks().await;
    assert!(accepted.iter().all(|task| there.contains(task)), "what was accepted is there");
    sources.close().await;
    mesh.stop().await;
}
