//! `ado bench latency`: does output arrive in time, on the path this user has?

use std::time::Duration;

use ado_proto::record::{Body, Desired, Ended, Outcome, Record, Stream};
use ado_proto::request::{StartAt, Submit};
use ado_proto::spec::{Exit, Input, TaskSpec};
use ado_proto::{Offset, TaskId, WorkerId};
use futures_util::future::join_all;
use tokio::time::Instant;

use super::lines::{self, Line};
use super::report::{Method, Report};
use super::stats::{Tally, median, spread};
use crate::cli::Global;
use crate::cli::error::{Error, Kind};
use crate::cli::output::{Format, print};
use crate::cli::session::{App, Session};
use crate::cli::signals::Signals;
use crate::cli::values;
use crate::client::{self, Client, Step};
use crate::config::Flags;

/// Most lines in all: they are kept in memory, 16 bytes each.
const MOST_LINES: u64 = 10_000_000;
/// Requests whose median is the round trip.
const ROUND_TRIPS: usize = 21;
/// How much longer than planned the tasks may run.
const GRACE: Duration = Duration::from_secs(60);
/// Exit code when the target is missed.
const MISSED: u8 = 1;

/// Measure how long lines take from a task to here
///
/// Runs a task that writes lines on schedule, reads them as `attach` does, and says how long they took; exits with 1 when
/// the p99 is above the target, or a line is lost or repeated. Clocks of two machines are never compared: where the task
/// runs elsewhere, the figures are an estimate and marked as one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write this many lines a second
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Measure for this long
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    duration: Duration,
    /// Make lines this long, with their newline
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=32_768))]
    size: u32,
    /// Measure this many tasks at a time; there should be slots for all of them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    workers: u32,
    /// Want the p99 below this
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = values::duration)]
    target: Duration,
    /// Run it on workers of this pool
    #[arg(long, value_name = "NAME", default_value = "default")]
    pool: String,
    /// Run it on workers with this label
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    label: Vec<(String, String)>,
    /// Call ado by this name on the worker; default: `ado`, or this very program on this machine
    #[arg(long, value_name = "PROGRAM")]
    program: Option<String>,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let lines = lines_of(&args)?;
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let program = program(&args, session.is_local())?;
    let controller = round_trip(&session.client).await?;
    let mut signals = Signals::catch()?;
    let submit = Submit { name: None, specs: vec![spec(&args, &program, lines)], copies: args.workers };
    let submitted = session.client.submit(&submit, session.client.request_id()).await?;
    if app.global.output == Format::Text && !app.global.quiet {
        let waits = if submitted.eligible_workers == 0 && !session.is_local() { " once a worker takes it" } else { "" };
        eprintln!("measuring for {:?}{waits}", args.duration);
    }
    let listening = join_all(submitted.tasks.iter().map(|task| listen(&session, *task)));
    let heard = tokio::select! {
        biased;
        _ = signals.next() => {
            cancel(&session, &submitted.tasks).await;
            return Err(Error::new(Kind::Interrupted, "stopped before the end; the tasks were cancelled"));
        }
        heard = listening => heard.into_iter().collect::<Result<Vec<_>, _>>()?,
    };
    for heard in &heard {
        heard.check(&session, &program)?;
    }
    let worker = farthest(&session.client, &heard).await?;
    session.close().await;
    let report = report(&args, lines, &heard, controller, worker);
    print(app.global.output, &report.json(), || report.text())?;
    Ok(if report.is_met() { 0 } else { MISSED })
}

/// Lines of each task.
fn lines_of(args: &Args) -> Result<u64, Error> {
    let lines = (args.duration.as_secs_f64() * f64::from(args.rate)).ceil() as u64;
    if lines == 0 {
        return Err(Error::usage("--duration: nothing is measured in no time"));
    }
    if lines.saturating_mul(args.workers.into()) > MOST_LINES {
        let message = format!("{lines} lines from each of {} tasks are more than {MOST_LINES}", args.workers);
        return Err(Error::usage(message).hint("ado bench latency --duration 10s"));
    }
    Ok(lines)
}

/// How the task calls ado.
fn program(args: &Args, local: bool) -> Result<String, Error> {
    match &args.program {
        Some(program) => Ok(program.clone()),
        None if !local => Ok("ado".into()),
        None => {
            let here = std::env::current_exe();
            let here = here.map_err(|error| Error::new(Kind::Local, "cannot find this program").because(error))?;
            let text = here.to_str().ok_or_else(|| Error::usage(format!("`{}` is not UTF-8", here.display())));
            text.map(Into::into)
        }
    }
}

fn spec(args: &Args, program: &str, lines: u64) -> TaskSpec {
    let emit = [program, "bench", "emit", "--rate", &args.rate.to_string(), "--lines", &lines.to_string(), "--size"];
    let argv = emit.into_iter().map(Into::into).chain([args.size.to_string()]).collect();
    TaskSpec {
        time_limit_ms: u64::try_from((args.duration + GRACE).as_millis()).ok(),
        pool: args.pool.clone(),
        labels: args.label.iter().cloned().collect(),
        ..TaskSpec::new("shell", Input::Argv(argv))
    }
}

/// The median round trip of a request that the controller answers at once.
async fn round_trip(client: &Client) -> Result<Duration, Error> {
    // The first waits for the connection.
    client.hello().await?;
    let mut trips = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let asked = Instant::now();
        client.hello().await?;
        trips.push(asked.elapsed().as_secs_f64());
    }
    Ok(Duration::from_secs_f64(median(&trips)))
}

async fn cancel(session: &Session, tasks: &[TaskId]) {
    let cancel = |task: &TaskId| {
        let (client, task) = (session.client.clone(), task.to_string());
        async move { client.set_desired(&task, Desired::Cancelled, true).await.map(drop) }
    };
    for result in join_all(tasks.iter().map(cancel)).await {
        if let Err(error) = result {
            tracing::warn!(%error, "a task goes on");
        }
    }
}

/// The longest round trip between the controller and a worker that ran one of the tasks.
async fn farthest(client: &Client, heard: &[Heard]) -> Result<Option<Duration>, Error> {
    let workers = client.workers(None).await?;
    let ran = workers.iter().filter(|worker| heard.iter().any(|heard| heard.worker == Some(worker.id)));
    Ok(ran.filter_map(|worker| worker.rtt_us).max().map(Duration::from_micros))
}

fn report(args: &Args, lines: u64, heard: &[Heard], controller: Duration, worker: Option<Duration>) -> Report {
    let here = lines::clock_id();
    let one_clock = here.is_some() && heard.iter().all(|heard| heard.clock == here);
    let fastest = u64::try_from(Report::fastest(controller, worker).as_nanos()).unwrap_or(u64::MAX);
    // Each task may be on a machine of its own, so the fastest line is looked for in each.
    let latencies = heard.iter().flat_map(|heard| match one_clock {
        true => heard.took.iter().map(|took| u64::try_from(*took).unwrap_or(0)).collect(),
        false => spread(&heard.took, fastest),
    });
    let mut sorted: Vec<u64> = latencies.collect();
    sorted.sort_unstable();
    Report {
        tasks: args.workers,
        rate: args.rate,
        size: args.size as usize,
        sorted,
        method: if one_clock { Method::OneClock } else { Method::Estimate },
        lost: heard.iter().map(|heard| heard.tally.lost(lines)).sum(),
        repeated: heard.iter().map(|heard| heard.tally.repeated()).sum(),
        restarts: heard.iter().map(|heard| heard.restarts).sum(),
        // One connection carries all of them.
        pauses: heard.iter().map(|heard| heard.pauses).max().unwrap_or(0),
        paused: heard.iter().map(|heard| heard.paused).max().unwrap_or_default(),
        controller,
        worker,
        target: args.target,
    }
}

/// What came of one task.
#[derive(Debug)]
struct Heard {
    task: TaskId,
    /// Reading here minus stamp there, nanoseconds; of the last attempt.
    took: Vec<i128>,
    tally: Tally,
    /// Which clock the stamps are of.
    clock: Option<String>,
    worker: Option<WorkerId>,
    restarts: u64,
    pauses: u64,
    paused: Duration,
    ended: Option<Ended>,
    /// The line that has not ended yet.
    partial: Vec<u8>,
}

async fn listen(session: &Session, task: TaskId) -> Result<Heard, client::Error> {
    let mut stream = session.client.follow(task, StartAt::Offset(Offset(0)), true);
    let mut heard = Heard::new(task);
    let mut away = None;
    while let Some(step) = stream.next().await {
        match step? {
            Step::Record(record) => heard.record(record, lines::monotonic_ns()),
            Step::Paused { since } => (away, heard.pauses) = (Some(since), heard.pauses + 1),
            Step::Resumed => heard.paused += away.take().map(|since| since.elapsed()).unwrap_or_default(),
            // The log begins anew, and so does what is counted.
            Step::Reset { .. } => heard = Heard::new(task),
            Step::Detached { .. } | Step::End => break,
        }
    }
    Ok(heard)
}

impl Heard {
    fn new(task: TaskId) -> Self {
        Self {
            task,
            took: Vec::new(),
            tally: Tally::default(),
            clock: None,
            worker: None,
            restarts: 0,
            pauses: 0,
            paused: Duration::ZERO,
            ended: None,
            partial: Vec::new(),
        }
    }

    fn record(&mut self, record: Record, at: u64) {
        match record.body {
            Body::Assigned(assigned) => {
                let before = self.worker.replace(assigned.worker);
                if before.is_some() {
                    (self.took, self.tally, self.clock) = (Vec::new(), Tally::default(), None);
                    self.partial.clear();
                    self.restarts += 1;
                }
            }
            Body::Output(output) if output.stream == Stream::Stdout => self.output(&output.data, at),
            Body::Ended(ended) => self.ended = Some(ended),
            _ => {}
        }
    }

    fn output(&mut self, data: &[u8], at: u64) {
        self.partial.extend_from_slice(data);
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else { return };
        let rest = self.partial.split_off(end + 1);
        let whole = std::mem::replace(&mut self.partial, rest);
        for line in whole.split(|byte| *byte == b'\n') {
            if let Some(line) = Line::parse(line) {
                self.tally.saw(line.seq);
                self.took.push(i128::from(at) - i128::from(line.sent));
            } else if let Some(clock) = lines::clock_of(line).filter(|clock| !clock.is_empty()) {
                self.clock = Some(clock.into());
            }
        }
    }

    /// Whether the task did what it was to do.
    fn check(&self, session: &Session, program: &str) -> Result<(), Error> {
        let Some(ended) = self.ended.as_ref().filter(|ended| ended.outcome != Outcome::Completed) else {
            return Ok(());
        };
        let said = ended.error.as_deref().unwrap_or("it was stopped");
        let error = Error::new(Kind::Local, format!("{}, which was to write the lines: {said}", self.task.short()));
        Err(match ended.exit {
            Some(Exit::NotStarted { .. }) => error
                .hint(session.command("bench latency --program /where/it/is/ado"))
                .hint(format!("install ado on the worker: it is called as `{program}`")),
            _ => error.hint(session.command(&format!("logs {}", self.task.short()))),
        })
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Assigned, Output};
    use ado_proto::{Epoch, Origin, Timestamp};
    use uuid::Uuid;

    use super::*;

    fn record(body: impl Into<Body>) -> Record {
        Record { offset: Offset(0), origin: Origin::Controller, time: Timestamp(0), body: body.into() }
    }

    fn assigned(worker: u128) -> Record {
        let worker = WorkerId(Uuid::from_u128(worker));
        record(Assigned { worker, worker_name: "box".into(), epoch: Epoch(1), attempt: 1, resumes: None })
    }

    fn output(text: &[u8]) -> Record {
        record(Output { stream: Stream::Stdout, position: 0, data: text.to_vec().into() })
    }

    fn line(seq: u64, sent: u64) -> Vec<u8> {
        let mut out = Vec::new();
        Line { stream: 0, seq, sent }.write(60, &mut out);
        out
    }

    #[test]
    fn lines_count_however_reads_cut_them() {
        let mut heard = Heard::new(TaskId(Uuid::nil()));
        heard.record(assigned(1), 0);
        let text = [b"@clock:boot/ns\n".to_vec(), line(0, 1000), line(1, 2000), line(2, 9_000)].concat();
        heard.record(output(&text[..100]), 5_000);
        heard.record(output(&text[100..]), 7_000);
        assert_eq!(heard.took, [4_000, 5_000, -2_000]);
        assert_eq!((heard.clock.as_deref(), heard.tally.lost(4), heard.tally.repeated()), (Some("boot/ns"), 1, 0));
    }

    #[test]
    fn an_attempt_that_was_lost_does_not_count() {
        let mut heard = Heard::new(TaskId(Uuid::nil()));
        heard.record(assigned(1), 0);
        heard.record(output(&[line(0, 1000), b"@ado:0:1".to_vec()].concat()), 5_000);
        heard.record(assigned(2), 0);
        heard.record(output(&[line(0, 1000), line(1, 1000)].concat()), 3_000);
        assert_eq!((heard.took.as_slice(), heard.restarts), ([2_000, 2_000].as_slice(), 1));
        assert_eq!((heard.tally.lost(2), heard.tally.repeated()), (0, 0));
    }
}
