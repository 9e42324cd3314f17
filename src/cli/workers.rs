//! `ado workers`: who can work.

use std::time::Duration;

use ado_proto::Timestamp;
use ado_proto::request::WorkerInfo;
use serde_json::Value;

use super::Global;
use super::columns::{self, Colour, Column, Side, Table};
use super::complete;
use super::error::Error;
use super::list::labels;
use super::output::{Format, age, print, scene};
use super::session::App;
use crate::config::Flags;
use crate::json;

/// Show who can work
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List workers: slots, load, and why they would get no task
    #[command(alias = "ls")]
    List(List),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Columns that do not fit the terminal are left out unless they are named.\n\nExamples:\n  ado workers list --task nightly           why nobody takes this task\n  ado workers list --columns name,labels"
)]
struct List {
    /// Say of each why it could not take this task
    #[arg(long, value_name = "TASK", add = complete::open_tasks())]
    task: Option<String>,
    /// Show these columns
    #[arg(long, value_name = "COLUMN", value_delimiter = ',', value_parser = columns::names(&COLUMNS))]
    columns: Vec<String>,
    /// Leave out the line with the names of the columns
    #[arg(long)]
    no_headers: bool,
    /// Print only ids, one a line
    #[arg(long, conflicts_with_all = ["columns", "no_headers"])]
    ids: bool,
}

const DEFAULT: [&str; 11] =
    ["name", "state", "slots", "pool", "agents", "labels", "load", "containment", "heartbeat", "rtt", "why"];

static COLUMNS: [Column<WorkerInfo>; 15] = [
    column("name", "NAME", Side::Left, 8, 24, 0, |worker, _| worker.name.clone()),
    column("id", "ID", Side::Left, 36, 36, 9, |worker, _| worker.id.to_string()),
    Column {
        colour: |worker| Colour::of_state(&worker.state),
        ..column("state", "STATE", Side::Left, 12, 12, 0, |worker, _| worker.state.clone())
    },
    column("slots", "BUSY", Side::Right, 5, 9, 0, |worker, _| format!("{}/{}", worker.busy, worker.slots)),
    column("pool", "POOL", Side::Left, 7, 20, 5, |worker, _| worker.pool.clone()),
    column("agents", "AGENTS", Side::Left, 8, 30, 4, |worker, _| worker.agents.join(",")),
    column("labels", "LABELS", Side::Left, 8, 30, 8, |worker, _| labels(&worker.labels)),
    column("load", "LOAD", Side::Right, 6, 12, 3, |worker, _| worker.load.map_or("-".into(), load)),
    column("memory", "MEMORY", Side::Right, 6, 14, 6, |worker, _| worker.load.map_or("-".into(), memory)),
    column("containment", "HOLD", Side::Left, 9, 9, 7, |worker, _| worker.containment.as_str().into()),
    column("heartbeat", "SEEN", Side::Right, 4, 4, 1, |worker, _| age(Duration::from_millis(worker.heartbeat_age_ms))),
    column("rtt", "RTT", Side::Right, 5, 7, 2, |worker, _| worker.rtt_us.map_or("-".into(), rtt)),
    column("namespace", "NAMESPACE", Side::Left, 9, 20, 9, |worker, _| worker.namespace.to_string()),
    column("build", "BUILD", Side::Left, 5, 20, 9, |worker, _| worker.build.clone()),
    column("why", "WHY NOT", Side::Left, 10, 100, 0, |worker, _| {
        worker.ineligible.clone().unwrap_or_else(|| "-".into())
    }),
];

const fn column(
    name: &'static str,
    head: &'static str,
    side: Side,
    least: usize,
    most: usize,
    rank: u8,
    cell: fn(&WorkerInfo, Timestamp) -> String,
) -> Column<WorkerInfo> {
    Column { name, head, side, least, most, rank, cell, colour: |_| None }
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let args = match args.command {
        Some(Command::List(list)) => list,
        None => args.list,
    };
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let workers = session.client.workers(args.task.as_deref()).await?;
    session.close().await;
    if args.ids {
        let ids: Vec<String> = workers.iter().map(|worker| worker.id.to_string()).collect();
        print(app.global.output, &ids, || ids.iter().map(|id| format!("{id}\n")).collect())?;
        return Ok(0);
    }
    let values: Vec<Value> = workers.iter().map(json::worker).collect();
    let table = Table::new(&COLUMNS, &args.columns, &DEFAULT);
    print(app.global.output, &values, || table.render(&workers, !args.no_headers, scene(app.env.now())))?;
    if workers.is_empty() && app.global.output == Format::Text && !app.global.quiet {
        eprintln!("no workers: start one with `ado worker`");
    }
    Ok(0)
}

/// Of all processors: 1.0 on four is `1.0/4`.
fn load(load: ado_proto::request::Load) -> String {
    format!("{:.1}/{}", f64::from(load.load_milli) / 1000.0, load.cpus)
}

/// Free of all, in gibibytes.
fn memory(load: ado_proto::request::Load) -> String {
    let tenths = |bytes: u64| bytes / (1 << 30) * 10 + bytes % (1 << 30) * 10 / (1 << 30);
    let show = |bytes: u64| format!("{}.{}", tenths(bytes) / 10, tenths(bytes) % 10);
    format!("{}/{}G", show(load.memory_available), show(load.memory))
}

fn rtt(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}us"),
        1_000..100_000 => format!("{}.{}ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}ms", us / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::request::Load;
    use ado_proto::spec::Containment;
    use ado_proto::{Namespace, TaskId, WorkerId};
    use uuid::Uuid;

    use super::*;
    use crate::cli::columns::Scene;

    fn info(name: &str) -> WorkerInfo {
        WorkerInfo {
            id: WorkerId(Uuid::from_u128(9)),
            name: name.into(),
            state: "ready".into(),
            namespace: Namespace::default(),
            pool: "default".into(),
            slots: 4,
            busy: 1,
            agents: vec!["shell".into(), "noop".into()],
            labels: [("gpu".into(), "yes".into())].into(),
            containment: Containment::Subreaper,
            heartbeat_age_ms: 1_200,
            build: "0.1.0".into(),
            load: Some(Load { cpus: 8, load_milli: 2_340, memory: 16 << 30, memory_available: 15 << 29 }),
            rtt_us: Some(340),
            holds: vec![TaskId(Uuid::from_u128(7))],
            ineligible: None,
            breaker: None,
        }
    }

    fn table(workers: &[WorkerInfo], columns: &[&str], width: usize) -> String {
        let named: Vec<String> = columns.iter().map(|name| (*name).into()).collect();
        Table::new(&COLUMNS, &named, &DEFAULT).render(workers, true, Scene { now: Timestamp(0), width, colours: false })
    }

    #[test]
    fn a_wide_terminal_shows_all_and_a_narrow_one_what_matters() {
        let mut lost = info("b");
        (lost.state, lost.load, lost.rtt_us) = ("lost".into(), None, None);
        lost.ineligible = Some("has not been heard of for 2 m".into());
        let workers = [info("box"), lost];
        assert_eq!(
            table(&workers, &[], 160),
            "NAME  STATE  BUSY  POOL     AGENTS      LABELS    LOAD  HOLD       SEEN    RTT  WHY NOT\n\
             box   ready   1/4  default  shell,noop  gpu=yes  2.3/8  subreaper    1s  340us  -\n\
             b     lost    1/4  default  shell,noop  gpu=yes      -  subreaper    1s      -  has not been heard of for 2 m\n",
        );
        let narrow = table(&workers, &[], 60);
        assert!(narrow.lines().all(|line| line.chars().count() <= 60), "{narrow}");
        for kept in ["NAME", "STATE", "BUSY", "WHY NOT"] {
            assert!(narrow.contains(kept), "{narrow}");
        }
        assert!(!narrow.contains("LABELS"), "{narrow}");
    }

    #[test]
    fn every_column_has_a_cell() {
        let names: Vec<_> = COLUMNS.iter().map(|column| column.name).collect();
        let shown = table(&[info("box")], &names, 1000);
        assert!(shown.contains("7.5/16.0G") && shown.contains("0.1.0"), "{shown}");
        assert_eq!([rtt(999), rtt(1_540), rtt(250_000)], ["999us", "1.5ms", "250ms"]);
    }
}
