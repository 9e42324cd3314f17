//! What a viewer's records look like on stdout and stderr. Pure: a record goes in, bytes to write come out.

use ado_proto::record::{Body, Ended, Outcome, Record, Stream};
use ado_proto::{Offset, TaskId};

use super::super::filter::Filter;
use super::super::lifecycle::words;
use super::super::output::Format;
use super::sheet::{Sheet, index};
use super::voice::Voice;
use crate::json::Events;

/// What is shown, and how.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Look {
    /// Text or events.
    pub(crate) format: Format,
    /// Whether stdout is a terminal.
    pub(crate) stdout_terminal: bool,
    /// Whether stderr is a terminal.
    pub(crate) stderr_terminal: bool,
    /// Bytes as they are even on a terminal.
    pub(crate) raw: bool,
    /// Whether our own text may be coloured on a terminal.
    pub(crate) colour: bool,
    /// Whether a terminal may get a line that changes in place.
    pub(crate) status: bool,
    /// Which lines about the task are told.
    pub(crate) lines: Lines,
    /// Only this stream's output.
    pub(crate) stream: Option<Stream>,
}

/// Which lines about the task are told on stderr.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Lines {
    /// On a terminal all of them, elsewhere those that matter.
    #[default]
    Fitting,
    /// Those that matter.
    Mattering,
    /// None.
    None,
}

impl Look {
    /// Whether stdout and stderr are terminals.
    pub(crate) fn terminals(&self) -> [bool; 2] {
        [self.stdout_terminal, self.stderr_terminal]
    }

    /// Whether a task's bytes are kept from steering the terminal a stream goes to.
    fn filters(&self) -> [bool; 2] {
        self.terminals().map(|terminal| terminal && !self.raw)
    }
}

/// Turns the steps of one task's log into bytes.
#[derive(Debug)]
pub(crate) struct Painter {
    task: TaskId,
    look: Look,
    events: Events,
    filters: [Filter; 2],
    /// `None` for who is alone.
    voice: Option<Voice>,
    /// Reused from event to event.
    event: Vec<u8>,
}

impl Painter {
    /// Of one task, held by `worker` where reading begins.
    pub(crate) fn new(task: TaskId, worker: Option<String>, look: Look) -> Self {
        Self {
            task,
            look,
            events: Events::new(task, worker),
            filters: Default::default(),
            voice: None,
            event: Vec::new(),
        }
    }

    /// As one of several: the member `index` of `count`.
    #[must_use]
    pub(crate) fn among(mut self, index: u32, count: u32) -> Self {
        self.voice = Some(Voice::new(index, count, self.look.filters(), self.look.colour));
        self
    }

    /// Adds what a record looks like.
    pub(crate) fn record(&mut self, record: &Record, sheet: &mut Sheet) {
        if !self.wants(record) {
            return;
        }
        match (&record.body, self.look.format) {
            (_, Format::Json) => {
                self.event.clear();
                self.events.write(record, &mut self.event);
                sheet.output(Stream::Stdout, &self.event);
            }
            (Body::Output(output), Format::Text) => self.output(shown_on(output.stream), &output.data, sheet),
            (body, Format::Text) => {
                if let (Body::Ended(_), Some(voice)) = (body, &mut self.voice) {
                    voice.finish(sheet);
                }
                if let Some((words, matters)) = words(record) {
                    self.say(&words, matters || self.is_news(body), sheet);
                }
            }
        }
    }

    /// Adds a line of our own about the task.
    pub(crate) fn notice(&mut self, words: &str, matters: bool, sheet: &mut Sheet) {
        if self.look.format == Format::Text {
            self.say(words, matters, sheet);
        }
    }

    /// Adds word of a log that begins anew.
    pub(crate) fn reset(&mut self, generation: u64, sheet: &mut Sheet) {
        match self.look.format {
            Format::Json => {
                let mut line = Vec::new();
                self.events.write_reset(generation, &mut line);
                sheet.output(Stream::Stdout, &line);
            }
            Format::Text => self.say("the log was restored from a backup; it follows from its start", true, sheet),
        }
    }

    /// Adds the event, for programs, of a viewer that leaves: `command` continues at `next`.
    pub(crate) fn left(&self, next: Option<Offset>, command: &str, sheet: &mut Sheet) {
        let mut line = Vec::new();
        self.events.write_detached(next, command, &mut line);
        sheet.output(Stream::Stderr, &line);
    }

    /// Whether output of this stream is held back until its line ends.
    pub(crate) fn holds(&self, stream: Stream) -> bool {
        self.voice.as_ref().is_some_and(|voice| voice.holds(shown_on(stream)))
    }

    /// Time passes.
    pub(crate) fn tick(&mut self, sheet: &mut Sheet) {
        if let Some(voice) = &mut self.voice {
            voice.tick(sheet);
        }
    }

    /// Nothing more will be shown of the task: adds what was held back.
    pub(crate) fn finish(&mut self, sheet: &mut Sheet) {
        if let Some(voice) = &mut self.voice {
            voice.finish(sheet);
        }
    }

    fn wants(&self, record: &Record) -> bool {
        let Body::Output(output) = &record.body else { return true };
        self.look.stream.is_none_or(|stream| stream == output.stream)
    }

    /// What is told of one of several tasks on a terminal, though it is no surprise: the footer tells the rest.
    fn is_news(&self, body: &Body) -> bool {
        let ended_badly = matches!(body, Body::Ended(Ended { outcome: Outcome::Failed | Outcome::Cancelled, .. }));
        self.voice.is_some() && self.look.stderr_terminal && self.look.lines == Lines::Fitting && ended_badly
    }

    fn output(&mut self, stream: Stream, data: &[u8], sheet: &mut Sheet) {
        let mut filtered = Vec::new();
        let data = match self.look.filters()[index(stream)] {
            true => {
                self.filters[index(stream)].push(data, &mut filtered);
                filtered.as_slice()
            }
            false => data,
        };
        match &mut self.voice {
            Some(voice) => voice.write(stream, data, sheet),
            None => sheet.output(stream, data),
        }
    }

    fn say(&mut self, words: &str, matters: bool, sheet: &mut Sheet) {
        let told = match self.look.lines {
            Lines::Fitting => matters || (self.look.stderr_terminal && self.voice.is_none()),
            Lines::Mattering => matters,
            Lines::None => false,
        };
        match &self.voice {
            _ if !told => {}
            Some(voice) => voice.say(words, sheet),
            None => sheet.say(&format!("{}: {words}", self.task.short())),
        }
    }
}

/// Where output is shown: only an agent's own words are on stdout.
fn shown_on(stream: Stream) -> Stream {
    match stream {
        Stream::Stdout => Stream::Stdout,
        Stream::Stderr | Stream::Tool => Stream::Stderr,
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Assigned, Note, Output};
    use ado_proto::{Epoch, Origin, Seq, Timestamp, WorkerId};
    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;

    fn output(epoch: u64, stream: Stream, data: &[u8]) -> Record {
        Record {
            offset: Offset(3),
            origin: Origin::Worker { epoch: Epoch(epoch), seq: Seq(0) },
            time: Timestamp(0),
            body: Output { stream, position: 0, data: Bytes::copy_from_slice(data) }.into(),
        }
    }

    fn own(body: impl Into<Body>) -> Record {
        Record { offset: Offset(3), origin: Origin::Controller, time: Timestamp(0), body: body.into() }
    }

    fn assigned() -> Record {
        own(Assigned {
            worker: WorkerId(Uuid::nil()),
            worker_name: "w".into(),
            epoch: Epoch(1),
            attempt: 1,
            resumes: None,
        })
    }

    /// What is written, in order: `1` for stdout, `2` for stderr.
    fn painted(look: Look, records: &[Record]) -> Vec<(u8, String)> {
        let mut painter = Painter::new(TaskId(Uuid::from_u128(7)), None, look);
        let mut sheet = Sheet::new(look.terminals(), look.raw);
        for record in records {
            painter.record(record, &mut sheet);
        }
        painter.finish(&mut sheet);
        sheet.finish();
        let batch = sheet.take();
        assert_eq!(batch.weight(), batch.pieces().iter().map(|(_, bytes)| bytes.len()).sum::<usize>());
        let text =
            |(stream, bytes): &(Stream, Vec<u8>)| (1 + index(*stream) as u8, String::from_utf8(bytes.clone()).unwrap());
        batch.pieces().iter().map(text).collect()
    }

    fn expected(pieces: &[(u8, &str)]) -> Vec<(u8, String)> {
        pieces.iter().map(|(stream, text)| (*stream, (*text).into())).collect()
    }

    const TERMINAL: Look = Look {
        format: Format::Text,
        stdout_terminal: true,
        stderr_terminal: true,
        raw: false,
        colour: false,
        status: false,
        lines: Lines::Fitting,
        stream: None,
    };

    #[test]
    fn pipes_get_the_bytes_and_what_matters() {
        let records = [
            assigned(),
            output(1, Stream::Stdout, b"\x1b]0;x\x07one "),
            output(1, Stream::Stdout, b"line"),
            output(1, Stream::Stderr, b"oops"),
            own(Note { text: "disk low".into() }),
        ];
        assert_eq!(
            painted(Look::default(), &records),
            expected(&[(1, "\x1b]0;x\x07one line"), (2, "oopstask-0000000007: disk low\n")]),
        );
        let quiet = Look { lines: Lines::None, ..Look::default() };
        assert_eq!(painted(quiet, &records), expected(&[(1, "\x1b]0;x\x07one line"), (2, "oops")]));
    }

    #[test]
    fn a_terminal_gets_whole_lines_and_no_controls() {
        let records = [
            assigned(),
            output(1, Stream::Stdout, b"\x1b]0;x\x07\x1b[31mred"),
            own(Note { text: "disk low".into() }),
            output(1, Stream::Stdout, b"done\n"),
            own(Note { text: "disk fine".into() }),
        ];
        assert_eq!(
            painted(TERMINAL, &records),
            expected(&[
                (2, "task-0000000007: assigned to w\n"),
                (1, "\x1b[31mred\x1b[0m"),
                (2, "\ntask-0000000007: disk low\n\x1b[31m"),
                (1, "done\n\x1b[0m"),
                (2, "task-0000000007: disk fine\n\x1b[31m"),
                (1, "\x1b[0m"),
            ]),
        );
        let raw = Look { raw: true, lines: Lines::None, ..TERMINAL };
        assert_eq!(painted(raw, &records), expected(&[(1, "\x1b]0;x\x07\x1b[31mreddone\n")]));
    }

    #[test]
    fn one_stream() {
        let records =
            [output(1, Stream::Stdout, b"a"), output(2, Stream::Stdout, b"b"), output(2, Stream::Stderr, b"c")];
        let stderr = Look { stream: Some(Stream::Stderr), ..Look::default() };
        assert_eq!(painted(stderr, &records), expected(&[(2, "c")]));
    }

    #[test]
    fn events_are_lines_on_stdout() {
        let json = Look { format: Format::Json, ..TERMINAL };
        let pieces = painted(json, &[assigned(), output(1, Stream::Stderr, b"x")]);
        assert_eq!(pieces.len(), 1);
        let types: Vec<_> = pieces[0]
            .1
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["type"].clone())
            .collect();
        assert_eq!(types, ["assigned", "output"]);
    }
}
