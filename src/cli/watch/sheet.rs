//! What goes to this process's own stdout and stderr, in order; with a footer that never stays in its way.
//!
//! The footer is drawn only where a line begins, and the cursor is left at its first character: one sequence erases all of
//! it, however wide the terminal has become meanwhile. Pure, but for [`Batch::write`].

use std::io::{self, Write};
use std::time::Duration;

use ado_proto::record::Stream;
use tokio::time::Instant;

use super::pen::Pen;

/// Shortest time between two drawings of a footer: who reads cannot follow more.
const REDRAW: Duration = Duration::from_millis(100);

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

    /// The bytes, and where they go.
    #[cfg(test)]
    pub(crate) fn pieces(&self) -> &[(Stream, Vec<u8>)] {
        &self.pieces
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
                Stream::Stderr | Stream::Tool => io::stderr().lock().write_all(bytes)?,
            }
        }
        Ok(())
    }

    fn add(&mut self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.pieces.last().is_none_or(|(last, _)| *last != stream) {
            self.pieces.push((stream, Vec::new()));
        }
        self.pieces.last_mut().expect("one was just made").1.extend_from_slice(bytes);
        self.weight += bytes.len();
    }
}

/// Who writes on a line of its own: a member of a group and one of its streams.
pub(crate) type Speaker = (u32, Stream);

/// What the process's streams have been told so far.
#[derive(Debug, Default)]
pub(crate) struct Sheet {
    batch: Batch,
    terminal: [bool; 2],
    /// Bytes of tasks may hold any sequence.
    raw: bool,
    pen: Pen,
    /// Whose line is not ended, on each stream; of two streams that are one terminal the first.
    open: [Option<Speaker>; 2],
    footer: Vec<String>,
    drawn_at: Option<Instant>,
}

impl Sheet {
    /// An empty one: whether stdout and stderr are terminals, and whether tasks may write anything there.
    pub(crate) fn new(terminal: [bool; 2], raw: bool) -> Self {
        Self { terminal, raw, ..Self::default() }
    }

    /// What is to be written now.
    pub(crate) fn take(&mut self) -> Batch {
        std::mem::take(&mut self.batch)
    }

    /// Bytes to be written now.
    pub(crate) fn weight(&self) -> usize {
        self.batch.weight
    }

    /// Adds bytes as they are.
    pub(crate) fn output(&mut self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.terminal[index(stream)] {
            self.erase();
            if self.raw { self.pen.saw_raw(bytes) } else { self.pen.saw(bytes) }
        }
        self.batch.add(stream, bytes);
    }

    /// Adds a line, or a part of one, of one of several that write at once: each line begins with the writer's prefix.
    pub(crate) fn spoken(&mut self, who: Speaker, prefix: &str, text: &[u8]) {
        let (stream, place) = (who.1, self.place(who.1));
        if self.open[place] != Some(who) {
            self.end_line(stream);
            self.output(stream, prefix.as_bytes());
        }
        self.output(stream, text);
        self.open[place] = (!text.ends_with(b"\n")).then_some(who);
    }

    /// Ends the line that is open where the stream goes, if one is.
    pub(crate) fn end_line(&mut self, stream: Stream) {
        let place = self.place(stream);
        let open = self.open[place].take().is_some();
        if if self.terminal[index(stream)] { !self.pen.at_line_start() } else { open } {
            self.output(stream, b"\n");
        }
    }

    /// Adds a line of our own on stderr: in its own colours, and on a terminal on a line of its own.
    pub(crate) fn say(&mut self, text: &str) {
        let colours = self.pen.colours().to_vec();
        let coloured = self.terminal[1] && !colours.is_empty();
        if coloured {
            self.output(self.terminal_stream(), b"\x1b[0m");
        }
        self.end_line(Stream::Stderr);
        self.output(Stream::Stderr, format!("{text}\n").as_bytes());
        if coloured {
            self.output(Stream::Stderr, &colours);
        }
    }

    /// The cursor is no longer where it was: the terminal has shown what somebody typed.
    pub(crate) fn disturbed(&mut self) {
        self.pen.saw_raw(b"^C");
    }

    /// Leaves the terminal as it was found: without a footer, in its own colours.
    pub(crate) fn finish(&mut self) {
        self.erase();
        if !self.pen.colours().is_empty() {
            self.output(self.terminal_stream(), b"\x1b[0m");
        }
    }

    /// Whether a footer may be drawn: not on a line that is open, and not a moment after the last one.
    pub(crate) fn may_draw(&self, now: Instant) -> bool {
        self.pen.at_line_start() && self.drawn_at.is_none_or(|drawn_at| now >= drawn_at + REDRAW)
    }

    /// Shows these lines under the output, each no wider than the terminal, where [`Self::may_draw`] allows it.
    pub(crate) fn draw(&mut self, footer: &[String], now: Instant) {
        if self.may_draw(now) && self.footer != footer {
            self.draw_now(footer);
            self.drawn_at = Some(now);
        }
    }

    /// Shows these lines at once, on lines of their own.
    pub(crate) fn ask(&mut self, footer: &[String]) {
        self.end_line(Stream::Stderr);
        if self.footer != footer {
            self.draw_now(footer);
        }
    }

    /// Removes the footer.
    pub(crate) fn erase(&mut self) {
        if !std::mem::take(&mut self.footer).is_empty() {
            self.batch.add(Stream::Stderr, b"\r\x1b[J");
            self.batch.add(Stream::Stderr, self.pen.colours());
        }
    }

    fn draw_now(&mut self, footer: &[String]) {
        if self.footer.is_empty() && !self.pen.colours().is_empty() {
            self.batch.add(Stream::Stderr, b"\x1b[0m");
        }
        // Over what is there: nothing flickers.
        let text = format!("\r{}\x1b[J\r", footer.join("\x1b[K\r\n"));
        self.batch.add(Stream::Stderr, text.as_bytes());
        if footer.len() > 1 {
            self.batch.add(Stream::Stderr, format!("\x1b[{}A", footer.len() - 1).as_bytes());
        }
        self.footer = footer.to_vec();
    }

    fn place(&self, stream: Stream) -> usize {
        if self.terminal == [true; 2] { 0 } else { index(stream) }
    }

    fn terminal_stream(&self) -> Stream {
        if self.terminal[0] { Stream::Stdout } else { Stream::Stderr }
    }
}

/// Place of a stream in a pair: where it goes. What tools write is no answer, so it goes to stderr.
pub(crate) fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr | Stream::Tool => 1,
    }
}
