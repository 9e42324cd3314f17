//! `ado pause`: freeze tasks.

use ado_proto::record::Desired;

use super::Global;
use super::complete;
use super::error::Error;
use super::steer::{self, Waiting, Wish};

/// Pause tasks
///
/// A task that runs is frozen where it is and keeps its place on the worker; one that waits is not started. Time limits do
/// not run meanwhile. Every task is tried; with `--output json`: one array.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ado pause nightly         freeze a task\n  ado pause group-a1b2      every task of a group\n  ado resume nightly        let it go on"
)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, names, groups
    #[arg(required = true, value_name = "TASK", add = complete::open_tasks())]
    tasks: Vec<String>,
    #[command(flatten)]
    waiting: Waiting,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    steer::run(global, &args.tasks, Wish { desired: Desired::Paused, force: false }, args.waiting).await
}
