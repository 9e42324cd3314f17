//! What a viewer's records look like on stdout and stderr. Pure: a record goes in, bytes to write come out.

use std::io::{self, Write};

use ado_proto::record::{Body, Record, Stream};
use ado_proto::{Epoch, Offset, Origin, TaskId};

use super::filter::Filter;
use super::lifecycle::line;
use super::output::Format;
use crate::json::Events;

/// Bytes to write, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    pieces: Vec<(Stream, Vec<u8>)>,
    weight: usize,
}

impl Batch {
    /// Bytes in it.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    /// Writes it to the process's own streams. Blocks while the reader does not read.
    pub(crate) fn write(&self) -> io::Result<()> {
        for (stream, bytes) in &self.pieces {
            match stream {
                Stream::Stdout => {
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(bytes)?;
                    stdout.flush()?;
                }
                Stream::Stderr => io::stderr().lock().write_all(bytes)?,
            }
        }
        Ok(())
    }

    /// Adds a line to stdout.
    pub(crate) fn line(&mut self, text: &str) {
        self.add(Stream::Stdout, |out| {
            out.extend_from_slice(text.as_bytes());
            out.push(b'\n');
        });
    }

    fn piece(&mut self, stream: Stream) -> &mut Vec<u8> {
        if self.pieces.last().is_none_or(|(last, _)| *last != stream) {
            self.pieces.push((stream, Vec::new()));
        }
        &mut self.pieces.last_mut().expect("one was just made").1
    }

    fn add(&mut self, stream: Stream, write: impl FnOnce(&mut Vec<u8>)) {
        let piece = self.piece(stream);
        let before = piece.len();
        write(piece);
        let after = piece.len();
        self.weight += after - before;
        if after == 0 {
            self.pieces.pop();
        }
    }
}

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
    /// Which lines about the task are told.
    pub(crate) lines: Lines,
    /// Only this stream's output.
    pub(crate) stream: Option<Stream>,
    /// Only output of this epoch.
    pub(crate) epoch: Option<Epoch>,
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

/// Turns the steps of one task's log into bytes.
#[derive(Debug)]
pub(crate) struct Painter {
    task: TaskId,
    look: Look,
    events: Events,
    filters: [Filter; 2],
    /// Whether the terminal's cursor is at the beginning of a line.
    at_line_start: bool,
}

impl Painter {
    pub(crate) fn new(task: TaskId, worker: Option<String>, look: Look) -> Self {
        Self { task, look, events: Events::new(task, worker), filters: Default::default(), at_line_start: true }
    }

    /// Adds what a record looks like.
    pub(crate) fn record(&mut self, record: &Record, batch: &mut Batch) {
        if !self.wants(record) {
            return;
        }
        match (&record.body, self.look.format) {
            (_, Format::Json) => batch.add(Stream::Stdout, |out| self.events.write(record, out)),
            (Body::Output(output), Format::Text) => self.output(output.stream, &output.data, batch),
            (_, Format::Text) => {
                if let Some(line) = line(self.task, record) {
                    self.line(&line.text, line.matters, batch);
                }
            }
        }
    }

    /// Adds a line of our own about the task.
    pub(crate) fn notice(&mut self, text: &str, matters: bool, batch: &mut Batch) {
        if self.look.format == Format::Text {
            self.line(text, matters, batch);
        }
    }

    /// Adds word of a log that begins anew.
    pub(crate) fn reset(&mut self, generation: u64, batch: &mut Batch) {
        match self.look.format {
            Format::Json => batch.add(Stream::Stdout, |out| self.events.write_reset(generation, out)),
            Format::Text => {
                let text =
                    format!("{}: the log was restored from a backup; it follows from its start", self.task.short());
                self.line(&text, true, batch);
            }
        }
    }

    /// Adds word that the viewer leaves and how to continue, at `next`: it is told whatever was asked for, on stderr.
    pub(crate) fn farewell(&mut self, next: Option<Offset>, command: &str, batch: &mut Batch) {
        self.finish(batch);
        match self.look.format {
            Format::Json => batch.add(Stream::Stderr, |out| self.events.write_detached(next, command, out)),
            Format::Text => {
                self.look.lines = Lines::Fitting;
                // The terminal has echoed what the user typed.
                self.at_line_start = false;
                self.line(&format!("detached: the task goes on; continue with\n  {command}"), true, batch);
            }
        }
    }

    /// Adds what leaves the terminal as it was found.
    pub(crate) fn finish(&mut self, batch: &mut Batch) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            batch.add(stream, |out| self.filters[index(stream)].reset_colours(out));
        }
    }

    fn wants(&self, record: &Record) -> bool {
        let Body::Output(output) = &record.body else { return true };
        let of_epoch = match (self.look.epoch, record.origin) {
            (Some(wanted), Origin::Worker { epoch, .. }) => wanted == epoch,
            _ => true,
        };
        of_epoch && self.look.stream.is_none_or(|stream| stream == output.stream)
    }

    fn output(&mut self, stream: Stream, data: &[u8], batch: &mut Batch) {
        let terminal = self.is_terminal(stream);
        let filter = (terminal && !self.look.raw).then_some(&mut self.filters[index(stream)]);
        batch.add(stream, |out| match filter {
            Some(filter) => filter.push(data, out),
            None => out.extend_from_slice(data),
        });
        if terminal && let Some(last) = data.last() {
            self.at_line_start = *last == b'\n';
        }
    }

    /// A line on stderr: on a line of its own, in its own colours.
    fn line(&mut self, text: &str, matters: bool, batch: &mut Batch) {
        let told = match self.look.lines {
            Lines::Fitting => matters || self.look.stderr_terminal,
            Lines::Mattering => matters,
            Lines::None => false,
        };
        if !told {
            return;
        }
        if self.look.stderr_terminal {
            self.finish(batch);
        }
        let fresh = !self.look.stderr_terminal || std::mem::replace(&mut self.at_line_start, true);
        batch.add(Stream::Stderr, |out| {
            if !fresh {
                out.push(b'\n');
            }
            out.extend_from_slice(text.as_bytes());
            out.push(b'\n');
        });
    }

    fn is_terminal(&self, stream: Stream) -> bool {
        match stream {
            Stream::Stdout => self.look.stdout_terminal,
            Stream::Stderr => self.look.stderr_terminal,
        }
    }
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::record::{Assigned, Note, Output};
    use ado_proto::{Seq, Timestamp, WorkerId};
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
        let mut batch = Batch::default();
        for record in records {
            painter.record(record, &mut batch);
        }
        painter.finish(&mut batch);
        assert_eq!(batch.weight(), batch.pieces.iter().map(|(_, bytes)| bytes.len()).sum::<usize>());
        let text = |(stream, bytes)| (1 + index(stream) as u8, String::from_utf8(bytes).unwrap());
        batch.pieces.into_iter().map(text).collect()
    }

    fn expected(pieces: &[(u8, &str)]) -> Vec<(u8, String)> {
        pieces.iter().map(|(stream, text)| (*stream, (*text).into())).collect()
    }

    const TERMINAL: Look = Look {
        format: Format::Text,
        stdout_terminal: true,
        stderr_terminal: true,
        raw: false,
        lines: Lines::Fitting,
        stream: None,
        epoch: None,
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
                (2, "\ntask-0000000007: disk low\n"),
                (1, "done\n"),
                (2, "task-0000000007: disk fine\n"),
            ]),
        );
        let raw = Look { raw: true, lines: Lines::None, ..TERMINAL };
        assert_eq!(painted(raw, &records), expected(&[(1, "\x1b]0;x\x07\x1b[31mreddone\n")]));
    }

    #[test]
    fn one_stream_or_one_epoch() {
        let records =
            [output(1, Stream::Stdout, b"a"), output(2, Stream::Stdout, b"b"), output(2, Stream::Stderr, b"c")];
        let stderr = Look { stream: Some(Stream::Stderr), ..Look::default() };
        assert_eq!(painted(stderr, &records), expected(&[(2, "c")]));
        let last = Look { epoch: Some(Epoch(2)), ..Look::default() };
        assert_eq!(painted(last, &records), expected(&[(1, "b"), (2, "c")]));
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
