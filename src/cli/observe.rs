//! Following what happens to a task, without what it writes, until it is as somebody waits for.

use ado_proto::record::Body;
use ado_proto::request::{StartAt, TaskInfo};
use ado_proto::{Offset, TaskId};

use super::error::{Error, Kind};
use super::session::Session;
use crate::client::Step;

/// Whether a task in this state has ended.
pub(crate) fn is_over(state: &str) -> bool {
    matches!(state, "completed" | "failed" | "cancelled")
}

/// Looks at a task until it is as wanted or over. Never ends by itself before that; cancel safe.
pub(crate) async fn until(
    session: &Session,
    task: TaskId,
    wanted: impl Fn(&TaskInfo) -> bool,
) -> Result<TaskInfo, Error> {
    loop {
        let info = look(session, task).await?;
        if is_over(&info.state) || wanted(&info) {
            return Ok(info);
        }
        // The state is what the log says up to here: what comes after it is seen.
        changed(session, task, info.next_offset).await?;
    }
}

async fn look(session: &Session, task: TaskId) -> Result<TaskInfo, Error> {
    let mut tasks = session.client.tasks(&task.to_string()).await?;
    let gone = || Error::new(Kind::Network, format!("the controller no longer knows {}", task.short()));
    tasks.pop().ok_or_else(gone)
}

/// Waits for a record that may change the state.
async fn changed(session: &Session, task: TaskId, from: Offset) -> Result<(), Error> {
    let mut stream = session.client.follow(task, StartAt::Offset(from), true).without_output();
    loop {
        match stream.next().await {
            Some(Ok(Step::Record(record))) if changes_state(&record.body) => return Ok(()),
            Some(Ok(Step::Record(_) | Step::Paused { .. } | Step::Resumed)) => {}
            // Whoever sends viewers away does not mean those who look at no output.
            Some(Ok(Step::Reset { .. } | Step::Detached { .. } | Step::End)) | None => return Ok(()),
            Some(Err(error)) => return Err(error.into()),
        }
    }
}

fn changes_state(body: &Body) -> bool {
    !matches!(body, Body::Output(_) | Body::Skipped(_) | Body::Progress(_) | Body::Note(_) | Body::Checkpointed(_))
}

/// Nobody will change anything any more, however long one waits.
pub(crate) fn taken_down() -> Error {
    let text = "the controller and the worker of this machine were stopped (`ado down`)";
    Error::new(Kind::Local, text).hint("ado up")
}
