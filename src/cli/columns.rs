//! Tables for people: which columns, how wide, in which colour. Pure.

use std::fmt;

use ado_proto::Timestamp;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::output::plain;

/// Between two columns.
const GAP: usize = 2;

/// What cells are made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scene {
    /// Ages are counted to this instant.
    pub(crate) now: Timestamp,
    /// Characters of a line.
    pub(crate) width: usize,
    /// Whether states are coloured.
    pub(crate) colours: bool,
}

/// The side of a column its cells stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// One column of a table of `T`.
pub(crate) struct Column<T: 'static> {
    /// As people name it after `--columns`.
    pub(crate) name: &'static str,
    /// Its head.
    pub(crate) head: &'static str,
    pub(crate) side: Side,
    /// Fewest characters: of a table that is written before all of its rows are known, and to which a cell may be cut.
    pub(crate) least: usize,
    /// Most characters of a cell that is not in the last column.
    pub(crate) most: usize,
    /// Columns of the highest number go first when not all of a default table fit; 0 stays.
    pub(crate) rank: u8,
    /// Text of a cell, from anywhere: made harmless here.
    pub(crate) cell: fn(&T, Timestamp) -> String,
    /// Colour of a cell.
    pub(crate) colour: fn(&T) -> Option<Colour>,
}

/// A column whose cells have no colour.
pub(crate) const fn column<T>(
    name: &'static str,
    head: &'static str,
    side: Side,
    least: usize,
    most: usize,
    rank: u8,
    cell: fn(&T, Timestamp) -> String,
) -> Column<T> {
    Column { name, head, side, least, most, rank, cell, colour: |_| None }
}

impl<T> Column<T> {
    /// Fewest characters: its head is not cut.
    fn least(&self) -> usize {
        self.least.max(self.head.width())
    }
}

impl<T> fmt::Debug for Column<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Colours mean the same everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colour {
    /// Well.
    Green,
    /// Something is wrong.
    Red,
    /// Somebody should look, or it waits.
    Yellow,
    /// Goes on.
    Cyan,
    /// Of no interest any more.
    Grey,
}

impl Colour {
    /// Puts text into this colour.
    pub(crate) fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Green => 32,
            Self::Red => 31,
            Self::Yellow => 33,
            Self::Cyan => 36,
            Self::Grey => 90,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// The colour of a task's or a worker's state.
    pub(crate) fn of_state(state: &str) -> Option<Self> {
        Some(match state {
            "completed" | "ready" => Self::Green,
            "failed" | "lost" => Self::Red,
            "paused" | "waiting" | "draining" | "cordoned" | "drained" | "disconnected" => Self::Yellow,
            "running" | "starting" => Self::Cyan,
            "cancelled" => Self::Grey,
            _ => return None,
        })
    }
}

/// The names of columns as values of a flag: the help and the error list them.
pub(crate) fn names<T>(all: &'static [Column<T>]) -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(all.iter().map(|column| PossibleValue::new(column.name)))
}

/// A table whose columns are chosen.
pub(crate) struct Table<T: 'static> {
    columns: Vec<&'static Column<T>>,
    /// Whether columns that do not fit may be left out.
    chosen: bool,
}

impl<T> Table<T> {
    /// The columns that were named, or the default ones.
    pub(crate) fn new(all: &'static [Column<T>], named: &[String], default: &[&str]) -> Self {
        let find = |name: &str| all.iter().find(|column| column.name == name).expect("names are checked on parsing");
        let columns = match named {
            [] => default.iter().map(|name| find(name)).collect(),
            named => named.iter().map(|name| find(name)).collect(),
        };
        Self { columns, chosen: !named.is_empty() }
    }

    /// All rows, under their heads if wanted. Nothing when there are no rows.
    pub(crate) fn render<'a>(&self, rows: impl IntoIterator<Item = &'a T>, heads: bool, scene: Scene) -> String {
        let rows: Vec<Vec<Cell>> = rows.into_iter().map(|row| self.cells(row, scene)).collect();
        if rows.is_empty() {
            return String::new();
        }
        let natural: Vec<usize> = (0..self.columns.len())
            .map(|at| {
                let head = if heads { self.columns[at].head.width() } else { 0 };
                let widest = rows.iter().map(|row| row[at].text.width()).max().unwrap_or(0);
                widest.min(self.columns[at].most).max(head)
            })
            .collect();
        let widths = self.fit(natural, scene.width);
        let head = if heads { self.line(&self.heads(), &widths, scene) } else { String::new() };
        rows.iter().fold(head, |table, row| table + &self.line(row, &widths, scene))
    }

    /// The heads of a table whose rows come one by one.
    pub(crate) fn render_heads(&self, scene: Scene) -> String {
        self.line(&self.heads(), &self.least(), scene)
    }

    /// A row of a table whose rows come one by one.
    pub(crate) fn render_row(&self, row: &T, scene: Scene) -> String {
        self.line(&self.cells(row, scene), &self.least(), scene)
    }

    fn least(&self) -> Vec<Option<usize>> {
        self.columns.iter().map(|column| Some(column.least())).collect()
    }

    fn heads(&self) -> Vec<Cell> {
        self.columns.iter().map(|column| Cell { text: column.head.into(), colour: None }).collect()
    }

    fn cells(&self, row: &T, scene: Scene) -> Vec<Cell> {
        let cell = |column: &&'static Column<T>| Cell {
            text: harmless(&(column.cell)(row, scene.now)),
            colour: (column.colour)(row).filter(|_| scene.colours),
        };
        self.columns.iter().map(cell).collect()
    }

    /// Widths that fit a line: columns of the highest rank are left out, then the widest are cut. `None`: left out.
    fn fit(&self, natural: Vec<usize>, width: usize) -> Vec<Option<usize>> {
        let mut widths: Vec<_> = natural.into_iter().map(Some).collect();
        let last = self.columns.len() - 1;
        let total = |widths: &[Option<usize>], least: bool| {
            let cut = |(at, width): (usize, &Option<usize>)| {
                width.map(|width| GAP + if least || at == last { width.min(self.columns[at].least()) } else { width })
            };
            widths.iter().enumerate().filter_map(cut).sum::<usize>().saturating_sub(GAP)
        };
        while !self.chosen && total(&widths, true) > width {
            let worst = (0..=last).filter(|at| widths[*at].is_some() && self.columns[*at].rank > 0);
            let Some(worst) = worst.max_by_key(|at| self.columns[*at].rank) else { break };
            widths[worst] = None;
        }
        while total(&widths, false) > width {
            let spare = |at: &usize| widths[*at].is_some_and(|width| width > self.columns[*at].least());
            let Some(widest) = (0..last).filter(spare).max_by_key(|at| widths[*at]) else { break };
            widths[widest] = widths[widest].map(|width| width - 1);
        }
        widths
    }

    fn line(&self, cells: &[Cell], widths: &[Option<usize>], scene: Scene) -> String {
        let last = widths.iter().rposition(Option::is_some).unwrap_or(0);
        let mut line = String::new();
        let mut used = 0;
        for (at, cell) in cells.iter().enumerate() {
            let Some(width) = widths[at] else { continue };
            let column = self.columns[at];
            let room = if at == last { scene.width.saturating_sub(used).max(column.least()) } else { width };
            let text = cut(&cell.text, room);
            let blank = " ".repeat(width.saturating_sub(text.width()));
            let painted = cell.colour.map_or_else(|| text.clone(), |colour| colour.paint(&text));
            match (column.side, at == last) {
                (Side::Right, _) => line += &(blank.clone() + &painted),
                (Side::Left, true) => line += &painted,
                (Side::Left, false) => line += &(painted + &blank),
            }
            if at != last {
                line += &" ".repeat(GAP);
            }
            used += text.width() + blank.width() + GAP;
        }
        line.truncate(line.trim_end_matches(' ').len());
        line + "\n"
    }
}

struct Cell {
    text: String,
    colour: Option<Colour>,
}

/// Text from elsewhere on one line.
fn harmless(text: &str) -> String {
    plain(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Cuts a line to at most `width` places of a terminal, in which wide characters take two.
pub(crate) fn cut(line: &str, width: usize) -> String {
    if line.width() <= width {
        return line.into();
    }
    let mut used = 0;
    let fits = |c: &char| {
        used += c.width().unwrap_or(0);
        used < width
    };
    line.chars().take_while(fits).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Row(&'static str, &'static str, &'static str);

    const fn column(name: &'static str, side: Side, rank: u8, cell: fn(&Row, Timestamp) -> String) -> Column<Row> {
        Column { name, head: name, side, least: 4, most: 12, rank, cell, colour: |row| Colour::of_state(row.1) }
    }

    static ALL: [Column<Row>; 3] = [
        column("id", Side::Left, 0, |row, _| row.0.into()),
        column("state", Side::Right, 1, |row, _| row.1.into()),
        column("text", Side::Left, 0, |row, _| row.2.into()),
    ];

    fn render(rows: &[Row], named: &[&str], width: usize) -> String {
        let named: Vec<_> = named.iter().map(|name| (*name).to_owned()).collect();
        let scene = Scene { now: Timestamp(0), width, colours: false };
        Table::new(&ALL, &named, &["id", "state", "text"]).render(rows, true, scene)
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_the_last_takes_the_rest() {
        let rows = [Row("a", "ok", "mend the tests and all"), Row("bcd", "running", "日本語日本語日本語日本語")];
        assert_eq!(
            render(&rows, &[], 30),
            "id     state  text\n\
             a         ok  mend the tests …\n\
             bcd  running  日本語日本語日…\n",
        );
        assert!(render(&rows, &[], 30).lines().all(|line| line.width() <= 30));
    }

    #[test]
    fn what_does_not_fit_is_left_out_unless_it_was_named() {
        let rows = [Row("abcdefgh", "running", "text")];
        assert_eq!(render(&rows, &[], 10), "id    text\nabc…  text\n");
        assert_eq!(render(&rows, &["id", "state", "text"], 10), "id    state  text\nabc…  runn…  text\n");
        assert_eq!(render(&rows, &["text", "id"], 40), "text  id\ntext  abcdefgh\n");
    }

    #[test]
    fn cells_cannot_steer_a_terminal_nor_break_their_line() {
        let rows = [Row("a", "x", "one\n\u{1b}[2Jtwo")];
        assert_eq!(render(&rows, &["text"], 40), "text\none \u{fffd}[2Jtwo\n");
        assert_eq!(render(&[], &[], 40), "");
    }

    #[test]
    fn colours_take_no_room() {
        let scene = Scene { now: Timestamp(0), width: 40, colours: true };
        let table = Table::new(&ALL, &[], &["state", "id"]);
        assert_eq!(
            table.render(&[Row("a", "failed", "")], false, scene),
            "\u{1b}[31mfailed\u{1b}[0m  \u{1b}[31ma\u{1b}[0m\n"
        );
    }

    #[test]
    fn rows_that_come_one_by_one_stand_in_columns_too() {
        let table = Table::new(&ALL, &[], &["state", "text"]);
        let scene = Scene { now: Timestamp(0), width: 14, colours: false };
        assert_eq!(table.render_heads(scene), "state  text\n");
        assert_eq!(table.render_row(&Row("a", "ok", "1234567890"), scene), "   ok  123456…\n");
    }
}
