//! `ado controllers`: who keeps tasks and logs.

use std::time::Duration;

use ado_proto::request::ControllerInfo;
use serde_json::Value;

use super::Global;
use super::columns::{self, Colour, Column, Side, Table, column};
use super::error::Error;
use super::output::{age, print, scene};
use super::session::App;
use crate::config::Flags;
use crate::json;

/// Show the controllers of the mesh
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
    /// List controllers: where they are, what each does
    #[command(alias = "ls")]
    List(List),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The one that answers has a * before its state. Loops are what one controller does for all.\n\nExamples:\n  ado controllers list --columns name,build,since"
)]
struct List {
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

const DEFAULT: [&str; 8] = ["name", "state", "addresses", "workers", "viewers", "loops", "seen", "since"];

static COLUMNS: [Column<ControllerInfo>; 10] = [
    column("name", "NAME", Side::Left, 8, 24, 0, |controller, _| controller.name.clone()),
    column("id", "ID", Side::Left, 36, 36, 9, |controller, _| controller.id.to_string()),
    Column {
        colour: |controller| Some(if controller.state == "live" { Colour::Green } else { Colour::Red }),
        ..column("state", "STATE", Side::Left, 5, 5, 0, |controller, _| {
            format!("{}{}", if controller.answers { "*" } else { "" }, controller.state)
        })
    },
    column("addresses", "ADDRESSES", Side::Left, 14, 60, 0, |controller, _| controller.addresses.join(",")),
    column("workers", "WORKERS", Side::Right, 7, 7, 1, |controller, _| controller.workers.to_string()),
    column("viewers", "VIEWERS", Side::Right, 7, 7, 2, |controller, _| controller.viewers.to_string()),
    column("loops", "LOOPS", Side::Left, 5, 40, 3, |controller, _| match &controller.loops[..] {
        [] => "-".into(),
        loops => loops.join(","),
    }),
    column("seen", "SEEN", Side::Right, 4, 4, 4, |controller, _| age(Duration::from_millis(controller.seen_age_ms))),
    column("since", "UP", Side::Right, 4, 4, 5, |controller, now| age(now.since(controller.since))),
    column("build", "BUILD", Side::Left, 5, 20, 9, |controller, _| controller.build.clone()),
];

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let args = match args.command {
        Some(Command::List(list)) => list,
        None => args.list,
    };
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let controllers = session.client.controllers().await?;
    session.close().await;
    if args.ids {
        let ids: Vec<String> = controllers.iter().map(|controller| controller.id.to_string()).collect();
        print(app.global.output, &ids, || ids.iter().map(|id| format!("{id}\n")).collect())?;
        return Ok(0);
    }
    let values: Vec<Value> = controllers.iter().map(json::controller).collect();
    let table = Table::new(&COLUMNS, &args.columns, &DEFAULT);
    print(app.global.output, &values, || table.render(&controllers, !args.no_headers, scene(app.env.now())))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use ado_proto::{ControllerId, Timestamp};
    use uuid::Uuid;

    use super::*;
    use crate::cli::columns::Scene;

    #[test]
    fn says_who_answers_and_who_does_what() {
        let one = ControllerInfo {
            id: ControllerId(Uuid::from_u128(1)),
            name: "alpha".into(),
            state: "live".into(),
            addresses: vec!["10.0.0.1:4433".into()],
            build: "0.1.0".into(),
            since: Timestamp(0),
            seen_age_ms: 300,
            loops: vec!["reaper".into(), "sweep".into()],
            workers: 3,
            viewers: 1,
            answers: true,
        };
        let two = ControllerInfo {
            id: ControllerId(Uuid::from_u128(2)),
            name: "beta".into(),
            state: "lost".into(),
            loops: Vec::new(),
            seen_age_ms: 65_000,
            answers: false,
            ..one.clone()
        };
        let scene = Scene { now: Timestamp(7_200_000_000), width: 120, colours: false };
        assert_eq!(
            Table::new(&COLUMNS, &[], &DEFAULT).render(&[one, two], true, scene),
            "NAME   STATE  ADDRESSES      WORKERS  VIEWERS  LOOPS         SEEN  UP\n\
             alpha  *live  10.0.0.1:4433        3        1  reaper,sweep    0s  2h\n\
             beta   lost   10.0.0.1:4433        3        1  -               1m  2h\n",
        );
    }
}
