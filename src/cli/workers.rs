//! `ado workers`: who can work, and who shall.

use std::time::Duration;

use ado_proto::Timestamp;
use ado_proto::request::{SetWorker, WorkerDesired, WorkerInfo, WorkerSet};
use serde_json::Value;
use tokio::time::Instant;

use super::Global;
use super::columns::{self, Colour, Column, Side, Table, column};
use super::complete;
use super::error::{Error, Kind};
use super::list::labels;
use super::output::{Format, age, plain, print, scene};
use super::session::{App, Session};
use super::values;
use crate::config::Flags;
use crate::json;

/// Beyond the deadline of a drain: for agents to die, and for the controller to hear of it.
const BEYOND: Duration = Duration::from_secs(60);
/// How often is looked whether a worker is drained.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Show who can work, cordon and drain
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
    /// Let workers end or hand back what they have, and leave
    ///
    /// They get no more tasks. What still runs at the deadline is handed back and goes on elsewhere from its last checkpoint;
    /// nothing counts against a task. Then the worker ends, unless it was started with --stay. It gets no work, also when it
    /// is started again, until `ado workers uncordon`.
    Drain(Drain),
    /// Give workers no more tasks; what they have goes on
    Cordon(Meant),
    /// Give workers tasks again
    Uncordon(Meant),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ado workers drain box-1 --wait                  until it has left\n  ado workers drain box-1 box-2 --deadline 30s"
)]
struct Drain {
    #[command(flatten)]
    meant: Meant,
    /// Let tasks go on this long; default: 5m, or what was said before
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    deadline: Option<Duration>,
    /// Wait until they hold nothing any more
    #[arg(long)]
    wait: bool,
    /// Wait at most this long; default: a minute beyond the deadline
    #[arg(long, value_name = "DURATION", value_parser = values::duration, requires = "wait")]
    timeout: Option<Duration>,
}

#[derive(Debug, Clone, clap::Args)]
struct Meant {
    /// Names, ids, beginnings of ids
    #[arg(required = true, value_name = "WORKER", add = complete::workers())]
    workers: Vec<String>,
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

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let args = match args.command {
        Some(Command::Drain(drain)) => return self::drain(global, drain).await,
        Some(Command::Cordon(meant)) => return set(global, &meant, WorkerDesired::Cordoned).await,
        Some(Command::Uncordon(meant)) => return set(global, &meant, WorkerDesired::Active).await,
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

async fn set(global: Global, meant: &Meant, desired: WorkerDesired) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let (set, failed) = wish(&session, meant, desired, None).await;
    session.close().await;
    tell(&app, &set, desired)?;
    failed.map_or(Ok(0), Err)
}

async fn drain(global: Global, args: Drain) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let (mut set, mut failed) = wish(&session, &args.meant, WorkerDesired::Drained, args.deadline).await;
    if args.wait {
        let now = app.env.now();
        let deadline = set.iter().filter_map(|set| set.deadline).max().map_or(Duration::ZERO, |at| at.since(now));
        let until = Instant::now() + args.timeout.unwrap_or(deadline + BEYOND);
        let late = wait(&session, &mut set, until).await?;
        if let [first, ..] = &late[..] {
            let text = format!("not drained in time: {}", late.join(", "));
            let hint = session.command("workers list");
            failed.get_or_insert(
                Error::new(Kind::TimedOut, text).hint(hint).hint(session.command(&format!("list --worker {first}"))),
            );
        }
    }
    session.close().await;
    tell(&app, &set, WorkerDesired::Drained)?;
    failed.map_or(Ok(0), Err)
}

/// Every worker is tried; the first failure is told after the results of the others.
async fn wish(
    session: &Session,
    meant: &Meant,
    desired: WorkerDesired,
    within: Option<Duration>,
) -> (Vec<WorkerSet>, Option<Error>) {
    let within_ms = within.map(|within| u64::try_from(within.as_millis()).unwrap_or(u64::MAX));
    let mut set = Vec::new();
    let mut failed: Option<Error> = None;
    for worker in &meant.workers {
        let request = SetWorker { worker: worker.clone(), desired, within_ms };
        match session.client.set_worker(&request, session.client.request_id()).await {
            Ok(done) => set.push(done),
            Err(error) => drop(failed.get_or_insert(error.into())),
        }
    }
    (set, failed)
}

/// Waits until the workers are drained. Names of those that are not in time.
async fn wait(session: &Session, set: &mut [WorkerSet], until: Instant) -> Result<Vec<String>, Error> {
    session.stay();
    loop {
        let workers = session.client.workers(None).await?;
        for set in set.iter_mut() {
            // Forgotten: it has left.
            let known = workers.iter().find(|worker| worker.id == set.id);
            (set.state, set.busy) = known.map_or(("drained".into(), 0), |worker| (worker.state.clone(), worker.busy));
        }
        let late: Vec<_> = set.iter().filter(|set| set.state != "drained").map(|set| set.name.clone()).collect();
        if late.is_empty() || Instant::now() >= until {
            return Ok(late);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn tell(app: &App, set: &[WorkerSet], desired: WorkerDesired) -> Result<(), Error> {
    let values: Vec<Value> = set.iter().map(json::worker_set).collect();
    let now = app.env.now();
    if app.global.quiet && app.global.output == Format::Text {
        return Ok(());
    }
    Ok(print(app.global.output, &values, || set.iter().map(|set| sentence(set, desired, now) + "\n").collect())?)
}

fn sentence(set: &WorkerSet, desired: WorkerDesired, now: Timestamp) -> String {
    let name = plain(&set.name);
    let tasks = match set.busy {
        1 => "1 task".into(),
        count => format!("{count} tasks"),
    };
    match (&set.unchanged, desired) {
        _ if desired == WorkerDesired::Drained && set.state == "drained" => format!("{name} is drained"),
        (Some(why), _) => format!("{name}: {why}"),
        (None, WorkerDesired::Active) => format!("{name} takes tasks again"),
        (None, WorkerDesired::Cordoned) => format!("{name} gets no more tasks; it has {tasks}"),
        (None, WorkerDesired::Drained) => {
            let left = set.deadline.map_or(Duration::ZERO, |deadline| deadline.since(now));
            format!("{name} drains: it has {tasks}, and hands back what still runs in {}", age(left))
        }
    }
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
            controller: None,
            deadline: None,
            desired: WorkerDesired::Active,
            desired_by: None,
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
    fn a_sentence_says_what_happens_now() {
        let set = WorkerSet {
            id: WorkerId(Uuid::from_u128(9)),
            name: "box".into(),
            state: "ready".into(),
            busy: 1,
            deadline: None,
            unchanged: None,
        };
        let say = |set: &WorkerSet, desired| sentence(set, desired, Timestamp(0));
        assert_eq!(say(&set, WorkerDesired::Cordoned), "box gets no more tasks; it has 1 task");
        assert_eq!(say(&set, WorkerDesired::Active), "box takes tasks again");
        let drained = WorkerSet { busy: 2, deadline: Some(Timestamp(300_000_000)), ..set.clone() };
        let drains = "box drains: it has 2 tasks, and hands back what still runs in 5m";
        assert_eq!(say(&drained, WorkerDesired::Drained), drains);
        let again = WorkerSet { unchanged: Some("drained already by admin/ann".into()), ..drained };
        assert_eq!(say(&again, WorkerDesired::Drained), "box: drained already by admin/ann");
        assert_eq!(say(&WorkerSet { state: "drained".into(), ..again }, WorkerDesired::Drained), "box is drained");
    }

    #[test]
    fn every_column_has_a_cell() {
        let names: Vec<_> = COLUMNS.iter().map(|column| column.name).collect();
        let shown = table(&[info("box")], &names, 1000);
        assert!(shown.contains("7.5/16.0G") && shown.contains("0.1.0"), "{shown}");
        assert_eq!([rtt(999), rtt(1_540), rtt(250_000)], ["999us", "1.5ms", "250ms"]);
    }
}
