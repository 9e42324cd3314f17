//! `ado task log`: tell people something beside the output.

use ado_proto::inside::Say;
use serde_json::json;

use super::{AT_ONCE, done, say};
use crate::cli::Global;
use crate::cli::error::Error;

/// Tell people something that is kept with the task's events
///
/// One line; a few a second are kept, more are refused. What there is much of belongs on standard output.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to tell
    message: String,
}

pub(crate) fn run(global: &Global, args: Args) -> Result<u8, Error> {
    say(&Say::Log { message: args.message.clone() }, Some(AT_ONCE), "ado task log hello")?;
    done(global, || json!({ "type": "note", "message": args.message }))
}
