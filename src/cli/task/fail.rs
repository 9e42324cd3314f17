//! `ado task fail`: say how a failure is to be judged.

use std::time::Duration;

use ado_proto::inside::Say;
use serde_json::json;

use super::{AT_ONCE, done, say};
use crate::cli::Global;
use crate::cli::error::Error;
use crate::cli::values;

/// Say why this task is about to fail, and whether trying again can help
///
/// Then exit: what was said counts more than the exit code. Without it, a failed attempt is tried again as often as
/// `ado run --retries` says.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("how").required(true),
    after_help = "Examples:\n  ado task fail --permanent 'the input is no JSON'; exit 1\n  ado task fail --unavailable 'quota used up' --retry-after 10m; exit 1"
)]
pub(crate) struct Args {
    /// It would fail again in the same way: do not try again
    #[arg(long, group = "how")]
    permanent: bool,
    /// What it needs is away: try again later, and count no attempt
    #[arg(long, group = "how")]
    unavailable: bool,
    /// With --unavailable: not before this long
    #[arg(long, value_name = "DURATION", value_parser = values::duration, conflicts_with = "permanent")]
    retry_after: Option<Duration>,
    /// What is wrong
    message: String,
}

pub(crate) fn run(global: &Global, args: Args) -> Result<u8, Error> {
    let retry_after_ms = args.retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
    let message = args.message.clone();
    let words = match args.unavailable {
        true => Say::Unavailable { message, retry_after_ms },
        false => Say::Hopeless { message },
    };
    say(&words, Some(AT_ONCE), "ado task fail --permanent broken")?;
    done(global, || {
        json!({
            "type": "fail",
            "permanent": args.permanent,
            "retryAfterMs": retry_after_ms,
            "message": args.message,
        })
    })
}
