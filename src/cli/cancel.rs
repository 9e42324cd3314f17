//! `ado cancel`: end tasks.

use ado_proto::record::Desired;

use super::Global;
use super::complete;
use super::error::Error;
use super::steer::{self, Waiting, Wish};

/// Cancel tasks
///
/// The agent is asked to stop, and killed when it does not. Waits until nothing of it is left. Every task is tried; with
/// `--output json`: one array.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ado cancel task-7k2m nightly     two tasks: by the beginning of an id, by name\n  ado cancel group-a1b2 --force    every task of a group, killed at once"
)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, names, groups
    #[arg(required = true, value_name = "TASK", add = complete::open_tasks())]
    tasks: Vec<String>,
    /// Kill at once
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    waiting: Waiting,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    steer::run(global, &args.tasks, Wish { desired: Desired::Cancelled, force: args.force }, args.waiting).await
}
