//! `ado answer`: answer what a task asks, from anywhere.

use ado_proto::AskId;
use ado_proto::record::Answer;
use ado_proto::request::{AnswerGiven, GiveAnswer};
use serde_json::json;

use super::Global;
use super::complete;
use super::error::Error;
use super::output::{Format, one_line, print};
use super::session::App;
use crate::config::Flags;

/// Answer what a task asks
///
/// An answer is one of those the question has (its name or the beginning of one), or words of your own where it takes
/// some. One answer is accepted, whoever gives it. `ado list --waiting` shows who asks, `ado status TASK` what.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ado answer task-7k2m allow\n  ado answer task-7k2m deny --text 'use the staging database'\n  ado answer task-7k2m --text 'the second one, please'"
)]
pub(crate) struct Args {
    /// Id, beginning of an id, or name
    #[arg(value_name = "TASK", add = complete::open_tasks())]
    task: String,
    /// The answer
    #[arg(value_name = "OPTION", required_unless_present = "text")]
    option: Option<String>,
    /// Words beside it, or instead of it
    #[arg(long)]
    text: Option<String>,
    /// Which question, when it asks several
    #[arg(long, value_name = "UUID")]
    ask: Option<AskId>,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let answer = Answer { choice: args.option, text: args.text };
    let given = session.client.answer(&GiveAnswer { reference: args.task, ask: args.ask, answer }).await?;
    session.close().await;
    let json = json!({
        "taskId": given.task,
        "shortId": given.task.short(),
        "requestId": given.ask,
        "option": given.answer.choice,
        "text": given.answer.text,
        "unchanged": given.unchanged,
    });
    match app.global {
        Global { quiet: true, output: Format::Text, .. } => {}
        Global { output, .. } => print(output, &json, || text(&given))?,
    }
    Ok(0)
}

fn text(given: &AnswerGiven) -> String {
    let short = given.task.short();
    let said = given.answer.choice.iter().chain(&given.answer.text).cloned().collect::<Vec<_>>().join(": ");
    let said = one_line(&said, 200);
    match &given.unchanged {
        Some(why) => format!("{short}: {}: {said}\n", one_line(why, 200)),
        None => format!("{short}: answered: {said}\n"),
    }
}

#[cfg(test)]
mod tests {
    use ado_proto::TaskId;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn words() {
        let answer = Answer { choice: Some("deny".into()), text: Some("not\nnow".into()) };
        let task = TaskId(Uuid::from_u128(7));
        let mut given = AnswerGiven { task, ask: AskId(Uuid::nil()), answer, unchanged: None };
        assert_eq!(text(&given), "task-0000000007: answered: deny: not now\n");
        given.unchanged = Some("already answered".into());
        assert_eq!(text(&given), "task-0000000007: already answered: deny: not now\n");
    }
}
