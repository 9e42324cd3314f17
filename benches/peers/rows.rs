//! What is measured: the rows of the table.

use std::io;
use std::process::Stdio;
use std::sync::Mutex;

use crate::generator::{LINE, sleep_until};
use crate::lines::{Line, monotonic_ns};
use crate::peer::{Agent, Idle, Peer, Running, own};
use crate::stats::{Tally, percentile};

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Row {
    Line,
    Lines50,
    Random,
    Zeros,
    Flood,
    Spawn,
    SpawnWarm,
    List,
    Noop,
    True,
    Queue,
    QueueStart,
    Memory,
}

/// How much of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// How long lines are written on schedule, seconds.
    seconds: u64,
    /// How many write at a time in the row of 50.
    many: usize,
    /// How long after the start of a single writer its first line is due, and of many, nanoseconds.
    begin_after: u64,
    begin_many_after: u64,
    bulk_bytes: u64,
    flood_lines: u64,
    starts: usize,
    noops: u32,
    trues: u32,
    idle_workers: u32,
}

impl Size {
    pub(crate) fn full() -> Self {
        Self {
            seconds: 4,
            many: 50,
            begin_after: 1_000_000_000,
            begin_many_after: 4_000_000_000,
            bulk_bytes: 256_000_000,
            flood_lines: 1_000_000,
            starts: 40,
            noops: 1000,
            trues: 200,
            idle_workers: 1000,
        }
    }

    pub(crate) fn quick() -> Self {
        Self {
            seconds: 1,
            many: 5,
            begin_after: 500_000_000,
            begin_many_after: 1_000_000_000,
            bulk_bytes: 8_000_000,
            flood_lines: 20_000,
            starts: 3,
            noops: 50,
            trues: 10,
            idle_workers: 10,
        }
    }
}

/// What one peer did in one repetition.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    /// Name, unit, value.
    pub(crate) figures: Vec<(&'static str, &'static str, f64)>,
    /// Latencies behind the figures, milliseconds, sorted.
    pub(crate) samples: Vec<f64>,
}

impl Row {
    pub(crate) fn all() -> Vec<Self> {
        <Self as clap::ValueEnum>::value_variants().to_vec()
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Line => "line latency, 1 x 1,000/s",
            Self::Lines50 => "line latency, 50 x 100/s",
            Self::Random => "bulk of one task, random bytes",
            Self::Zeros => "bulk of one task, zeros",
            Self::Flood => "lines of one task, a write each",
            Self::Spawn => "command started -> program runs",
            Self::SpawnWarm => "asked in a live session -> program runs",
            Self::List => "list, whole process",
            Self::Noop => "tasks that do nothing (embedded SQLite)",
            Self::True => "tasks that run `true` (embedded SQLite)",
            Self::Queue => "tasks that do nothing, through PostgreSQL or Redis",
            Self::QueueStart => "queued in PostgreSQL or Redis -> runs",
            Self::Memory => "idle workers, at their controller",
        }
    }

    pub(crate) fn measure(self, peer: &dyn Peer, size: &Size) -> io::Result<Measured> {
        match self {
            Self::Queue => one("rate", "tasks/s", peer.queued_per_second(size.noops)?),
            Self::QueueStart => queued_starts(peer, size.starts),
            _ if !peer.runs_programs() => none(),
            Self::Line => {
                let argv = emit(size.begin_after, 1000, size.seconds);
                latencies(vec![peer.start(&argv)?], 1000 * size.seconds)
            }
            Self::Lines50 => {
                let argv = emit(size.begin_many_after, 100, size.seconds);
                let running = peer.start_many(&argv, size.many)?;
                running.map_or_else(none, |running| latencies(running, 100 * size.seconds * size.many as u64))
            }
            Self::Random | Self::Zeros if !peer.is_binary() => none(),
            Self::Random => {
                bulk(peer.start(&own(&["flood", "random", &size.bulk_bytes.to_string()]))?, size.bulk_bytes)
            }
            Self::Zeros => bulk(peer.start(&own(&["flood", "zeros", &size.bulk_bytes.to_string()]))?, size.bulk_bytes),
            Self::Flood => {
                flood(peer.start(&own(&["flood", "lines", &size.flood_lines.to_string()]))?, size.flood_lines)
            }
            Self::Spawn => starts((0..peer.starts(size.starts)).map(|_| peer.spawn().map(Some))),
            Self::SpawnWarm => starts((0..peer.starts(size.starts)).map(|_| peer.spawn_warm())),
            Self::List => starts((0..peer.starts(size.starts)).map(|_| list(peer))),
            Self::Noop => one("rate", "tasks/s", peer.tasks_per_second(Agent::Noop, size.noops)?),
            Self::True => one("rate", "tasks/s", peer.tasks_per_second(Agent::True, size.trues)?),
            Self::Memory => {
                let idle = peer.idle_workers(size.idle_workers)?;
                let figures = |idle: Idle| vec![("each", "KiB", idle.kib), ("all", "% of a CPU", idle.cpu)];
                Ok(Measured { figures: idle.map(figures).unwrap_or_default(), samples: Vec::new() })
            }
        }
    }
}

fn none() -> io::Result<Measured> {
    Ok(Measured::default())
}

fn one(name: &'static str, unit: &'static str, value: Option<f64>) -> io::Result<Measured> {
    Ok(Measured { figures: value.map(|value| (name, unit, value)).into_iter().collect(), samples: Vec::new() })
}

fn emit(after: u64, rate: u64, seconds: u64) -> Vec<String> {
    let (at, rate, count) = ((monotonic_ns() + after).to_string(), rate.to_string(), (rate * seconds).to_string());
    own(&["emit", &at, &rate, &count, "100"])
}

/// How long lines took, of all writers together.
fn latencies(running: Vec<Running>, expected: u64) -> io::Result<Measured> {
    let all = Mutex::new((Vec::new(), 0));
    let read = |running: Running| {
        let mut took = Vec::new();
        let mut tallies = std::collections::BTreeMap::<u32, Tally>::new();
        running.read_lines(|line, at| {
            if let Some(line) = Line::parse(line) {
                took.push(at.saturating_sub(line.sent));
                tallies.entry(line.stream).or_default().saw(line.seq);
            }
        })?;
        let mut all = all.lock().expect("nobody panics with it");
        all.0.extend(took);
        all.1 += tallies.values().map(Tally::repeated).sum::<u64>();
        io::Result::Ok(())
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = running.into_iter().map(|running| scope.spawn(|| read(running))).collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("a reader does not panic"))
    })?;
    let (mut sorted, repeated) = all.into_inner().expect("nobody panicked with it");
    sorted.sort_unstable();
    let lost = (expected + repeated).saturating_sub(sorted.len() as u64);
    let mut measured = distribution(&sorted);
    measured.figures.push(("lost + repeated", "lines", (lost + repeated) as f64));
    Ok(measured)
}

fn distribution(sorted: &[u64]) -> Measured {
    let ms = |ns: u64| ns as f64 / 1e6;
    let at = |percent| ms(percentile(sorted, percent));
    Measured {
        figures: vec![("p50", "ms", at(50.0)), ("p99", "ms", at(99.0)), ("max", "ms", at(100.0))],
        samples: sorted.iter().map(|ns| ms(*ns)).collect(),
    }
}

/// Bytes a second between the first piece and the last.
fn bulk(running: Running, bytes: u64) -> io::Result<Measured> {
    let (mut first, mut last, mut came) = (None, 0, 0);
    running.read(|piece, at| {
        first.get_or_insert(at);
        (last, came) = (at, came + piece.len() as u64);
    })?;
    if came != bytes {
        return Err(io::Error::other(format!("{came} bytes came of {bytes}")));
    }
    let seconds = last.saturating_sub(first.unwrap_or(last)).max(1) as f64 / 1e9;
    one("rate", "MB/s", Some(bytes as f64 / 1e6 / seconds))
}

fn flood(running: Running, lines: u64) -> io::Result<Measured> {
    let (mut first, mut last, mut came) = (None, 0, 0);
    running.read(|piece, at| {
        first.get_or_insert(at);
        (last, came) = (at, came + piece.len() as u64);
    })?;
    if came != lines * LINE as u64 {
        return Err(io::Error::other(format!("{came} bytes came of {}", lines * LINE as u64)));
    }
    let seconds = last.saturating_sub(first.unwrap_or(last)).max(1) as f64 / 1e9;
    one("rate", "lines/s", Some(lines as f64 / seconds))
}

fn starts(each: impl Iterator<Item = io::Result<Option<(u64, u64)>>>) -> io::Result<Measured> {
    let mut sorted = Vec::new();
    for start in each {
        let Some((asked, began)) = start? else { return none() };
        sorted.push(began.saturating_sub(asked));
        // A moment for what the last one left to be cleaned up: they are measured one at a time.
        sleep_until(monotonic_ns() + 20_000_000);
    }
    sorted.sort_unstable();
    Ok(distribution(&sorted))
}

fn queued_starts(peer: &dyn Peer, count: usize) -> io::Result<Measured> {
    let Some(starts) = peer.queued_starts(count)? else { return none() };
    let mut sorted: Vec<_> = starts.into_iter().map(|(asked, began)| began.saturating_sub(asked)).collect();
    sorted.sort_unstable();
    Ok(distribution(&sorted))
}

fn list(peer: &dyn Peer) -> io::Result<Option<(u64, u64)>> {
    let Some(mut command) = peer.list() else { return Ok(None) };
    let begun = monotonic_ns();
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if status.success() { Ok(Some((begun, monotonic_ns()))) } else { Err(io::Error::other("it cannot list")) }
}
