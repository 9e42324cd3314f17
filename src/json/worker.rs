//! A worker, and what happened to the fleet, as JSON objects. Pure.

use ado_proto::request::{ControllerInfo, SystemEvent, WorkerInfo, WorkerSet};
use serde_json::{Value, json};

use super::rfc3339;

/// What is known of a worker.
pub fn worker(worker: &WorkerInfo) -> Value {
    json!({
        "workerId": worker.id,
        "name": worker.name,
        "state": worker.state,
        "namespace": worker.namespace,
        "pool": worker.pool,
        "slots": worker.slots,
        "busy": worker.busy,
        "agents": worker.agents,
        "labels": worker.labels,
        "containment": worker.containment.as_str(),
        "heartbeatAgeMs": worker.heartbeat_age_ms,
        "build": worker.build,
        "load": worker.load.map(|load| json!({
            "cpus": load.cpus,
            "average": f64::from(load.load_milli) / 1000.0,
            "memory": load.memory,
            "memoryAvailable": load.memory_available,
        })),
        "rttMs": worker.rtt_us.map(milliseconds),
        "tasks": worker.holds,
        "ineligible": worker.ineligible,
        "desired": worker.desired.as_str(),
        "desiredBy": worker.desired_by,
        "deadline": worker.deadline.map(rfc3339),
        "controllerId": worker.controller,
        "breaker": worker.breaker.as_ref().map(|breaker| json!({
            "why": breaker.why,
            "openedAt": rfc3339(breaker.opened_at),
            "probeAt": rfc3339(breaker.probe_at),
        })),
    })
}

/// What became of a wish for a worker.
pub fn worker_set(set: &WorkerSet) -> Value {
    json!({
        "workerId": set.id,
        "name": set.name,
        "state": set.state,
        "busy": set.busy,
        "deadline": set.deadline.map(rfc3339),
        "unchanged": set.unchanged,
    })
}

/// What is known of a controller.
pub fn controller(controller: &ControllerInfo) -> Value {
    json!({
        "controllerId": controller.id,
        "name": controller.name,
        "state": controller.state,
        "addresses": controller.addresses,
        "build": controller.build,
        "since": rfc3339(controller.since),
        "seenAgeMs": controller.seen_age_ms,
        "loops": controller.loops,
        "workers": controller.workers,
        "viewers": controller.viewers,
        "answers": controller.answers,
    })
}

/// A system event. `cursor` is what to go on from.
pub fn system_event(event: &SystemEvent) -> Value {
    json!({
        "cursor": event.cursor,
        "time": rfc3339(event.time),
        "kind": event.kind,
        "taskId": event.task,
        "workerId": event.worker,
        "message": event.text,
    })
}

#[expect(clippy::cast_precision_loss, reason = "a round trip is far below 2^52 microseconds")]
fn milliseconds(us: u64) -> f64 {
    us as f64 / 1000.0
}
