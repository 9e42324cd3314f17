//! `ado task ask`: ask somebody, and wait for the answer.

use std::time::Duration;

use ado_proto::inside::Say;
use serde_json::json;

use super::{done, say};
use crate::cli::Global;
use crate::cli::error::{Error, Kind};
use crate::cli::output::Format;
use crate::cli::values;

/// Ask somebody, and print the answer
///
/// The task waits for it, and no limit of its time runs meanwhile. Whoever watches it is asked; anybody who may steer it
/// answers with `ado answer TASK OPTION`. Without options the answer is in words (`--text`). An attempt that asks what an
/// earlier one was answered gets that answer.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  test \"$(ado task ask 'Deploy?' --option yes --option no)\" = yes && ./deploy")]
pub(crate) struct Args {
    /// The question: one line
    question: String,
    /// What can be answered
    #[arg(long = "option", value_name = "OPTION")]
    options: Vec<String>,
    /// What is answered when nobody does in time
    #[arg(long, value_name = "OPTION", requires = "wait")]
    default: Option<String>,
    /// Wait this long for somebody
    #[arg(long, value_name = "TIME", value_parser = values::duration, requires = "default")]
    wait: Option<Duration>,
}

pub(crate) fn run(global: &Global, args: Args) -> Result<u8, Error> {
    let wait_ms = args.wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
    let words = Say::Ask { message: args.question, options: args.options, default: args.default, wait_ms };
    let answer = say(&words, None, r#"ado task ask "Deploy?" --option yes --option no"#)?.answer;
    if global.output == Format::Text {
        let printed = crate::cli::output::print(Format::Text, &(), || answer.clone().unwrap_or_default() + "\n");
        printed.map_err(|error| Error::new(Kind::Local, "cannot print").because(error))?;
    }
    done(global, || json!({ "type": "ask", "answer": answer }))
}
