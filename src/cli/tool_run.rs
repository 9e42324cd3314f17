//! `ado tool-run`: stands in for a shell in which an AI agent runs its tools. Started by scripts of a worker only.

use std::ffi::OsString;
use std::process::ExitCode;

/// Run a program of an AI agent, and show its output while it runs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Program
    program: OsString,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// One thread, no runtime: it forks.
pub(crate) fn run(args: &Args) -> ExitCode {
    crate::worker::tool::run(&args.program, &args.arguments)
}
