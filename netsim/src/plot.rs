//! A record as a picture: delay, loss and throughput over time. Pure.

use std::collections::BTreeMap;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::record::HEADER;

const SIZE: (u32, u32) = (1200, 900);
/// Columns into which time is divided.
const COLUMNS: usize = 200;
/// Dots of delays, of each direction.
const DOTS: usize = 3000;
const COLOURS: [RGBColor; 2] = [RGBColor(20, 110, 200), RGBColor(220, 110, 20)];
const WAYS: [&str; 2] = ["up", "down"];

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A line that is none of a record's.
    #[error("line {line}: `{text}` is no line of a record; its columns are {HEADER}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What it says.
        text: String,
    },
    /// Nothing happened.
    #[error("the record has no packets")]
    Empty,
    /// What plotters says.
    #[error("draw: {0}")]
    Draw(String),
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

struct Row {
    way: usize,
    size: f64,
    came: f64,
    at: f64,
    delivered: bool,
    first: bool,
}

/// A picture of a record's lines, of all its links together.
///
/// # Errors
/// When a line is none of a record, or there is none.
pub fn svg(record: &str) -> Result<String, Error> {
    let rows = read(record)?;
    let end = rows.iter().map(|row| row.at).fold(0.0, f64::max).max(0.001);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let areas = root.split_evenly((3, 1));
        delays(&rows, end, &areas[0])?;
        let column = |at: f64| ((at / end * COLUMNS as f64) as usize).min(COLUMNS - 1);
        let width = end / COLUMNS as f64;
        let (mut sent, mut lost, mut bytes) = ([[0.0; COLUMNS]; 2], [[0.0; COLUMNS]; 2], [[0.0; COLUMNS]; 2]);
        for row in &rows {
            sent[row.way][column(row.came)] += f64::from(u8::from(row.first));
            lost[row.way][column(row.came)] += f64::from(u8::from(!row.delivered));
            bytes[row.way][column(row.at)] += if row.delivered { row.size } else { 0.0 };
        }
        let share = |way: usize, at: usize| (sent[way][at] > 0.0).then(|| 100.0 * lost[way][at] / sent[way][at]);
        lines("of what was sent then, % lost", 100.0, end, &areas[1], share)?;
        let rate = |way: usize, at: usize| Some(bytes[way][at] * 8.0 / width / 1e6);
        let most = (0..2).flat_map(|way| (0..COLUMNS).filter_map(move |at| rate(way, at))).fold(0.001, f64::max);
        lines("Mbit/s delivered", most * 1.05, end, &areas[2], rate)?;
        root.present().map_err(failed)?;
    }
    Ok(text)
}

fn read(record: &str) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::new();
    for (number, line) in record.lines().enumerate().filter(|(_, line)| *line != HEADER && !line.is_empty()) {
        let row = row(line).ok_or_else(|| Error::Line { line: number + 1, text: line.to_owned() })?;
        rows.push(row);
    }
    if rows.is_empty() { Err(Error::Empty) } else { Ok(rows) }
}

fn row(line: &str) -> Option<Row> {
    let [_, way, _, size, came, at, what] = line.split(',').collect::<Vec<_>>()[..] else { return None };
    Some(Row {
        way: WAYS.iter().position(|name| *name == way)?,
        size: size.parse().ok()?,
        came: came.parse().ok()?,
        at: at.parse().ok()?,
        delivered: ["delivered", "copy", "marked"].contains(&what),
        first: what != "copy",
    })
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Draw(error.to_string())
}

fn delays(rows: &[Row], end: f64, area: &Area<'_>) -> Result<(), Error> {
    let mut points: BTreeMap<usize, Vec<(f64, f64)>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.delivered) {
        points.entry(row.way).or_default().push((row.came, (row.at - row.came) * 1e3));
    }
    let most = points.values().flatten().map(|(_, delay)| *delay).fold(0.1, f64::max);
    let mut chart = axes("delay in ms, by when it was sent (blue up, orange down)", most * 1.05, end, area)?;
    for (way, points) in points {
        let step = points.len().div_ceil(DOTS);
        let dots = points.into_iter().step_by(step).map(|point| Circle::new(point, 1, COLOURS[way].filled()));
        chart.draw_series(dots).map_err(failed)?;
    }
    Ok(())
}

fn lines(
    caption: &str,
    most: f64,
    end: f64,
    area: &Area<'_>,
    value: impl Fn(usize, usize) -> Option<f64>,
) -> Result<(), Error> {
    let mut chart = axes(caption, most, end, area)?;
    for (way, colour) in COLOURS.iter().enumerate() {
        let at = |column: usize| (column as f64 + 0.5) * end / COLUMNS as f64;
        let points = (0..COLUMNS).filter_map(|column| Some((at(column), value(way, column)?)));
        chart.draw_series(LineSeries::new(points, colour)).map_err(failed)?;
    }
    Ok(())
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

fn axes<'a, 'b>(caption: &str, most: f64, end: f64, area: &'a Area<'b>) -> Result<Chart<'a, 'b>, Error> {
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..end, 0.0..most)
        .map_err(failed)?;
    chart.configure_mesh().max_light_lines(1).x_desc("seconds").draw().map_err(failed)?;
    Ok(chart)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_becomes_a_picture() {
        let record = format!(
            "{HEADER}\nlink,up,0,1228,0.000000000,0.020000000,delivered\nlink,up,1,1228,0.5,0.5,loss\nlink,down,0,100,1.0,1.1,copy\n"
        );
        let picture = svg(&record).unwrap();
        assert!(picture.starts_with("<svg") && picture.contains("% lost") && picture.contains("<circle"));
    }

    #[test]
    fn what_is_no_record_is_named() {
        let wrong = svg("link,up,0,1228,0.0,0.02,delivered\nnonsense").unwrap_err().to_string();
        assert!(wrong.starts_with("line 2: `nonsense` is no line of a record"), "{wrong}");
        assert!(matches!(svg(HEADER), Err(Error::Empty)));
    }
}
