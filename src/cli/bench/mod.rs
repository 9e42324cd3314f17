//! `ado bench`: measure the mesh as its user meets it.

mod emit;
mod latency;
mod lines;
mod report;
mod stats;

use super::Global;
use super::error::Error;

/// Measure the mesh you use
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Latency(latency::Args),
    #[command(hide = true)]
    Emit(emit::Args),
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    match args.what {
        What::Latency(args) => latency::run(global, args).await,
        What::Emit(args) => emit::run(&args),
    }
}
