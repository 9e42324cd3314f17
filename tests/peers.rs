//! What the comparison with peers prints and draws, from figures that are fixed. `benches/peers` measures real ones.

#[path = "../benches/peers/generator.rs"]
#[expect(dead_code, reason = "only what is made of figures is tested here; the rest is the bench itself")]
mod generator;
#[path = "../src/cli/bench/lines.rs"]
mod lines;
#[path = "../benches/peers/peer.rs"]
#[expect(dead_code, reason = "as above")]
mod peer;
#[path = "../benches/peers/plot.rs"]
mod plot;
#[path = "../benches/peers/report.rs"]
mod report;
#[path = "../benches/peers/rows.rs"]
#[expect(dead_code, reason = "as above")]
mod rows;
#[path = "../src/cli/bench/stats.rs"]
mod stats;

use report::Report;
use rows::{Measured, Row};

fn measured(figures: &[(&'static str, &'static str, f64)]) -> Measured {
    Measured { figures: figures.to_vec(), samples: Vec::new() }
}

/// Two repetitions, three peers.
fn run() -> Report {
    let mut report = Report::new(0.5);
    for (scale, load) in [(1.0, 0.75), (1.5, 1.0)] {
        for (peer, ms) in [("ssh", 0.4), ("quinn", 0.2), ("ado", 0.8)] {
            let p50 = ms * scale;
            let samples = (1..=100).map(|step| p50 * f64::from(step) / 50.0).collect();
            let figures = vec![("p50", "ms", p50), ("p99", "ms", p50 * 10.0)];
            report.add(Row::Line, peer, Measured { figures, samples });
        }
        report.add(Row::Random, "ado", measured(&[("rate", "MB/s", 90.0 * scale)]));
        report.add(Row::Random, "ssh", measured(&[("rate", "MB/s", 250.0 * scale)]));
        report.add(Row::Flood, "ado", measured(&[("rate", "lines/s", 1_234_567.0)]));
        report.loads.push(load);
    }
    report
}

fn line<'a>(table: &'a str, words: &[&str]) -> &'a str {
    let fits = |line: &&str| words.iter().all(|word| line.contains(word));
    table.lines().find(fits).unwrap_or_else(|| panic!("no line with {words:?}: {table}"))
}

#[test]
fn the_table_has_medians_ranges_ratios_and_verdicts() {
    let table = run().table();
    assert!(table.starts_with("medians of 2 repetitions [least..most]; load average 0.50, 0.75, 1.00\n"), "{table}");
    let p50 = line(&table, &["p50 ms", "ado "]);
    assert!(p50.contains("1.00 [0.800..1.20]") && p50.contains("floor <= 2.00: met; aim <= 1.00: met"), "{p50}");
    let p99 = line(&table, &["p99 ms", "ado "]);
    assert!(p99.contains("floor <= 10.0: met; aim <= 6.00: MISSED"), "{p99}");
    assert!(line(&table, &["p50 ms", "ssh"]).ends_with("ado/ssh 2.00"), "{table}");
    let rate = line(&table, &["rate MB/s", "ado "]);
    assert!(rate.contains("floor >= 0.5 ssh: MISSED; aim >= 100: met"), "{rate}");
    let flood = line(&table, &["rate lines/s", "ado "]);
    assert!(
        flood.contains("1,234,567") && flood.contains("floor >= 0.5 ssh: not known; aim >= 400,000: met"),
        "{flood}"
    );
    let (ado, quinn) = (table.find("ado ").unwrap(), table.find("quinn").unwrap());
    assert!(ado < quinn, "ado comes first");
}

#[test]
fn programs_get_a_line_for_every_figure() {
    let lines = run().json_lines();
    let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], serde_json::json!({ "type": "run", "loadAverages": [0.5, 0.75, 1.0] }));
    assert_eq!(lines.len(), 1 + 3 * 2 + 2 + 1);
    let of = |peer: &str, figure: &str| {
        lines[1..].iter().find(|line| line["peer"] == peer && line["figure"] == figure).expect("a line").clone()
    };
    let p99 = of("ado", "p99");
    assert_eq!(
        (p99["median"].as_f64(), p99["floorMet"].as_bool(), p99["aimMet"].as_bool()),
        (Some(10.0), Some(true), Some(false))
    );
    assert!(of("ssh", "p99")["floor"].is_null());
    assert_eq!(of("quinn", "p50")["values"].as_array().unwrap().len(), 2);
}

#[test]
fn the_plot_is_svg_with_a_series_for_every_peer() {
    let svg = plot::svg(&run()).unwrap();
    well_formed(&svg);
    for peer in ["ado", "ssh", "quinn"] {
        assert!(svg.contains(&format!("\n{peer}\n")), "the legend lacks {peer}");
    }
    let curves = svg.matches("<polyline").count();
    assert!(curves >= 3, "{curves} curves");
    for colour in ["#146EC8", "#DC6E14", "#828282"] {
        assert!(svg.contains(colour), "{colour}");
    }
    assert!(
        svg.contains("\n112\n") && svg.contains("\n312\n") && svg.contains("\n1235k\n"),
        "bars say how long they are"
    );
    well_formed(&plot::svg(&Report::new(0.0)).unwrap());
}

/// Every tag is closed by its like.
fn well_formed(svg: &str) {
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().expect("a tag has a name");
        match (tag.starts_with('/'), tag.ends_with('/') || tag.starts_with(['!', '?'])) {
            (true, _) => assert_eq!(open.pop(), Some(name)),
            (false, false) => open.push(name),
            (false, true) => {}
        }
    }
    assert!(open.is_empty() && svg.trim_end().ends_with("</svg>"), "{open:?}");
}
