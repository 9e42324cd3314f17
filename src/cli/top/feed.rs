//! Asks the mesh again and again, one question of a kind at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use ado_proto::TaskId;
use ado_proto::record::{Body, Desired};
use ado_proto::request::{EventsFrom, ListEvents, ListTasks, StartAt, TaskInfo};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use super::model::{Feed, Input};
use super::text::lines;
use crate::cli::error::Error;
use crate::client::{self, Client, Step};
use crate::tasks::Tasks;

/// Between an answer and the next question.
const EVERY: Duration = Duration::from_secs(1);
/// Newest tasks that are shown, whatever their state.
const RECENT: u32 = 200;
/// Most tasks of one answer, and of all that are not over.
const MOST: u32 = 1000;
/// Pages looked at for tasks that are not over: a page may be short.
const PAGES: usize = 4;
/// Events shown at first.
const EVENTS: u32 = 50;
/// How long a question for events waits for one, milliseconds.
const WAIT_MS: u32 = 20_000;
/// Lines of a log's end.
const LINES: u32 = 60;
/// Bytes of a log's end: lines may be long.
const BYTES: usize = 128 * 1024;

/// The states of tasks that are not over.
const ACTIVE: [&str; 5] = ["queued", "starting", "running", "paused", "waiting"];

/// Asks until `tasks` stop. Answers go to `to`; while nobody takes them, nothing is asked.
pub(super) fn start(
    client: &Client,
    tasks: &Tasks,
    to: &mpsc::Sender<Input>,
    preview: watch::Receiver<Option<TaskId>>,
) {
    let again = |feed: Feed, client: &Client| Asking { client: client.clone(), to: to.clone(), feed };
    let (list, fleet, answers) =
        (again(Feed::Tasks, client), again(Feed::Workers, client), again(Feed::Answers, client));
    tasks.spawn_until_stop("top tasks", async move { list.every(async |client| tasks_now(client).await).await });
    tasks.spawn_until_stop("top workers", async move {
        fleet.every(async |client| Ok(Input::Workers(client.workers(None).await?))).await;
    });
    tasks.spawn_until_stop("top answers", async move { answers.every(async |client| answer_time(client).await).await });
    tasks.spawn_until_stop("top events", again(Feed::Events, client).events());
    tasks.spawn_until_stop("top preview", again(Feed::Preview, client).preview(preview));
}

/// Everything, once.
pub(super) async fn once(client: &Client) -> Result<Vec<Input>, client::Error> {
    let answered = answer_time(client).await?;
    let tasks = tasks_now(client).await?;
    let workers = Input::Workers(client.workers(None).await?);
    Ok(vec![answered, tasks, workers])
}

/// Asks for another state of a task, and says what came of it.
pub(super) async fn steer(client: Client, task: TaskId, desired: Desired, to: mpsc::Sender<Input>) {
    let name = task.short();
    let said = match client.set_desired(&task.to_string(), desired, false).await {
        Err(error) => Input::Said { text: format!("{name}: {}", Error::from(error)), error: true },
        Ok(done) => match done.into_iter().next().and_then(|set| set.unchanged) {
            Some(why) => Input::Said { text: format!("{name}: {why}"), error: true },
            None => {
                let what = match desired {
                    Desired::Running => "resuming",
                    Desired::Paused => "pausing",
                    Desired::Cancelled => "cancelling",
                };
                Input::Said { text: format!("{what} {name}"), error: false }
            }
        },
    };
    // Nobody is there to be told when the dashboard is closed.
    let _ = to.send(said).await;
}

struct Asking {
    client: Client,
    to: mpsc::Sender<Input>,
    feed: Feed,
}

impl Asking {
    async fn every(self, ask: impl AsyncFn(&Client) -> Result<Input, client::Error>) {
        loop {
            let answer = ask(&self.client).await;
            if !self.tell(answer).await {
                return;
            }
            sleep(EVERY).await;
        }
    }

    /// Whether anybody is there to be told.
    async fn tell(&self, answer: Result<Input, client::Error>) -> bool {
        let input =
            answer.unwrap_or_else(|error| Input::Failed { feed: self.feed, why: Error::from(error).to_string() });
        self.to.send(input).await.is_ok()
    }

    async fn events(self) {
        let mut from = EventsFrom::Tail(EVENTS);
        loop {
            let asked = Instant::now();
            let wait_ms = if matches!(from, EventsFrom::After(_)) { WAIT_MS } else { 0 };
            let answer = self.client.events(&ListEvents { from, limit: MOST, wait_ms }).await;
            let quiet = match &answer {
                Ok(events) => {
                    from = EventsFrom::After(events.next);
                    events.events.is_empty()
                }
                Err(_) => true,
            };
            if !self.tell(answer.map(|events| Input::Events(events.events))).await {
                return;
            }
            // An answer that had nothing and did not wait for it.
            if quiet && asked.elapsed() < EVERY {
                sleep(EVERY).await;
            }
        }
    }

    async fn preview(self, mut wanted: watch::Receiver<Option<TaskId>>) {
        loop {
            let task = *wanted.borrow_and_update();
            if let Some(task) = task {
                let lines = tokio::select! {
                    biased;
                    changed = wanted.changed() => if changed.is_ok() { continue } else { return },
                    lines = end_of(&self.client, task) => lines,
                };
                if !self.tell(lines.map(|lines| Input::Preview { task, lines })).await {
                    return;
                }
            }
            tokio::select! {
                biased;
                changed = wanted.changed() => if changed.is_err() { return },
                () = sleep(EVERY), if task.is_some() => {}
            }
        }
    }
}

async fn answer_time(client: &Client) -> Result<Input, client::Error> {
    let asked = Instant::now();
    client.hello().await?;
    Ok(Input::Answered(asked.elapsed()))
}

/// The newest tasks, and all that are not over.
async fn tasks_now(client: &Client) -> Result<Input, client::Error> {
    let recent = client.list(&ListTasks { limit: RECENT, ..ListTasks::default() }).await?;
    let more = recent.next.is_some();
    let mut tasks: BTreeMap<TaskId, TaskInfo> = recent.tasks.into_iter().map(|info| (info.id, info)).collect();
    let mut before = recent.next;
    for _ in 0..PAGES {
        if before.is_none() || tasks.len() >= MOST as usize {
            break;
        }
        let states = ACTIVE.map(String::from).into();
        let page = client.list(&ListTasks { states, before, limit: MOST, ..ListTasks::default() }).await?;
        tasks.extend(page.tasks.into_iter().map(|info| (info.id, info)));
        before = page.next;
    }
    Ok(Input::Tasks { tasks: tasks.into_values().collect(), more })
}

/// The last lines of a task's log.
async fn end_of(client: &Client, task: TaskId) -> Result<Vec<String>, client::Error> {
    let mut output = Vec::new();
    let mut log = client.follow(task, StartAt::Tail(LINES), false);
    while let Some(step) = log.next().await {
        if let Step::Record(record) = step?
            && let Body::Output(written) = record.body
        {
            output.extend_from_slice(&written.data);
            let excess = output.len().saturating_sub(BYTES);
            output.drain(..excess);
        }
    }
    Ok(lines(&output, LINES as usize))
}
