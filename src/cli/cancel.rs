//! `ado cancel`: end tasks.

use ado_proto::record::Desired;
use ado_proto::request::DesiredSet;
use serde_json::{Value, json};

use super::Global;
use super::error::Error;
use super::output::{plain, print};
use super::session::App;
use crate::config::Flags;

/// Cancel tasks
///
/// The agent is asked to stop, and killed when it does not. With `--output json`: one array.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ids, beginnings of ids, groups
    #[arg(required = true, value_name = "TASK")]
    tasks: Vec<String>,
    /// Kill at once
    #[arg(long)]
    force: bool,
}

/// Every reference is tried; the first failure is told after the results of the others.
pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let mut done: Vec<DesiredSet> = Vec::new();
    let mut failed: Option<Error> = None;
    for reference in &args.tasks {
        match session.client.set_desired(reference, Desired::Cancelled, args.force).await {
            Ok(tasks) => done.extend(tasks),
            Err(error) => {
                failed.get_or_insert(error.into());
            }
        }
    }
    session.close().await;
    let json: Vec<Value> = done.iter().map(to_json).collect();
    print(app.global.output, &json, || done.iter().map(to_text).collect())?;
    failed.map_or(Ok(0), Err)
}

fn to_json(set: &DesiredSet) -> Value {
    json!({ "taskId": set.task, "shortId": set.task.short(), "status": set.state, "unchanged": set.unchanged })
}

fn to_text(set: &DesiredSet) -> String {
    let words = match (&set.unchanged, set.state.as_str()) {
        (Some(why), _) => plain(why),
        (None, "cancelled") => "cancelled".into(),
        (None, _) => "cancelling".into(),
    };
    format!("{}: {words}\n", set.task.short())
}
