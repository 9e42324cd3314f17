//! The text format of Prometheus (version 0.0.4), read as strictly as it is defined, and by Prometheus's own tool where it
//! is to be had.

#![allow(dead_code, unreachable_pub, reason = "included by several test binaries, each of which uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::servers;

/// What was read: samples by name and labels as they are written, `name{a="b"}`.
#[derive(Debug, Clone)]
pub struct Samples(BTreeMap<String, f64>);

impl Samples {
    pub fn find(&self, sample: &str) -> Option<f64> {
        self.0.get(sample).copied()
    }

    pub fn get(&self, sample: &str) -> f64 {
        self.find(sample).unwrap_or_else(|| panic!("no {sample} in {:#?}", self.0))
    }

    /// How much these have grown since.
    #[track_caller]
    pub fn grew(&self, since: &Self, expected: &[(&str, f64)]) {
        for (sample, by) in expected {
            assert_eq!(self.get(sample) - since.get(sample), *by, "{sample}");
        }
    }
}

/// Asks for `/metrics` and reads the answer.
pub fn scrape(address: SocketAddr) -> Samples {
    parse(&fetch(address))
}

pub fn fetch(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert!(!head.to_lowercase().contains("chunked"), "it is read as it is: {head}");
    text.into()
}

/// Asks Prometheus's own tool, too. `text` is one that [`parse`] takes.
pub fn lint(text: &str) {
    let find = || {
        let folders = std::env::var_os("PATH")?;
        std::env::split_paths(&folders).map(|folder| folder.join("promtool")).find(|path: &PathBuf| path.is_file())
    };
    let Some(promtool) = servers::program("promtool", "prometheus", find) else { return };
    let mut tool = Command::new(promtool);
    tool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tool = tool.spawn().expect("promtool runs");
    tool.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads");
    let output = tool.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

/// Panics at whatever is not as the format or its conventions have it.
pub fn parse(text: &str) -> Samples {
    assert!(text.ends_with('\n'), "the last line has an end");
    let mut samples = BTreeMap::new();
    let mut families = BTreeSet::new();
    // The family whose samples may come: name, kind.
    let mut family: Option<(String, String)> = None;
    let mut helped: Option<String> = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and a help");
            assert!(help.trim() == help && help.len() > 5, "{line}");
            assert!(families.insert(name.to_owned()), "twice: {name}");
            helped = Some(name.into());
            family = None;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a kind");
            assert_eq!(helped.as_deref(), Some(name), "help comes first");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(name.starts_with("ado_") && name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'), "{name}");
            family = Some((name.into(), kind.into()));
        } else {
            let (name, kind) = family.as_ref().unwrap_or_else(|| panic!("of no family: {line}"));
            let (sample, value) = line.rsplit_once(' ').expect("a sample and a value");
            let (own, labels) = sample.split_once('{').unwrap_or((sample, ""));
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            let suffix = own.strip_prefix(name.as_str()).unwrap_or_else(|| panic!("not of {name}: {line}"));
            assert!(suffixes.contains(&suffix), "{line}");
            check_labels(labels, suffix == "_bucket");
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            assert!(kind == "gauge" || value >= 0.0, "{line}");
            assert!(samples.insert(sample.to_owned(), value).is_none(), "twice: {sample}");
        }
    }
    check_histograms(&samples);
    Samples(samples)
}

fn check_labels(labels: &str, is_bucket: bool) {
    if labels.is_empty() {
        assert!(!is_bucket);
        return;
    }
    let labels = labels.strip_suffix("\"}").unwrap_or_else(|| panic!("not closed: {labels}"));
    let mut names = BTreeSet::new();
    for label in labels.split("\",") {
        let (name, value) = label.split_once("=\"").unwrap_or_else(|| panic!("no label: {label}"));
        assert!(!name.is_empty() && name.bytes().all(|c| c.is_ascii_lowercase() || c == b'_'), "{label}");
        assert!(!value.contains(['"', '\\']), "none of ours has one: {label}");
        assert!(names.insert(name), "twice: {name}");
        // What there may be any number of has no place in a label.
        assert!(!value.starts_with("task-") && uuid::Uuid::parse_str(value).is_err(), "{label}");
    }
    assert_eq!(names.contains("le"), is_bucket);
}

/// Buckets hold all below their bound, and the last one holds all.
fn check_histograms(samples: &BTreeMap<String, f64>) {
    let mut buckets: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for (sample, count) in samples {
        if let Some((name, bound)) = sample.split_once("_bucket{le=\"") {
            let bound = bound.trim_end_matches("\"}").replace("+Inf", "inf").parse().expect("a bound");
            buckets.entry(name).or_default().push((bound, *count));
        }
    }
    for (name, mut all) in buckets {
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(all.is_sorted_by(|a, b| a.1 <= b.1), "{name}: {all:?}");
        assert_eq!(all.last(), Some(&(f64::INFINITY, samples[&format!("{name}_count")])), "{name}");
        assert!(samples.contains_key(&format!("{name}_sum")), "{name}");
    }
}
