//! A run as a picture: how latencies are distributed, and how fast bulk goes. Pure.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::report::Report;
use crate::rows::Row;
use crate::stats::percentile;

const SIZE: (u32, u32) = (1200, 1250);
/// Distributions: of which row.
const DISTRIBUTIONS: [Row; 4] = [Row::Line, Row::Lines50, Row::Spawn, Row::SpawnWarm];
/// Bars: of which row.
const BARS: [Row; 3] = [Row::Random, Row::Zeros, Row::Flood];

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The picture as SVG.
pub(crate) fn svg(report: &Report) -> Result<String, Failure> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(failed)?;
        let (upper, lower) = root.split_vertically(SIZE.1 * 2 / 3);
        for (area, row) in upper.split_evenly((2, 2)).iter().zip(DISTRIBUTIONS) {
            distribution(report, row, area)?;
        }
        for (area, row) in lower.split_evenly((1, BARS.len())).iter().zip(BARS) {
            bars(report, row, area)?;
        }
        root.present().map_err(failed)?;
    }
    Ok(text)
}

fn failed(error: impl std::fmt::Display) -> Failure {
    error.to_string().into()
}

/// A peer's colour is the same in every picture.
fn colour(peer: &str) -> RGBColor {
    match peer {
        "ado" => RGBColor(20, 110, 200),
        "ssh" => RGBColor(220, 110, 20),
        "docker" => RGBColor(40, 150, 70),
        _ => RGBColor(130, 130, 130),
    }
}

/// What part of the lines came within how long, on a logarithmic axis of time.
fn distribution(report: &Report, row: Row, area: &Area<'_>) -> Result<(), Failure> {
    let series: Vec<_> = report.samples.iter().filter(|((of, _), _)| *of == row).collect();
    let all = || series.iter().flat_map(|(_, samples)| samples.iter().copied());
    let least = all().fold(f64::INFINITY, f64::min).clamp(0.001, 1e6);
    let most = all().fold(0.0, f64::max).max(least * 10.0);
    let mut chart = ChartBuilder::on(area)
        .caption(row.title(), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(44)
        .build_cartesian_2d((least..most).log_scale(), 0.0..100.0)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .max_light_lines(1)
        .x_labels(6)
        .x_desc("milliseconds")
        .y_desc("% within")
        .y_label_formatter(&|percent| format!("{percent:.0}"))
        .x_label_formatter(&|ms| format!("{}", (ms * 1000.0).round() / 1000.0))
        .draw()
        .map_err(failed)?;
    for ((_, peer), samples) in series {
        // Steps that show the tail, where the curve is nearly flat.
        let mut sorted: Vec<u64> = samples.iter().map(|ms| (ms * 1e6) as u64).collect();
        sorted.sort_unstable();
        let steps =
            (0..=990).map(|step| f64::from(step) / 10.0).chain((0..=100).map(|step| 99.0 + f64::from(step) / 100.0));
        let points = steps.map(|percent| ((percentile(&sorted, percent) as f64 / 1e6).max(0.001), percent));
        let style = colour(peer).stroke_width(2);
        let drawn = chart.draw_series(LineSeries::new(points, style)).map_err(failed)?;
        drawn.label(*peer).legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(failed)
}

/// A bar for every peer, from zero.
fn bars(report: &Report, row: Row, area: &Area<'_>) -> Result<(), Failure> {
    let figures = report.of(row, "rate");
    let most = figures.iter().map(|figure| figure.median()).fold(1.0, f64::max);
    let unit = figures.first().map_or("", |figure| figure.unit);
    let count = figures.len().max(1) as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(row.title(), ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..count, 0.0..most * 1.2)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .max_light_lines(1)
        .disable_x_mesh()
        .disable_x_axis()
        .y_desc(unit)
        .y_label_formatter(&|value| short(*value))
        .draw()
        .map_err(failed)?;
    for (at, figure) in figures.iter().enumerate() {
        let at = at as f64;
        let bar = Rectangle::new([(at + 0.15, 0.0), (at + 0.85, figure.median())], colour(figure.peer).filled());
        chart.draw_series([bar]).map_err(failed)?;
        for (text, height) in [(figure.peer.to_owned(), 1.18), (short(figure.median()), 1.11)] {
            let text = Text::new(text, (at + 0.18, most * height), ("sans-serif", 14));
            chart.draw_series([text]).map_err(failed)?;
        }
    }
    Ok(())
}

fn short(value: f64) -> String {
    if value < 10_000.0 { format!("{value:.0}") } else { format!("{:.0}k", value / 1000.0) }
}
