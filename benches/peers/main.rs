//! ado beside ssh, `docker logs -f` and a plain QUIC stream: the same loads, in one run, taking turns.
//! `benches/peers.sh` prepares the peers and runs this; alone (`cargo bench --bench peers`) it measures the peers it
//! finds and says which it does not.
//!
//! Every process is on this machine, so one clock stamps both ends. Nothing here fails because something was slow.

mod ado;
mod docker;
mod generator;
#[path = "../../src/cli/bench/lines.rs"]
#[allow(dead_code, unused_imports, reason = "shared with `ado bench`, which needs more of it, as its tests do")]
mod lines;
mod peer;
mod plot;
mod queue;
mod quinn;
mod report;
mod rows;
#[path = "../../tests/support/servers/mod.rs"]
mod servers;
mod ssh;
#[path = "../../src/cli/bench/stats.rs"]
#[allow(dead_code, unused_imports, reason = "shared with `ado bench`, which needs more of it, as its tests do")]
mod stats;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use peer::Peer;
use report::Report;
use rows::{Row, Size};

/// Measure ado beside its peers
#[derive(Debug, Parser)]
struct Args {
    /// Only see that everything works: one short repetition
    #[arg(long)]
    quick: bool,
    /// Only these rows
    #[arg(long, value_delimiter = ',', value_enum)]
    rows: Vec<Row>,
    /// Only these peers: ado, ssh, docker, quinn, graphile, bullmq
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Measure everything this often
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Write every figure to this file, a line of JSON each
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the plot to this file
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers.svg"))]
    svg: PathBuf,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = generator::run(&given).or_else(|| quinn::run(&given)) {
        return code;
    }
    let args = Args::parse();
    if !args.bench {
        eprintln!("this is a benchmark: cargo bench --bench peers");
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> io::Result<()> {
    let rows = if args.rows.is_empty() { Row::all() } else { args.rows.clone() };
    let peers = peers(args, &rows)?;
    let size = if args.quick { Size::quick() } else { Size::full() };
    let repetitions = if args.quick { 1 } else { args.repetitions.max(1) };
    let mut report = Report::new(peer::load());
    for repetition in 0..repetitions {
        for row in &rows {
            for turn in 0..peers.len() {
                // Whoever goes first finds the machine as the row before left it: everybody does in turn.
                let peer = &peers[(turn + repetition) % peers.len()];
                eprint!("\r\x1b[K{} of {repetitions}: {}, {}", repetition + 1, row.title(), peer.name());
                match row.measure(peer.as_ref(), &size) {
                    Ok(measured) => report.add(*row, peer.name(), measured),
                    Err(error) => eprintln!("\nno figure for {} from {}: {error}", row.title(), peer.name()),
                }
            }
        }
        report.loads.push(peer::load());
    }
    eprintln!("\r\x1b[K");
    print!("{}", report.table());
    if let Some(path) = &args.json {
        File::create(path)?.write_all(report.json_lines().as_bytes())?;
    }
    if let Some(folder) = args.svg.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&args.svg, plot::svg(&report).map_err(io::Error::other)?)?;
    println!("\nplot: {}", args.svg.display());
    Ok(())
}

/// Those that can be had, and a loud word about the others.
fn peers(args: &Args, rows: &[Row]) -> io::Result<Vec<Box<dyn Peer>>> {
    let wanted = |name: &str| args.peers.is_empty() || args.peers.iter().any(|peer| peer == name);
    let mut peers: Vec<Box<dyn Peer>> = Vec::new();
    let queues = rows.iter().any(|row| matches!(row, Row::Queue | Row::QueueStart));
    let servers = if queues { queue::Servers::start() } else { None };
    if wanted("ado") {
        peers.push(Box::new(ado::Ado::start(servers.clone())?));
    }
    if wanted("quinn") {
        peers.push(Box::new(quinn::Quinn::start()?));
    }
    if wanted("ssh") {
        match ssh::Ssh::start()? {
            Some(ssh) => peers.push(Box::new(ssh)),
            None => eprintln!("SKIPPED: ssh, for want of {} (benches/peers.sh makes one)", ssh::CONFIG),
        }
    }
    if wanted("docker") {
        match docker::Docker::start()? {
            Some(docker) => peers.push(Box::new(docker)),
            None => eprintln!("SKIPPED: docker, for want of {} (benches/peers.sh makes one)", docker::IMAGE),
        }
    }
    for name in ["graphile", "bullmq"] {
        let Some(servers) = servers.as_ref().filter(|_| wanted(name)) else { continue };
        match queue::Queue::start(name, servers)? {
            Some(queue) => peers.push(Box::new(queue)),
            None => eprintln!("SKIPPED: {name}, for want of {} (benches/peers.sh makes one)", queue::NODE_MODULES),
        }
    }
    if peers.is_empty() {
        return Err(io::Error::other("there is nobody to measure"));
    }
    Ok(peers)
}
