//! What a terminal shows of a sheet: the footer is there when it may be, and never in the way.

use std::time::Duration;

use ado_proto::record::Stream;
use proptest::prelude::*;
use tokio::time::Instant;
use vt100::Parser;

use super::super::filter::Filter;
use super::sheet::Sheet;

/// Marks lines of footers, which no output of the tests holds.
const MARK: char = '#';

/// A terminal of 80 columns as it is set up by the system: a newline goes to the beginning of the next line.
struct Screen(Parser);

impl Screen {
    fn new(rows: u16) -> Self {
        Self(Parser::new(rows.try_into().unwrap(), 80.try_into().unwrap(), 10_000))
    }

    fn write(&mut self, sheet: &mut Sheet) {
        for (_, bytes) in sheet.take().pieces() {
            self.feed(bytes);
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.0.process(b"\r");
            }
            self.0.process(&[*byte]);
        }
    }

    /// All lines that were ever written, with their colours; those that scrolled away, too.
    fn history(&mut self) -> Vec<Vec<u8>> {
        let rows = usize::from(self.0.screen().size().0.get());
        self.0.screen_mut().set_scrollback(usize::MAX);
        let above = self.0.screen().scrollback();
        let mut lines = Vec::new();
        for back in (0..=above).rev() {
            self.0.screen_mut().set_scrollback(back);
            let wanted = if back == 0 { rows } else { 1 };
            lines.extend(self.0.screen().rows_formatted(0, 80).take(wanted).map(Vec::from));
        }
        self.0.screen_mut().set_scrollback(0);
        while lines.last().is_some_and(|line| line.is_empty()) {
            lines.pop();
        }
        lines
    }

    fn footers(&mut self) -> usize {
        let mark = u8::try_from(MARK).unwrap();
        self.history().iter().filter(|line| line.contains(&mark)).count()
    }
}

/// Something a task or the clock does.
#[derive(Debug, Clone)]
enum Event {
    Output(Stream, Vec<u8>),
    Say(String),
    Footer(usize),
    Later,
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => "[a-z ]{0,12}".prop_map(String::into_bytes),
        2 => Just(b"\n".to_vec()),
        1 => Just(b"\r".to_vec()),
        1 => Just(b"\t".to_vec()),
        1 => Just("漢字🦀e\u{301}".into()),
        1 => prop_oneof![Just(79), Just(80), Just(81), Just(160)].prop_map(|length| vec![b'w'; length]),
        1 => prop_oneof![Just("\x1b[31m"), Just("\x1b[0m"), Just("\x1b[7m"), Just("\x1b[0;44m")].prop_map(|text| text.as_bytes().to_vec()),
        1 => Just(b"\x1b[2J\x1b]0;title\x07\x1b[3A".to_vec()),
    ];
    proptest::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

fn event() -> impl Strategy<Value = Event> {
    let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
    prop_oneof![
        6 => (stream, text()).prop_map(|(stream, text)| Event::Output(stream, text)),
        1 => "[a-z]{1,100}".prop_map(Event::Say),
        3 => (0..10usize).prop_map(Event::Footer),
        3 => Just(Event::Later),
    ]
}

/// Plays the events, with footers or without.
fn play(events: &[Event], rows: u16, footers: bool, mut between: impl FnMut(&mut Screen)) -> Screen {
    let (mut screen, mut sheet) = (Screen::new(rows), Sheet::new([true; 2], false));
    let mut filters = [Filter::default(), Filter::default()];
    let mut now = Instant::now();
    for event in events {
        match event {
            Event::Output(stream, text) => {
                let mut shown = Vec::new();
                filters[super::sheet::index(*stream)].push(text, &mut shown);
                sheet.output(*stream, &shown);
            }
            Event::Say(text) => sheet.say(text),
            Event::Footer(lines) if footers => {
                // As wide as they may be: the last column stays free.
                let footer: Vec<_> = (0..*lines).map(|line| format!("{MARK}{line}{}", "f".repeat(77))).collect();
                if footer.is_empty() { sheet.erase() } else { sheet.draw(&footer, now) }
            }
            Event::Footer(_) => {}
            Event::Later => now += Duration::from_secs(1),
        }
        screen.write(&mut sheet);
        between(&mut screen);
    }
    sheet.finish();
    screen.write(&mut sheet);
    screen
}

proptest! {
    #[test]
    fn a_terminal_shows_the_same_as_without_a_footer(events in proptest::collection::vec(event(), 0..60)) {
        // The small one scrolls.
        for rows in [24, 200] {
            let mut most = 0;
            let mut with = play(&events, rows, true, |screen| most = most.max(screen.footers()));
            let mut without = play(&events, rows, false, |_| {});
            prop_assert!(most < 10, "{most} lines of footers at once");
            prop_assert_eq!(with.footers(), 0);
            let text = |lines: Vec<Vec<u8>>| lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect::<Vec<_>>();
            prop_assert_eq!(text(with.history()), text(without.history()));
        }
    }
}

fn footer(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| format!("{MARK} {line}")).collect()
}

#[test]
fn a_footer_is_under_the_output_and_moves_down_with_it() {
    let (mut screen, mut sheet, mut now) = (Screen::new(24), Sheet::new([true; 2], false), Instant::now());
    for number in 0..100 {
        now += Duration::from_secs(1);
        sheet.output(Stream::Stdout, format!("line {number}\n").as_bytes());
        sheet.draw(&footer(&["one", "two"]), now);
        screen.write(&mut sheet);
        assert_eq!(screen.footers(), 2, "after line {number}");
        let lines: Vec<_> = screen.0.screen().rows(0, 80).filter(|line| !line.is_empty()).collect();
        assert_eq!(lines[lines.len() - 3..], [format!("line {number}"), "# one".into(), "# two".into()]);
    }
    sheet.finish();
    screen.write(&mut sheet);
    assert_eq!(screen.footers(), 0);
    assert_eq!(screen.history().len(), 100);
}

#[test]
fn a_line_that_is_open_hides_it() {
    let (mut screen, mut sheet, now) = (Screen::new(24), Sheet::new([true; 2], false), Instant::now());
    sheet.output(Stream::Stdout, b"half a ");
    sheet.draw(&footer(&["one"]), now);
    screen.write(&mut sheet);
    assert_eq!((screen.footers(), screen.0.screen().contents().as_str()), (0, "half a "));
    sheet.output(Stream::Stdout, b"line\n");
    sheet.draw(&footer(&["one"]), now);
    screen.write(&mut sheet);
    assert_eq!(screen.0.screen().contents().trim_end(), "half a line\n# one");
}

#[test]
fn it_is_drawn_ten_times_a_second_at_most() {
    let (mut sheet, start) = (Sheet::new([true; 2], false), Instant::now());
    let mut drawn = 0;
    for millisecond in 0..1000 {
        sheet.output(Stream::Stdout, b"line\n");
        sheet.draw(&footer(&["one"]), start + Duration::from_millis(millisecond));
        let batch = sheet.take();
        drawn += batch.pieces().iter().filter(|(_, bytes)| bytes.contains(&b'#')).count();
    }
    assert_eq!(drawn, 10);
}

#[test]
fn output_that_goes_elsewhere_does_not_touch_it() {
    let (mut sheet, now) = (Sheet::new([false, true], false), Instant::now());
    sheet.output(Stream::Stdout, b"half a line");
    sheet.draw(&footer(&["one"]), now);
    sheet.output(Stream::Stdout, b" and the rest\n");
    let batch = sheet.take();
    let stderr: Vec<_> = batch.pieces().iter().filter(|(stream, _)| *stream == Stream::Stderr).collect();
    assert_eq!(stderr.len(), 1, "drawn once, under a file's output: {batch:?}");
}

#[test]
fn colours_of_the_output_are_as_they_were_after_it() {
    let (mut screen, mut sheet, now) = (Screen::new(24), Sheet::new([true; 2], false), Instant::now());
    sheet.output(Stream::Stdout, b"\x1b[31mred\n");
    sheet.draw(&footer(&["one"]), now);
    sheet.output(Stream::Stdout, b"still red\n");
    sheet.draw(&footer(&["one"]), now + Duration::from_secs(1));
    screen.write(&mut sheet);
    let colour = |row| screen.0.screen().cell(row, 0).unwrap().fgcolor();
    assert_eq!([colour(0), colour(1), colour(2)], [vt100::Color::Idx(1), vt100::Color::Idx(1), vt100::Color::Default]);
}
