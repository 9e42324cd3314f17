//! `ado detach`: send viewers away; the tasks go on.

use ado_proto::request::ListTasks;
use serde_json::json;

use super::Global;
use super::complete;
use super::error::Error;
use super::output::{Format, print};
use super::session::{App, Session};
use crate::config::Flags;

/// End viewers of a task without stopping it
///
/// Commands that watch it, here or on another machine, leave with exit code 0 and say how to come back. Without TASK: of
/// all tasks.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  ado detach nightly        your own viewers of a task\n  ado detach                your own viewers of everything\n  ado detach nightly --all  everybody's (administrators)"
)]
pub(crate) struct Args {
    /// Id, the beginning of one, a name or a group
    #[arg(add = complete::open_tasks())]
    task: Option<String>,
    /// Everybody's viewers, not only your own: for administrators
    #[arg(long)]
    all: bool,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let references = match &args.task {
        Some(task) => vec![task.clone()],
        None => open_tasks(&session).await?,
    };
    let mut viewers: u32 = 0;
    for reference in &references {
        viewers = viewers.saturating_add(session.client.detach(reference, args.all).await?.viewers);
    }
    session.close().await;
    let what = args.task.as_deref();
    if app.global.output == Format::Text && app.global.quiet {
        return Ok(0);
    }
    print(app.global.output, &json!({ "task": what, "viewers": viewers }), || to_text(what, viewers))?;
    Ok(0)
}

/// Tasks that have not ended: others have no viewers that stay.
async fn open_tasks(session: &Session) -> Result<Vec<String>, Error> {
    let states = ["queued", "starting", "running", "paused", "waiting"].map(Into::into).to_vec();
    let mut request = ListTasks { states, limit: 1000, ..ListTasks::default() };
    let mut found = Vec::new();
    loop {
        let page = session.client.list(&request).await?;
        found.extend(page.tasks.iter().map(|task| task.id.to_string()));
        match page.next {
            Some(next) => request.before = Some(next),
            None => return Ok(found),
        }
    }
}

fn to_text(what: Option<&str>, viewers: u32) -> String {
    let of = what.map(|what| format!(" of {}", super::output::plain(what))).unwrap_or_default();
    match (viewers, what) {
        (0, Some(what)) => format!("nobody watches {}", super::output::plain(what)),
        (0, None) => "nobody watches anything".into(),
        (1, _) => format!("ended 1 viewer{of}"),
        (many, _) => format!("ended {many} viewers{of}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(to_text(Some("count"), 0), "nobody watches count");
        assert_eq!(to_text(None, 0), "nobody watches anything");
        assert_eq!(to_text(Some("count"), 1), "ended 1 viewer of count");
        assert_eq!(to_text(None, 2), "ended 2 viewers");
    }
}
