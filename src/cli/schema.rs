//! `ado schema`: the forms of what is printed for programs.

use super::error::Error;
use super::output::write;
use crate::json::SCHEMA;

/// Print the JSON Schema of everything that `--output json` prints
///
/// JSON Schema 2020-12; every kind of object has a name in `$defs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> Result<u8, Error> {
    write(SCHEMA)?;
    Ok(0)
}
