//! What programs see: the product's names (`TaskEvent`, `DistributedTaskState`, `TaskResult`) and what is added beside them.
//! Fields are added, none are renamed.
//!
//! Must never know: who reads it, how it is carried. Everything here is a pure function of the protocol's types.

mod event;
mod task;
mod worker;

use ado_proto::record::{Desired, Outcome, Stream};
use ado_proto::spec::{Exit, Usage};
use ado_proto::{Snapshot, Timestamp};
use serde_json::{Value, json};

use event::hitl;

pub use event::Events;
pub use task::task;
pub use worker::{controller, system_event, worker, worker_set};

/// JSON Schema (2020-12) of everything that is printed for programs: each kind has a name in `$defs`.
pub const SCHEMA: &str = include_str!("schema.json");

/// RFC 3339, UTC, microseconds. Instants outside the years 1 to 9999 are shown as a number.
pub fn rfc3339(time: Timestamp) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(time.0) * 1000)
        .ok()
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| time.0.to_string())
}

/// The product's `TaskResult`.
pub fn result(outcome: Outcome, how: Option<&Exit>) -> Value {
    let result = how.map_or_else(|| json!({}), exit);
    with(result, "outcome", outcome_word(outcome))
}

/// How a process ended.
pub fn exit(exit: &Exit) -> Value {
    match exit {
        Exit::Code(code) => json!({ "exitCode": code }),
        Exit::Signal(signal) => json!({ "signal": signal }),
        Exit::TimedOut(limit) => json!({ "timedOut": true, "limit": limit.as_str() }),
        Exit::Cancelled => json!({ "stopped": true }),
        Exit::NotStarted { error, permanent } => json!({ "notStarted": error, "permanent": permanent }),
        Exit::Lost { error } => json!({ "lost": error }),
        Exit::Unavailable { what, retry_after_ms } => json!({ "unavailable": what, "retryAfterMs": retry_after_ms }),
        Exit::Hopeless { error, code } => json!({ "hopeless": error, "permanent": true, "exitCode": code }),
        Exit::OutOfMemory { limit } => json!({ "outOfMemory": limit }),
        Exit::Failed { error } => json!({ "failed": error }),
    }
}

/// What a task's folder held.
pub fn workspace(snapshot: Snapshot) -> Value {
    json!({ "files": snapshot.files, "bytes": snapshot.bytes })
}

/// The word for an outcome.
pub fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Failed => "failed",
        Outcome::Cancelled => "cancelled",
    }
}

/// The word for a stream.
pub fn stream_word(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
        Stream::Tool => "tool",
    }
}

/// The word for a wanted state.
pub fn desired_word(desired: Desired) -> &'static str {
    match desired {
        Desired::Running => "running",
        Desired::Paused => "paused",
        Desired::Cancelled => "cancelled",
    }
}

/// Adds what an agent has used.
fn with_usage(mut value: Value, usage: &Usage) -> Value {
    value["turns"] = json!(usage.turns);
    value["costUsd"] = json!(usage.cost_micros.map(|micros| micros as f64 / 1e6));
    value["inputTokens"] = json!(usage.input_tokens);
    value["outputTokens"] = json!(usage.output_tokens);
    value
}

fn with(mut value: Value, key: &str, word: &str) -> Value {
    value[key] = json!(word);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants() {
        assert_eq!(rfc3339(Timestamp(0)), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(Timestamp(1_700_000_000_123_456)), "2023-11-14T22:13:20.123456Z");
        assert_eq!(rfc3339(Timestamp(i64::MAX)), i64::MAX.to_string());
    }
}
