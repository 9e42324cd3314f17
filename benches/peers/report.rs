//! Every figure of a run, as a table for people and lines of JSON for programs. Pure.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;

use crate::rows::{Measured, Row};
use crate::stats::median;

/// What the design wants of a figure of ado's.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// At least this part of a peer's figure.
    PartOf(&'static str, f64),
}

/// Row, figure, floor (must), aim (want): the design's numbers for two cores with everything on them.
const BOUNDS: &[(Row, &str, Bound, Bound)] = &[
    (Row::Line, "p50", Bound::AtMost(2.0), Bound::AtMost(1.0)),
    (Row::Line, "p99", Bound::AtMost(10.0), Bound::AtMost(6.0)),
    (Row::Lines50, "p99", Bound::AtMost(15.0), Bound::AtMost(8.0)),
    (Row::Random, "rate", Bound::PartOf("ssh", 0.5), Bound::AtLeast(100.0)),
    (Row::Zeros, "rate", Bound::PartOf("ssh", 0.5), Bound::AtLeast(100.0)),
    (Row::Flood, "rate", Bound::PartOf("ssh", 0.5), Bound::AtLeast(400_000.0)),
    (Row::SpawnWarm, "p50", Bound::AtMost(10.0), Bound::AtMost(2.0)),
    (Row::SpawnWarm, "p99", Bound::AtMost(30.0), Bound::AtMost(8.0)),
    (Row::List, "p50", Bound::AtMost(30.0), Bound::AtMost(10.0)),
    (Row::Noop, "rate", Bound::AtLeast(1500.0), Bound::AtLeast(5000.0)),
    (Row::True, "rate", Bound::AtLeast(1500.0), Bound::AtLeast(5000.0)),
    (Row::Queue, "rate", Bound::AtLeast(1500.0), Bound::AtLeast(5000.0)),
    (Row::QueueStart, "p50", Bound::AtMost(10.0), Bound::AtMost(2.0)),
    (Row::QueueStart, "p99", Bound::AtMost(30.0), Bound::AtMost(8.0)),
    (Row::Memory, "each", Bound::AtMost(120.0), Bound::AtMost(60.0)),
];

/// One figure of one peer, over the repetitions.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) row: Row,
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) peer: &'static str,
    pub(crate) values: Vec<f64>,
}

impl Figure {
    pub(crate) fn median(&self) -> f64 {
        median(&self.values)
    }

    fn least(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn most(&self) -> f64 {
        self.values.iter().copied().fold(0.0, f64::max)
    }
}

/// A run.
#[derive(Debug)]
pub(crate) struct Report {
    /// In the order of their first measuring.
    pub(crate) figures: Vec<Figure>,
    /// Latencies of all repetitions, milliseconds.
    pub(crate) samples: BTreeMap<(Row, &'static str), Vec<f64>>,
    /// The machine's load average before, and after each repetition.
    pub(crate) loads: Vec<f64>,
}

impl Report {
    pub(crate) fn new(load: f64) -> Self {
        Self { figures: Vec::new(), samples: BTreeMap::new(), loads: vec![load] }
    }

    pub(crate) fn add(&mut self, row: Row, peer: &'static str, measured: Measured) {
        for (name, unit, value) in measured.figures {
            let known = self.figures.iter_mut().find(|old| (old.row, old.name, old.peer) == (row, name, peer));
            match known {
                Some(figure) => figure.values.push(value),
                None => self.figures.push(Figure { row, name, unit, peer, values: vec![value] }),
            }
        }
        if !measured.samples.is_empty() {
            self.samples.entry((row, peer)).or_default().extend(measured.samples);
        }
    }

    /// The figures of one kind, ado's first.
    pub(crate) fn of(&self, row: Row, name: &str) -> Vec<&Figure> {
        let mut figures: Vec<_> =
            self.figures.iter().filter(|figure| (figure.row, figure.name) == (row, name)).collect();
        figures.sort_by_key(|figure| (figure.peer != "ado", figure.peer));
        figures
    }

    /// For people: medians, with the least and the most of the repetitions; ado's with its bounds, others' with what
    /// part of theirs ado's is.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let repetitions = self.figures.iter().map(|figure| figure.values.len()).max().unwrap_or(0);
        let loads: Vec<_> = self.loads.iter().map(|load| format!("{load:.2}")).collect();
        let _ = writeln!(text, "medians of {repetitions} repetitions [least..most]; load average {}", loads.join(", "));
        let mut rows: Vec<_> = self.figures.iter().map(|figure| figure.row).collect();
        rows.sort_unstable();
        rows.dedup();
        for row in rows {
            let _ = writeln!(text, "\n{}", row.title());
            let mut names: Vec<&str> = Vec::new();
            for figure in self.figures.iter().filter(|figure| figure.row == row) {
                if !names.contains(&figure.name) {
                    names.push(figure.name);
                }
            }
            for figure in names.iter().flat_map(|name| self.of(row, name)) {
                let _ = writeln!(text, "  {}", self.line(figure).trim_end());
            }
        }
        text
    }

    fn line(&self, figure: &Figure) -> String {
        let of_many = match figure.values.len() {
            0 | 1 => String::new(),
            _ => format!("[{}..{}]", number(figure.least()), number(figure.most())),
        };
        let name = format!("{} {}", figure.name, figure.unit);
        format!("{name:<22} {:<8} {:>10} {of_many:<24} {}", figure.peer, number(figure.median()), self.remark(figure))
    }

    fn remark(&self, figure: &Figure) -> String {
        if figure.peer != "ado" {
            let ado = self.of(figure.row, figure.name).into_iter().find(|other| other.peer == "ado");
            let ratio = ado.map(|ado| ado.median() / figure.median()).filter(|ratio| ratio.is_finite());
            return ratio.map_or(String::new(), |ratio| format!("ado/{} {}", figure.peer, number(ratio)));
        }
        let bounds = BOUNDS.iter().find(|(row, name, ..)| (*row, *name) == (figure.row, figure.name));
        let Some((_, _, floor, aim)) = bounds else { return String::new() };
        let say = |what: &str, bound: Bound| {
            let verdict = match self.meets(figure, bound) {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "not known",
            };
            format!("{what} {}: {verdict}", words(bound))
        };
        format!("{}; {}", say("floor", *floor), say("aim", *aim))
    }

    /// `None`: the peer it is measured by was not there.
    fn meets(&self, figure: &Figure, bound: Bound) -> Option<bool> {
        match bound {
            Bound::AtMost(most) => Some(figure.median() <= most),
            Bound::AtLeast(least) => Some(figure.median() >= least),
            Bound::PartOf(peer, part) => {
                let other = self.of(figure.row, figure.name).into_iter().find(|other| other.peer == peer)?;
                Some(figure.median() >= part * other.median())
            }
        }
    }

    /// For programs: a line about the run, then one a figure.
    pub(crate) fn json_lines(&self) -> String {
        let mut text = format!("{}\n", json!({ "type": "run", "loadAverages": self.loads }));
        for figure in &self.figures {
            let bounds = BOUNDS
                .iter()
                .find(|(row, name, ..)| figure.peer == "ado" && (*row, *name) == (figure.row, figure.name));
            let line = json!({
                "type": "figure",
                "row": figure.row.title(),
                "figure": figure.name,
                "unit": figure.unit,
                "peer": figure.peer,
                "median": figure.median(),
                "least": figure.least(),
                "most": figure.most(),
                "values": figure.values,
                "floor": bounds.map(|bounds| words(bounds.2)),
                "floorMet": bounds.and_then(|bounds| self.meets(figure, bounds.2)),
                "aim": bounds.map(|bounds| words(bounds.3)),
                "aimMet": bounds.and_then(|bounds| self.meets(figure, bounds.3)),
            });
            let _ = writeln!(text, "{line}");
        }
        text
    }
}

fn words(bound: Bound) -> String {
    match bound {
        Bound::AtMost(most) => format!("<= {}", number(most)),
        Bound::AtLeast(least) => format!(">= {}", number(least)),
        Bound::PartOf(peer, part) => format!(">= {part} {peer}"),
    }
}

/// Three digits that count, and separators between thousands.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        value if value.abs() < 1.0 => format!("{value:.3}"),
        value if value.abs() < 10.0 => format!("{value:.2}"),
        value if value.abs() < 100.0 => format!("{value:.1}"),
        value => {
            let digits = format!("{value:.0}");
            let separated = |(at, digit): (usize, char)| {
                let comma = (at > 0 && (digits.len() - at).is_multiple_of(3)).then_some(',');
                comma.into_iter().chain([digit])
            };
            digits.chars().enumerate().flat_map(separated).collect()
        }
    }
}
