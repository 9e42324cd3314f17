//! `ado config`: what holds, and why.

use super::Global;
use super::error::{Error, Kind};
use super::output::print;
use super::session::App;
use crate::config::{self, Flags};

/// Show the configuration
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print every key with its value and where that comes from
    Show,
}

pub(crate) fn run(global: Global, args: Args) -> Result<u8, Error> {
    let Command::Show = args.command;
    let format = global.output;
    let config = App::new(global, Flags::default())?.config;
    print(format, &config.to_json(), || config.to_text())?;
    Ok(0)
}

impl From<config::Error> for Error {
    fn from(error: config::Error) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::new(Kind::Local, "cannot write the output").because(error)
    }
}
