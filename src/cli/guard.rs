//! `ado guard`: the small process an agent runs under. Started by workers only.

use std::path::PathBuf;
use std::process::ExitCode;

/// Hold one agent on behalf of a worker
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory of the locks that show which guards live
    pub(super) guards: PathBuf,
}

/// One thread, no runtime: it forks.
pub(crate) fn run(args: &Args) -> ExitCode {
    crate::worker::guard::run(&args.guards)
}
