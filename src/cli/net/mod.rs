//! `ado net`: the network between this machine and the controllers.

mod diagnosis;
mod doctor;

use super::Global;
use super::error::Error;

/// Look at the network between here and the controllers
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Doctor(doctor::Args),
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    match args.command {
        Command::Doctor(args) => doctor::run(global, args).await,
    }
}
