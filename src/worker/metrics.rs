//! What this worker counts, for Prometheus. No label names a task: nobody knows how many there will be.
//!
//! Must never know: HTTP. Another metric is a field, a line in [`Metrics::new`] that registers it, and a call where it
//! happens.

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::attempt::Ended;
use super::session::Status;

/// How an attempt ended for the worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct How {
    how: &'static str,
}

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// See the module.
pub(super) struct Metrics {
    registry: Registry,
    begun: Counter,
    ended: Family<How, Counter>,
    sessions: Counter,
    answers: Counter,
    sent: Counter,
    acknowledgements: Counter,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("ado");
        let builds = Family::<Build, Gauge>::default();
        builds.get_or_create(&Build { version: crate::BUILD }).set(1);
        registry.register("build_info", "The version that runs", builds);
        let new = Self {
            registry: Registry::default(),
            begun: Counter::default(),
            ended: Family::default(),
            sessions: Counter::default(),
            answers: Counter::default(),
            sent: Counter::default(),
            acknowledgements: Counter::default(),
        };
        // What has not happened yet is a zero and not missing.
        for how in [Ended::Reported, Ended::HandedBack, Ended::Discarded] {
            new.ended.get_or_create_owned(&how_of(how));
        }
        let worker = registry.sub_registry_with_prefix("worker");
        worker.register("attempts_begun", "Assignments taken", new.begun.clone());
        let help = "Attempts that are over, by whether their end is in the log";
        worker.register("attempts_ended", help, new.ended.clone());
        worker.register("sessions", "Sessions with a controller", new.sessions.clone());
        worker.register("heartbeats_answered", "Heartbeats answered by a controller", new.answers.clone());
        let help = "Records sent to a controller, repeated ones too, before compression";
        worker.register_with_unit("sent", help, Unit::Bytes, new.sent.clone());
        let help = "Times a controller said that records are durable";
        worker.register("acknowledgements", help, new.acknowledgements.clone());
        Self { registry, ..new }
    }

    /// An attempt begins.
    pub(super) fn begun(&self) {
        self.begun.inc();
    }

    /// Nothing of an attempt is left.
    pub(super) fn ended(&self, how: Ended) {
        self.ended.get_or_create(&how_of(how)).inc();
    }

    /// A controller has accepted a session.
    pub(super) fn session(&self) {
        self.sessions.inc();
    }

    /// A heartbeat was answered.
    pub(super) fn answered(&self) {
        self.answers.inc();
    }

    /// Records are on their way.
    pub(super) fn sent(&self, bytes: usize) {
        self.sent.inc_by(bytes as u64);
    }

    /// Records are durable.
    pub(super) fn acknowledged(&self) {
        self.acknowledgements.inc();
    }

    /// All there is, as text.
    pub(super) fn scrape(&self, status: Status, slots: u32) -> String {
        let mut now = Registry::with_prefix("ado_worker");
        let states = [
            ("attempts", "Attempts held", i64::try_from(status.load).unwrap_or(i64::MAX)),
            ("slots", "Attempts it may hold", slots.into()),
            ("connected", "Whether a controller has its session", status.connected.into()),
            ("leaving", "Whether it takes no more work", (status.leaving > 0).into()),
        ];
        for (name, help, value) in states {
            let gauge = Gauge::<i64>::default();
            gauge.set(value);
            now.register(name, help, gauge);
        }
        let mut text = String::new();
        for registry in [&self.registry, &now] {
            prometheus_text::encode(&mut text, registry).expect("a string takes everything");
        }
        text
    }
}

fn how_of(how: Ended) -> How {
    let how = match how {
        Ended::Reported => "reported",
        Ended::HandedBack => "handed_back",
        Ended::Discarded => "discarded",
    };
    How { how }
}
