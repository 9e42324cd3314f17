//! What is counted, while everything that is counted happens.

use std::time::Duration;

use ado_proto::Seq;
use ado_proto::record::{Body, Desired, Exited, Output, Started, Stream};
use ado_proto::request::{ErrorCode, SetDesired, StartAt};
use ado_proto::spec::{Containment, Exit};
use bytes::Bytes;

use crate::mesh::{Mesh, ask, follow, log, refusal, spec};
use crate::metrics_page::{self as page, Samples};

fn started() -> Body {
    Started { pid: 7, containment: Containment::Subreaper }.into()
}

fn output(data: &'static [u8], position: u64) -> Body {
    Output { stream: Stream::Stdout, position, data: Bytes::from_static(data) }.into()
}

fn exited(code: i32) -> Body {
    Exited { exit: Exit::Code(code) }.into()
}

async fn scrape(mesh: &Mesh) -> Samples {
    let address = mesh.controller.http().expect("it serves HTTP");
    tokio::task::spawn_blocking(move || page::scrape(address)).await.expect("it is read")
}

const QUEUED: &str = r#"ado_queued_tasks{namespace="default",pool="default",agent="shell"}"#;
const OLDEST: &str = r#"ado_queued_oldest_seconds{namespace="default",pool="default",agent="shell"}"#;

#[tokio::test]
async fn what_happens_is_counted_once() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    let nothing = scrape(&mesh).await;
    for counter in ["ado_tasks_submitted_total", "ado_claims_total", "ado_records_total", "ado_output_bytes_total"] {
        assert_eq!(nothing.get(counter), 0.0, "{counter}");
    }
    assert_eq!((nothing.get("ado_store_up"), nothing.get("ado_queue_up")), (1.0, 1.0));
    assert_eq!((nothing.find(QUEUED), nothing.get(r#"ado_workers{state="ready"}"#)), (None, 0.0));

    // Nobody is there who could run them.
    let before = tokio::time::Instant::now();
    let first = mesh.submit(&admin, spec()).await;
    let mut again = spec();
    again.max_retries = 1;
    again.pool = "later".into();
    let other = mesh.submit(&admin, again).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let queued = scrape(&mesh).await;
    queued.grew(&nothing, &[("ado_tasks_submitted_total", 2.0), ("ado_records_total", 2.0)]);
    assert_eq!((queued.get(QUEUED), queued.get(&QUEUED.replace(r#"pool="default""#, r#"pool="later""#))), (1.0, 1.0));
    // Ids have the time in milliseconds.
    let age = queued.get(OLDEST);
    assert!(age >= 0.019 && age <= before.elapsed().as_secs_f64() + 0.002, "{age}");

    // One runs, and somebody watches.
    let mut worker = mesh.worker(2).await;
    let assignment = worker.assignment().await;
    assert_eq!(assignment.task, first);
    worker.beat(&[(first, assignment.epoch)]).await;
    let mut attempt = worker.output(first, assignment.epoch).await.expect("the epoch is current");
    attempt.send(0, vec![started(), output(b"ten bytes\n", 0)]).await;
    assert_eq!(attempt.acknowledged().await, Seq(2));
    let (_, watching) = follow(&admin, first, StartAt::Tail(1)).await;
    let running = scrape(&mesh).await;
    running.grew(
        &queued,
        &[
            ("ado_claims_total", 1.0),
            ("ado_attempts_started_total", 1.0),
            ("ado_dispatch_wait_seconds_count", 1.0),
            ("ado_start_wait_seconds_count", 1.0),
            ("ado_append_seconds_count", 1.0),
            ("ado_output_bytes_total", 10.0),
            ("ado_records_total", 3.0),
            ("ado_leases", 1.0),
            ("ado_viewers", 1.0),
            (r#"ado_slots{state="busy"}"#, 1.0),
            (r#"ado_tasks_ended_total{outcome="completed"}"#, 0.0),
        ],
    );
    assert!(running.get("ado_dispatch_wait_seconds_sum") >= 0.019, "it waited for a worker");
    assert!(running.get("ado_heartbeats_total") >= 1.0 && running.get("ado_connections") >= 2.0);
    assert_eq!(running.find(QUEUED), None);
    // Whoever leaves is sent nothing more once that is known.
    drop(watching);
    for _ in 0..1000 {
        if scrape(&mesh).await.get("ado_viewers") == 0.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    attempt.send(2, vec![output(b"abc", 10), exited(0)]).await;
    assert_eq!(attempt.acknowledged().await, Seq(4));
    let over = scrape(&mesh).await;
    over.grew(
        &running,
        &[
            (r#"ado_tasks_ended_total{outcome="completed"}"#, 1.0),
            ("ado_output_bytes_total", 3.0),
            ("ado_leases", -1.0),
            ("ado_viewers", -1.0),
            ("ado_append_seconds_count", 1.0),
            // Its output, its exit, its end.
            ("ado_records_total", 3.0),
            ("ado_commit_output_bytes_sum", 3.0),
            ("ado_commit_records_sum", 3.0),
            ("ado_commit_units_sum", over.get("ado_commit_seconds_count") - running.get("ado_commit_seconds_count")),
        ],
    );

    // All of a log is sent to who reads it.
    let records = log(&admin, first).await.len() as f64;
    let read = scrape(&mesh).await;
    read.grew(&over, &[("ado_viewer_records_total", records), ("ado_commit_seconds_count", 0.0)]);
    assert!(read.get("ado_viewer_bytes_total") - over.get("ado_viewer_bytes_total") > 13.0);

    // A worker that died and came back; an epoch that is over; a failure that is tried again; a task that is cancelled.
    let third = mesh.submit(&admin, spec()).await;
    let stale = worker.assignment().await;
    worker.beat(&[(third, stale.epoch)]).await;
    let mut worker = worker.reincarnate(&mesh).await;
    let anew = worker.assignment().await;
    assert_eq!((anew.task, anew.epoch), (third, stale.epoch.next()));
    worker.beat(&[(third, anew.epoch)]).await;
    refusal(worker.output(third, stale.epoch).await.map(|_| ()), ErrorCode::Stale);
    let mut attempt = worker.output(third, anew.epoch).await.expect("the epoch is current");
    attempt.send(0, vec![started(), exited(3)]).await;
    assert_eq!(attempt.acknowledged().await, Seq(2));
    ask(&admin, SetDesired { reference: other.to_string(), desired: Desired::Cancelled, force: false }).await.unwrap();
    let end = scrape(&mesh).await;
    end.grew(
        &read,
        &[
            ("ado_claims_total", 2.0),
            (r#"ado_reassignments_total{reason="restarted"}"#, 1.0),
            (r#"ado_reassignments_total{reason="silent"}"#, 0.0),
            ("ado_stale_writes_total", 1.0),
            ("ado_task_retries_total", 0.0),
            (r#"ado_tasks_ended_total{outcome="failed"}"#, 1.0),
            (r#"ado_tasks_ended_total{outcome="cancelled"}"#, 1.0),
            (r#"ado_tasks_ended_total{outcome="completed"}"#, 0.0),
            ("ado_start_wait_seconds_count", 1.0),
            ("ado_commit_failures_total", 0.0),
        ],
    );
}

#[tokio::test]
async fn prometheus_itself_has_nothing_to_say() {
    let mesh = Mesh::start().await;
    let admin = mesh.admin();
    mesh.submit(&admin, spec()).await;
    let _worker = mesh.worker(2).await;
    let address = mesh.controller.http().expect("it serves HTTP");
    tokio::task::spawn_blocking(move || page::lint(&page::fetch(address))).await.expect("it is read");
}
