//! What `ado bench latency` found, for people and for programs. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::stats::{histogram, percentile};

/// Bound of the first bucket, nanoseconds: 0.1 ms.
const FIRST_BUCKET: u64 = 100_000;
/// Width of the longest bar.
const BAR: usize = 40;

/// How latencies were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// Writer and reader read the same clock.
    OneClock,
    /// They do not: see [`super::stats::spread`].
    Estimate,
}

/// Everything that was measured.
#[derive(Debug)]
pub(super) struct Report {
    /// Tasks that wrote.
    pub(super) tasks: u32,
    /// Lines a second, of each.
    pub(super) rate: u32,
    /// Bytes of a line.
    pub(super) size: usize,
    /// Latencies, nanoseconds, sorted.
    pub(super) sorted: Vec<u64>,
    pub(super) method: Method,
    pub(super) lost: u64,
    pub(super) repeated: u64,
    /// Attempts that were given up and began anew; lines of theirs do not count.
    pub(super) restarts: u64,
    /// How often the connection was away for long enough to be told, and how long in all.
    pub(super) pauses: u64,
    pub(super) paused: Duration,
    /// Round trip from here to the controller.
    pub(super) controller: Duration,
    /// Round trip from the controller to the workers, the longest; `None` when the controller does not say.
    pub(super) worker: Option<Duration>,
    /// What the p99 should stay below.
    pub(super) target: Duration,
}

impl Report {
    /// What the fastest line is taken to have needed where clocks cannot be compared: half of both round trips.
    pub(super) fn fastest(controller: Duration, worker: Option<Duration>) -> Duration {
        (controller + worker.unwrap_or_default()) / 2
    }

    /// Whether every line came once, and nearly all of them in time.
    pub(super) fn is_met(&self) -> bool {
        self.is_exact() && !self.sorted.is_empty() && self.at(99.0) <= self.target
    }

    fn is_exact(&self) -> bool {
        self.lost == 0 && self.repeated == 0
    }

    fn at(&self, percent: f64) -> Duration {
        Duration::from_nanos(percentile(&self.sorted, percent))
    }

    pub(super) fn json(&self) -> Value {
        let buckets = histogram(&self.sorted, FIRST_BUCKET);
        json!({
            "tasks": self.tasks,
            "rate": self.rate,
            "lineBytes": self.size,
            "lines": self.sorted.len(),
            "lost": self.lost,
            "repeated": self.repeated,
            "restarts": self.restarts,
            "latency": {
                "method": match self.method { Method::OneClock => "clock", Method::Estimate => "estimate" },
                "minMs": ms(self.at(0.0)),
                "p50Ms": ms(self.at(50.0)),
                "p90Ms": ms(self.at(90.0)),
                "p99Ms": ms(self.at(99.0)),
                "maxMs": ms(self.at(100.0)),
                "histogram": buckets.iter().map(|(bound, lines)| json!({
                    "upToMs": ms(Duration::from_nanos(*bound)), "lines": lines,
                })).collect::<Vec<_>>(),
            },
            "roundTrip": { "controllerMs": ms(self.controller), "workerMs": self.worker.map(ms) },
            "pauses": self.pauses,
            "pausedMs": ms(self.paused),
            "targetMs": ms(self.target),
            "withinTarget": self.is_met(),
        })
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let tasks = if self.tasks == 1 { String::new() } else { format!("{} tasks, each ", self.tasks) };
        let _ = writeln!(text, "{tasks}{} lines a second of {} bytes", self.rate, self.size);
        let _ = writeln!(text);
        for (name, percent) in [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("max", 100.0)] {
            let _ = writeln!(text, "{name:<5} {:>9.2} ms", ms(self.at(percent)));
        }
        let _ = writeln!(text);
        self.bars(&mut text);
        let _ =
            writeln!(text, "lines        {} came, {} lost, {} repeated", self.sorted.len(), self.lost, self.repeated);
        if self.restarts > 0 {
            let _ = writeln!(text, "restarts     {}: lines of the attempts before do not count", self.restarts);
        }
        let worker = self.worker.map_or("not known".into(), |worker| format!("{:.2} ms", ms(worker)));
        let controller = ms(self.controller);
        let _ = writeln!(text, "round trips  {controller:.2} ms to the controller; from there to the worker {worker}");
        let _ = writeln!(text, "connection   {}", self.connection());
        let _ = writeln!(text, "measured by  {}", self.how());
        let _ = writeln!(text);
        let _ = writeln!(text, "{}", self.verdict());
        text
    }

    fn bars(&self, text: &mut String) {
        let buckets = histogram(&self.sorted, FIRST_BUCKET);
        let most = buckets.iter().map(|(_, lines)| *lines).max().unwrap_or(0).max(1);
        for (bound, lines) in &buckets {
            let bar = "#".repeat((lines * BAR).div_ceil(most));
            let _ = writeln!(text, "<= {:>8} ms {lines:>8} {bar}", ms(Duration::from_nanos(*bound)));
        }
        if !buckets.is_empty() {
            text.push('\n');
        }
    }

    fn connection(&self) -> String {
        match self.pauses {
            0 => "was never away for a second".into(),
            1 => format!("was away once, for {:.1} s", self.paused.as_secs_f64()),
            times => format!("was away {times} times, for {:.1} s", self.paused.as_secs_f64()),
        }
    }

    fn how(&self) -> &'static str {
        match (self.method, self.worker) {
            (Method::OneClock, _) => "one clock: the task and this command run on the same machine",
            (Method::Estimate, Some(_)) => {
                "estimate: how much slower than the fastest line each was, plus half of both round trips"
            }
            (Method::Estimate, None) => {
                "estimate: how much slower than the fastest line each was, plus half of the round trip to the controller; \
                 the worker's is not known"
            }
        }
    }

    fn verdict(&self) -> String {
        let (p99, target) = (ms(self.at(99.0)), ms(self.target));
        match (self.is_exact(), self.is_met()) {
            (false, _) => format!("FAILED: {} lines lost, {} repeated; there must be none", self.lost, self.repeated),
            (true, true) => format!("ok: p99 of {p99:.2} ms is within the target of {target} ms"),
            (true, false) if self.sorted.is_empty() => "FAILED: no line came".into(),
            (true, false) => format!("MISSED: p99 of {p99:.2} ms is above the target of {target} ms"),
        }
    }
}

fn ms(span: Duration) -> f64 {
    // Microseconds are what these clocks are good for.
    span.as_micros() as f64 / 1000.0
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            tasks: 1,
            rate: 100,
            size: 100,
            sorted: (1..=100).map(|ms| ms * 1_000_000).collect(),
            method: Method::OneClock,
            lost: 0,
            repeated: 0,
            restarts: 0,
            pauses: 0,
            paused: Duration::ZERO,
            controller: Duration::from_micros(420),
            worker: Some(Duration::from_micros(1600)),
            target: Duration::from_millis(100),
        }
    }

    #[test]
    fn programs_get_every_number() {
        let json = report().json();
        let latency = &json["latency"];
        let at = |key: &str| latency[key].as_f64().unwrap();
        assert_eq!([at("minMs"), at("p50Ms"), at("p90Ms"), at("p99Ms"), at("maxMs")], [1.0, 50.0, 90.0, 99.0, 100.0]);
        assert_eq!(
            (&latency["method"], &json["withinTarget"], &json["lines"]),
            (&json!("clock"), &json!(true), &json!(100))
        );
        assert_eq!(json["roundTrip"], json!({ "controllerMs": 0.42, "workerMs": 1.6 }));
        assert_eq!(latency["histogram"][0], json!({ "upToMs": 1.0, "lines": 1 }));
    }

    #[test]
    fn the_target_is_met_only_when_nothing_is_lost_or_repeated() {
        assert!(report().is_met());
        assert!(!Report { target: Duration::from_millis(98), ..report() }.is_met());
        for wrong in [Report { lost: 1, ..report() }, Report { repeated: 1, ..report() }] {
            assert!(!wrong.is_met() && wrong.text().contains("FAILED: "), "{}", wrong.text());
        }
        let silent = Report { sorted: Vec::new(), ..report() };
        assert!(!silent.is_met() && silent.text().ends_with("FAILED: no line came\n"), "{}", silent.text());
    }

    #[test]
    fn people_are_told_how_it_was_measured() {
        let text = report().text();
        for part in ["p99       99.00 ms\n", "100 came, 0 lost, 0 repeated", "0.42 ms to the controller", "one clock"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.ends_with("ok: p99 of 99.00 ms is within the target of 100 ms\n"), "{text}");
        let estimate = Report { method: Method::Estimate, ..report() };
        assert!(estimate.text().contains("half of both round trips"));
        let partly = Report { worker: None, ..estimate };
        assert!(partly.text().contains("the worker's is not known") && partly.text().contains("worker not known"));
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }

    #[test]
    fn the_fastest_line_needs_half_of_both_round_trips() {
        let span = Duration::from_millis;
        assert_eq!(Report::fastest(span(30), Some(span(10))), span(20));
        assert_eq!(Report::fastest(span(30), None), span(15));
    }
}
