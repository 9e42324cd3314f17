//! What must be true of a task, whoever died: judged from its log, what the database holds of it, what its agents wrote down
//! by themselves, and what viewers saw.
//!
//! Pure. Must not know: how evidence is gathered, nor the product's own fold, which is among what is judged.

#![allow(dead_code, unreachable_pub, reason = "included by several test binaries, each of which uses a part")]

mod journal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Display;

use ado_proto::record::{Body, Desired, Outcome, Record, Stream};
use ado_proto::spec::Exit;
use ado_proto::{Epoch, Offset, Origin, TaskId};

pub use journal::{AGENT, Journal};

/// Everything that is known of one task.
pub struct Evidence {
    pub task: TaskId,
    /// As a viewer reads it.
    pub log: Vec<Record>,
    /// The same, read from the tables.
    pub stored: Vec<Record>,
    /// The store's row of it, and the fold of its log.
    pub rows: Option<(ado::task::Task, ado::task::Task)>,
    /// What the agents wrote down on their disk.
    pub journal: Journal,
    /// What viewers saw, each from where it began, over all its lives.
    pub views: Vec<View>,
    /// What `logs --final` wrote to stdout.
    pub survived: Option<Vec<u8>>,
    /// A guard of it was stopped or killed: outside of what is recorded, two of its agents may have met.
    pub unguarded: bool,
}

/// What one viewer saw.
pub struct View {
    pub from: u64,
    pub seen: Vec<Seen>,
}

/// One record as a viewer's JSON shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub offset: u64,
    /// Only of output.
    pub data: Option<Vec<u8>>,
}

impl Seen {
    pub fn of(record: &Record) -> Self {
        let data = match &record.body {
            Body::Output(output) => Some(output.data.to_vec()),
            _ => None,
        };
        Self { offset: record.offset.0, data }
    }
}

/// What is wrong, for people.
#[derive(Debug, Default)]
pub struct Findings(pub Vec<String>);

impl Findings {
    fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.0.push(what());
        }
    }

    fn equal<T: PartialEq + Display>(&mut self, what: &str, found: T, expected: T) {
        self.check(found == expected, || format!("{what}: {found} where {expected} is due"));
    }
}

/// What a log says of one epoch.
#[derive(Debug)]
struct EpochSeen {
    epoch: Epoch,
    /// Offset of the checkpoint it goes on from.
    resumes: Option<Offset>,
    next_seq: u64,
    written: BTreeMap<Stream, Vec<u8>>,
    exit: Option<Exit>,
}

/// Where the walk along a log is.
#[derive(Debug, PartialEq)]
enum At {
    Nothing,
    Queued,
    Held,
    /// The attempt is over; what follows is due.
    Concluding,
    Ended(Outcome),
}

/// Judges one task.
pub fn judge(evidence: &Evidence) -> Vec<String> {
    let mut findings = Findings::default();
    let walk = Walk::along(&evidence.log, &mut findings);
    findings.check(matches!(walk.at, At::Ended(_)), || format!("no terminal state: it is {:?}", walk.at));
    same_log(&evidence.log, &evidence.stored, &mut findings);
    if let Some((row, fold)) = &evidence.rows {
        findings.check(row == fold, || format!("the row is not the fold of the log: {row:?}, not {fold:?}"));
    }
    for epoch in &walk.epochs {
        wrote_what_its_agent_wrote(epoch, &evidence.journal, &mut findings);
    }
    findings.0.extend(evidence.journal.strangers(&walk.epochs.iter().map(|epoch| epoch.epoch.0).collect::<Vec<_>>()));
    if !evidence.unguarded {
        findings.0.extend(evidence.journal.meetings());
    }
    kept_what_was_acknowledged(&evidence.log, &evidence.journal, &mut findings);
    let surviving = surviving(&walk, &evidence.log, &evidence.journal, &mut findings);
    if let (Some(survived), Some(expected), At::Ended(Outcome::Completed)) = (&evidence.survived, surviving, walk.at) {
        findings.check(*survived == expected, || difference("logs --final", survived, &expected));
    }
    for view in &evidence.views {
        saw_each_once(view, &evidence.log, &mut findings);
    }
    findings.0
}

/// Judges what was accepted as a whole: each submission is the tasks it was answered with, and nothing else is there.
pub fn judge_submissions(
    accepted: &[Vec<TaskId>],
    repeated: &[(Vec<TaskId>, Vec<TaskId>)],
    there: &[TaskId],
) -> Vec<String> {
    let mut findings = Findings::default();
    let mut known: Vec<_> = accepted.iter().flatten().copied().collect();
    known.sort();
    let mut once = known.clone();
    once.dedup();
    findings.equal("tasks that were accepted", once.len(), known.len());
    let mut there = there.to_vec();
    there.sort();
    for lost in known.iter().filter(|task| there.binary_search(task).is_err()) {
        findings.0.push(format!("{lost} was accepted and is not there"));
    }
    for more in there.iter().filter(|task| known.binary_search(task).is_err()) {
        findings.0.push(format!("{more} is there, and nobody was told: a submission happened twice"));
    }
    for (first, again) in repeated {
        findings.check(first == again, || format!("a repeated submission was answered {again:?}, first {first:?}"));
    }
    findings.0
}

struct Walk {
    at: At,
    epochs: Vec<EpochSeen>,
}

impl Walk {
    /// Offsets, seqs, epochs and what may follow what.
    fn along(log: &[Record], findings: &mut Findings) -> Self {
        let mut walk = Self { at: At::Nothing, epochs: Vec::new() };
        let mut time = i64::MIN;
        let mut checkpoint = None;
        let mut cancelled = false;
        for (place, record) in log.iter().enumerate() {
            findings.equal("offset", record.offset.0, place as u64);
            findings.check(record.time.0 >= time, || format!("time falls at offset {place}"));
            time = record.time.0;
            findings.check(!matches!(walk.at, At::Ended(_)), || format!("a record after the end, at offset {place}"));
            match record.origin {
                Origin::Worker { epoch, seq } => walk.worker(record, epoch, seq.0, findings),
                Origin::Controller => walk.controller(record, checkpoint, &mut cancelled, findings),
            }
            if let Body::Checkpointed(_) = record.body {
                checkpoint = Some(record.offset);
            }
        }
        walk
    }

    /// Only the holder of the current epoch speaks, and says everything once in order.
    fn worker(&mut self, record: &Record, epoch: Epoch, seq: u64, findings: &mut Findings) {
        let offset = record.offset;
        if self.at != At::Held {
            findings
                .0
                .push(format!("a stale write was accepted: epoch {epoch} at offset {offset}, when nobody held it"));
        }
        let Some(current) = self.epochs.last_mut() else {
            return findings.0.push(format!("epoch {epoch} speaks at offset {offset} and was never assigned"));
        };
        if current.epoch != epoch {
            let now = current.epoch;
            findings.0.push(format!("a stale write was accepted: epoch {epoch} at offset {offset}, in epoch {now}"));
            return;
        }
        findings.equal(&format!("seq of epoch {epoch} at offset {offset}"), seq, current.next_seq);
        current.next_seq = seq + 1;
        match &record.body {
            Body::Output(output) => {
                let written = current.written.entry(output.stream).or_default();
                let what = format!("position in epoch {epoch} at offset {offset}");
                findings.equal(&what, output.position, written.len() as u64);
                written.extend_from_slice(&output.data);
            }
            Body::Exited(exited) => {
                current.exit = Some(exited.exit.clone());
                self.at = At::Concluding;
            }
            _ => {}
        }
    }

    fn controller(
        &mut self,
        record: &Record,
        checkpoint: Option<Offset>,
        cancelled: &mut bool,
        findings: &mut Findings,
    ) {
        let offset = record.offset;
        let mut seam = |holds: bool, what: &str| {
            findings.check(holds, || format!("{what} at offset {offset}, where it has no place"));
        };
        match &record.body {
            Body::Submitted(_) => {
                seam(self.at == At::Nothing, "submitted");
                self.at = At::Queued;
            }
            Body::Assigned(assigned) => {
                seam(self.at == At::Queued, "assigned");
                let last = self.epochs.last().map_or(0, |last| last.epoch.0);
                seam(assigned.epoch.0 > last, "an epoch that does not rise");
                let expected = checkpoint.map_or("none".into(), |at: Offset| at.to_string());
                let found = assigned.resumes.map_or("none".into(), |at: Offset| at.to_string());
                findings.equal(&format!("checkpoint that epoch {} goes on from", assigned.epoch), found, expected);
                self.at = At::Held;
                self.epochs.push(EpochSeen {
                    epoch: assigned.epoch,
                    resumes: assigned.resumes,
                    next_seq: 0,
                    written: BTreeMap::new(),
                    exit: None,
                });
            }
            Body::WorkerLost(lost) => {
                let current = self.epochs.last().map(|last| last.epoch);
                seam(self.at == At::Held && current == Some(lost.epoch), "worker_lost");
                self.at = At::Concluding;
            }
            Body::Requeued(_) => {
                seam(self.at == At::Concluding, "requeued");
                self.at = At::Queued;
            }
            Body::Ended(ended) => {
                seam(self.at == At::Concluding || (self.at == At::Queued && *cancelled), "the end");
                let exit = self.epochs.last().and_then(|last| last.exit.as_ref());
                let well = exit.is_some_and(Exit::is_success);
                seam(ended.outcome != Outcome::Completed || well, "completed without an exit of 0");
                self.at = At::Ended(ended.outcome);
            }
            Body::DesiredChanged(change) => *cancelled |= change.desired == Desired::Cancelled,
            Body::Started(_) | Body::Exited(_) | Body::Output(_) | Body::Checkpointed(_) | Body::Progress(_) => {
                seam(false, "a worker's record without its epoch");
            }
            Body::Truncated(_) | Body::Skipped(_) => seam(false, "a gap"),
            _ => {}
        }
    }
}

fn same_log(log: &[Record], stored: &[Record], findings: &mut Findings) {
    findings.equal("records in the tables", stored.len(), log.len());
    if let Some((seen, kept)) = log.iter().zip(stored).find(|(seen, kept)| seen != kept) {
        findings.0.push(format!("at offset {} the tables hold {kept:?}, a reader was sent {seen:?}", seen.offset));
    }
}

/// Byte for byte a prefix of what the agent wrote; all of it, where the agent's own end is in the log.
fn wrote_what_its_agent_wrote(seen: &EpochSeen, journal: &Journal, findings: &mut Findings) {
    for stream in [Stream::Stdout, Stream::Stderr] {
        let written = seen.written.get(&stream).map_or(&[][..], Vec::as_slice);
        let (sure, may_be) = journal.wrote(seen.epoch.0, stream);
        let what = format!("{stream:?} of epoch {}", seen.epoch);
        findings.check(may_be.starts_with(written), || difference(&what, written, &may_be));
        let least = match &seen.exit {
            Some(Exit::Code(0)) => may_be.len(),
            // It notes a deed before it does it: killed in between, it did one less.
            Some(Exit::Code(_) | Exit::Signal(_)) => sure.len(),
            _ => 0,
        };
        findings.check(written.len() >= least, || {
            format!("{what}: {} bytes are in the log, its agent wrote {least} before it ended", written.len())
        });
    }
}

/// Whoever was told that a checkpoint is kept finds it in the log.
fn kept_what_was_acknowledged(log: &[Record], journal: &Journal, findings: &mut Findings) {
    let mut kept = Vec::new();
    for record in log {
        if let (Body::Checkpointed(made), Origin::Worker { epoch, .. }) = (&record.body, record.origin) {
            kept.push((epoch.0, made.data.trim().to_owned()));
        }
    }
    for (epoch, number) in journal.acknowledged() {
        findings.check(kept.contains(&(epoch, number.to_string())), || {
            format!("checkpoint {number} of epoch {epoch} was acknowledged and is not in the log")
        });
    }
}

/// What the agents that counted wrote to stdout, each up to the checkpoint the next one went on from, by their own account.
fn surviving(walk: &Walk, log: &[Record], journal: &Journal, findings: &mut Findings) -> Option<Vec<u8>> {
    let mut parts = Vec::new();
    let mut epoch = walk.epochs.last()?;
    let mut until = None;
    loop {
        parts.push(journal.between(epoch.epoch.0, until));
        let began = journal.began(epoch.epoch.0);
        let Some(at) = epoch.resumes else {
            findings.check(began.is_none_or(|began| began == 0), || {
                format!("epoch {} began at {began:?} without a checkpoint", epoch.epoch)
            });
            break;
        };
        let record = log.get(usize::try_from(at.0).ok()?)?;
        let (Body::Checkpointed(made), Origin::Worker { epoch: maker, .. }) = (&record.body, record.origin) else {
            findings.0.push(format!("epoch {} goes on from offset {at}, which is no checkpoint", epoch.epoch));
            return None;
        };
        let number: u64 = made.data.trim().parse().ok()?;
        findings.check(began.is_none_or(|began| began == number), || {
            format!("epoch {} began at {began:?}, its checkpoint says {number}", epoch.epoch)
        });
        until = Some(number);
        epoch = walk.epochs.iter().find(|earlier| earlier.epoch == maker)?;
    }
    parts.reverse();
    Some(parts.concat())
}

fn saw_each_once(view: &View, log: &[Record], findings: &mut Findings) {
    let from = usize::try_from(view.from).unwrap_or(usize::MAX).min(log.len());
    let due: Vec<_> = log[from..].iter().map(Seen::of).collect();
    if view.seen == due {
        return;
    }
    let at = view.seen.iter().zip(&due).take_while(|(seen, due)| seen == due).count();
    let offset = |list: &[Seen]| list.get(at).map(|seen| seen.offset);
    findings.0.push(format!(
        "a viewer from {} saw {} records of {}; after {at} it saw offset {:?} where {:?} is due",
        view.from,
        view.seen.len(),
        due.len(),
        offset(&view.seen),
        offset(&due),
    ));
}

fn difference(what: &str, found: &[u8], expected: &[u8]) -> String {
    let at = found.iter().zip(expected).take_while(|(found, expected)| found == expected).count();
    let part = |bytes: &[u8]| String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 60)]).into_owned();
    format!(
        "{what}: {} bytes, {} are due; at byte {at} {:?} where {:?} is due",
        found.len(),
        expected.len(),
        part(found),
        part(expected)
    )
}
