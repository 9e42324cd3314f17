//! `ado events`: what happened to the fleet and to tasks.

use std::collections::{BTreeSet, VecDeque};
use std::io::ErrorKind;
use std::time::Duration;

use ado_proto::request::{Events, EventsFrom, ListEvents, SystemEvent};
use ado_proto::{TaskId, Timestamp};

use super::Global;
use super::columns::{self, Column, Scene, Side, Table};
use super::complete;
use super::error::{Error, Kind};
use super::observe;
use super::output::{Format, scene, write};
use super::session::{App, Session};
use super::signals::Signals;
use super::values::{self, Since};
use crate::config::Flags;
use crate::json;
use crate::json::rfc3339;

/// Most events of one request.
const PAGE: u32 = 1000;
/// How long a request waits for an event, milliseconds.
const LONG_POLL: u32 = 20_000;
/// Between two requests that brought nothing.
const BREATH: Duration = Duration::from_millis(100);

/// Show what happened to workers and tasks
///
/// Events are kept for 7 days. With `--output json`: one object a line; its `cursor` is where `--from` goes on.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ado events --follow --kind 'worker.*'     what happens to workers from now on\n  ado events --task nightly --from start    all that happened to a task\n  ado events --since 1h -o json"
)]
pub(crate) struct Args {
    /// Begin this many events before the end
    #[arg(long, value_name = "EVENTS", default_value_t = 100)]
    tail: u32,
    /// Begin this long ago (10m) or at this instant (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = values::since, conflicts_with = "tail")]
    since: Option<Since>,
    /// Go on after this cursor, or from the `start`
    #[arg(long, value_name = "CURSOR|start", value_parser = cursor, conflicts_with_all = ["tail", "since"])]
    from: Option<u64>,
    /// Stay for more
    #[arg(long, short)]
    follow: bool,
    /// Only events about this task, or about tasks of this group
    #[arg(long, value_name = "TASK", add = complete::tasks())]
    task: Option<String>,
    /// Only events of these kinds; `*` stands for anything: task.*
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<String>,
    /// Show these columns
    #[arg(long, value_name = "COLUMN", value_delimiter = ',', value_parser = columns::names(&COLUMNS))]
    columns: Vec<String>,
    /// Leave out the line with the names of the columns
    #[arg(long)]
    no_headers: bool,
}

/// `start`, or a cursor.
fn cursor(text: &str) -> Result<u64, String> {
    if text == "start" {
        return Ok(0);
    }
    text.parse().map_err(|_| format!("`{text}` is neither a cursor nor `start`"))
}

const DEFAULT: [&str; 3] = ["time", "kind", "message"];

static COLUMNS: [Column<SystemEvent>; 6] = [
    // A second is close enough for people.
    column("time", "TIME", 20, |event, _| rfc3339(Timestamp(event.time.0 - event.time.0.rem_euclid(1_000_000)))),
    column("cursor", "CURSOR", 8, |event, _| event.cursor.to_string()),
    column("kind", "KIND", 18, |event, _| event.kind.clone()),
    column("task", "TASK", 15, |event, _| event.task.map_or("-".into(), TaskId::short)),
    column("worker", "WORKER", 36, |event, _| event.worker.map_or("-".into(), |worker| worker.to_string())),
    column("message", "MESSAGE", 20, |event, _| event.text.clone()),
];

const fn column(
    name: &'static str,
    head: &'static str,
    least: usize,
    cell: fn(&SystemEvent, Timestamp) -> String,
) -> Column<SystemEvent> {
    Column { name, head, side: Side::Left, least, most: least, rank: 0, cell, colour: |_| None }
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let filter = Filter::new(&session, &args).await?;
    let now = app.env.now();
    let mut reader = Reader {
        session: &session,
        people: app.global.output == Format::Text && !app.global.quiet,
        printer: Printer {
            format: app.global.output,
            table: Table::new(&COLUMNS, &args.columns, &DEFAULT),
            scene: scene(now),
            heads: !args.no_headers,
            printed: 0,
        },
        seen: None,
    };
    let mut signals = Signals::catch()?;
    session.stay();
    let read = tokio::select! {
        biased;
        _ = signals.next() => Ok(()),
        read = reader.read(&args, &filter, now) => read,
        () = session.taken_down() => Err(observe::taken_down()),
    };
    if let (Some(cursor), true) = (reader.seen, args.follow) {
        let command = session.command(&format!("events --follow --from {cursor}"));
        if let Err(error) = read {
            return Err(error.hint(command));
        }
        if reader.people {
            eprintln!("go on with: {command}");
        }
    } else {
        read?;
    }
    if reader.people && reader.printer.printed == 0 && !args.follow {
        eprintln!("no events");
    }
    session.close().await;
    Ok(0)
}

/// Which events are meant.
#[derive(Debug, Default)]
struct Filter {
    /// `None`: about anything.
    tasks: Option<BTreeSet<TaskId>>,
    kinds: Vec<String>,
}

impl Filter {
    async fn new(session: &Session, args: &Args) -> Result<Self, Error> {
        let tasks = match &args.task {
            Some(reference) => {
                Some(session.client.tasks(reference).await?.into_iter().map(|task| task.id).collect::<BTreeSet<_>>())
            }
            None => None,
        };
        Ok(Self { tasks, kinds: args.kind.clone() })
    }

    fn is_empty(&self) -> bool {
        self.tasks.is_none() && self.kinds.is_empty()
    }

    fn fits(&self, event: &SystemEvent) -> bool {
        let about = self.tasks.as_ref().is_none_or(|tasks| event.task.is_some_and(|task| tasks.contains(&task)));
        about && (self.kinds.is_empty() || self.kinds.iter().any(|kind| matches(kind, &event.kind)))
    }
}

/// Whether `text` is as `pattern` says, in which `*` stands for any characters.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(first) else { return false };
    (0..=text.len()).filter(|at| text.is_char_boundary(*at)).any(|at| matches(rest, &text[at..]))
}

struct Reader<'a> {
    session: &'a Session,
    /// Whether words to people are wanted.
    people: bool,
    printer: Printer,
    /// Cursor of the last event that was read and, if wanted, printed.
    seen: Option<u64>,
}

impl Reader<'_> {
    /// Ends at the end unless it is to stay, or when nobody reads any more.
    async fn read(&mut self, args: &Args, filter: &Filter, now: Timestamp) -> Result<(), Error> {
        let (mut from, mut newest) = begin(args, filter, now);
        let mut at_end = false;
        loop {
            let wait_ms = if at_end { LONG_POLL } else { 0 };
            let page = self.page(&ListEvents { from, limit: PAGE, wait_ms }, args.follow).await?;
            from = EventsFrom::After(page.next);
            at_end |= page.events.is_empty();
            let empty = page.events.is_empty();
            let fitting = page.events.into_iter().filter(|event| filter.fits(event));
            let goes_on = match &mut newest {
                None => self.printer.print(fitting)?,
                Some(newest) => {
                    newest.extend(fitting);
                    newest.drain(..newest.len().saturating_sub(args.tail as usize));
                    // Only now is it known which are the last.
                    !at_end || self.printer.print(newest.drain(..))?
                }
            };
            if at_end {
                newest = None;
            }
            self.seen = Some(page.next);
            if !goes_on || at_end && !args.follow {
                return Ok(());
            }
            if empty {
                tokio::time::sleep(BREATH).await;
            }
        }
    }

    /// One page. Whoever stays outlives any network: the cursor brings back what was missed.
    async fn page(&self, request: &ListEvents, stays: bool) -> Result<Events, Error> {
        let mut told = false;
        loop {
            match self.session.client.events(request).await {
                Err(error) if stays && error.is_transient() => {
                    if self.people && !told {
                        eprintln!("connection lost: waiting for it");
                        told = true;
                    }
                    tokio::time::sleep(BREATH).await;
                }
                page => {
                    if told {
                        eprintln!("connected");
                    }
                    return Ok(page?);
                }
            }
        }
    }
}

/// Where to begin; and where the newest that fit are gathered first, as the controller cannot count them.
fn begin(args: &Args, filter: &Filter, now: Timestamp) -> (EventsFrom, Option<VecDeque<SystemEvent>>) {
    match (args.from, args.since) {
        (Some(cursor), _) => (EventsFrom::After(cursor), None),
        (_, Some(since)) => (EventsFrom::Since(since.at(now)), None),
        (None, None) if filter.is_empty() => (EventsFrom::Tail(args.tail), None),
        (None, None) => (EventsFrom::After(0), Some(VecDeque::new())),
    }
}

struct Printer {
    format: Format,
    table: Table<SystemEvent>,
    scene: Scene,
    /// Whether the line of heads is still to come.
    heads: bool,
    /// Events so far.
    printed: u64,
}

impl Printer {
    /// `false`: nobody reads any more.
    fn print(&mut self, events: impl Iterator<Item = SystemEvent>) -> Result<bool, Error> {
        let mut text = String::new();
        for event in events {
            self.printed += 1;
            text += &match self.format {
                Format::Json => format!("{}\n", json::system_event(&event)),
                Format::Text => self.table.render_row(&event, self.scene),
            };
        }
        if text.is_empty() {
            return Ok(true);
        }
        if std::mem::take(&mut self.heads) && self.format == Format::Text {
            text.insert_str(0, &self.table.render_heads(self.scene));
        }
        match write(&text) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            result => {
                result.map(|()| true).map_err(|error| Error::new(Kind::Local, "cannot write the output").because(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use uuid::Uuid;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Args {
        Line::try_parse_from(std::iter::once(&"events").chain(line)).unwrap().args
    }

    fn event(kind: &str, task: Option<u128>) -> SystemEvent {
        let task = task.map(|n| TaskId(Uuid::from_u128(n)));
        let text = "task-0000000007 failed\u{1b}[2J".into();
        SystemEvent { cursor: 4, time: Timestamp(1_500_000), kind: kind.into(), task, worker: None, text }
    }

    #[test]
    fn kinds_are_patterns() {
        for (pattern, kind, fits) in [
            ("task.*", "task.ended", true),
            ("task.*", "worker.lost", false),
            ("*.lost", "worker.lost", true),
            ("*", "anything", true),
            ("*o*r*", "worker", true),
            ("task", "task.ended", false),
            ("task.ended", "task.ended", true),
            ("", "task.ended", false),
        ] {
            assert_eq!(matches(pattern, kind), fits, "{pattern} {kind}");
        }
    }

    #[test]
    fn filters_are_joined() {
        let filter =
            Filter { tasks: Some([TaskId(Uuid::from_u128(7))].into()), kinds: vec!["task.*".into(), "x".into()] };
        assert!(filter.fits(&event("task.ended", Some(7))) && filter.fits(&event("x", Some(7))));
        assert!(!filter.fits(&event("task.ended", Some(8))) && !filter.fits(&event("task.ended", None)));
        assert!(!filter.fits(&event("worker.lost", Some(7))) && Filter::default().fits(&event("any", None)));
    }

    #[test]
    fn where_reading_begins() {
        let now = Timestamp(3_600_000_000);
        let begin = |line: &[&str], filter: &Filter| {
            let (from, newest) = super::begin(&args(line), filter, now);
            (from, newest.is_some())
        };
        let (all, some) = (Filter::default(), Filter { tasks: None, kinds: vec!["task.*".into()] });
        assert_eq!(begin(&[], &all), (EventsFrom::Tail(100), false));
        assert_eq!(begin(&["--tail", "3"], &all), (EventsFrom::Tail(3), false));
        assert_eq!(begin(&["--tail", "3"], &some), (EventsFrom::After(0), true), "the newest 3 that fit");
        assert_eq!(begin(&["--from", "start"], &some), (EventsFrom::After(0), false));
        assert_eq!(begin(&["--from", "17"], &all), (EventsFrom::After(17), false));
        assert_eq!(begin(&["--since", "10m"], &some), (EventsFrom::Since(Timestamp(3_000_000_000)), false));
    }

    #[test]
    fn a_row_cannot_steer_the_terminal() {
        let table = Table::new(&COLUMNS, &[], &DEFAULT);
        let scene = Scene { now: Timestamp(0), width: 80, colours: false };
        assert_eq!(
            table.render_heads(scene) + &table.render_row(&event("task.ended", Some(7)), scene),
            "TIME                  KIND                MESSAGE\n\
             1970-01-01T00:00:01Z  task.ended          task-0000000007 failed\u{fffd}[2J\n",
        );
    }
}
