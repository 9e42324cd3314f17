//! `ado resume`: let paused tasks go on.

use ado_proto::record::Desired;

use super::Global;
use super::complete;
use super::error::Error;
use super::steer::{self, Waiting, Wish};

/// Let paused tasks go on
///
/// Every task is tried; with `--output json`: one array.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, names, groups
    #[arg(required = true, value_name = "TASK", add = complete::open_tasks())]
    tasks: Vec<String>,
    #[command(flatten)]
    waiting: Waiting,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    steer::run(global, &args.tasks, Wish { desired: Desired::Running, force: false }, args.waiting).await
}
