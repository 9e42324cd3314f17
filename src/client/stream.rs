//! A log as one stream of records that pauses, whatever happens to the connections under it.

use std::collections::VecDeque;
use std::time::Duration;

use ado_proto::request::{Following, StartAt};
use ado_proto::session::FollowItem;
use ado_proto::{Offset, Record, TaskId};
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::Error;
use super::cache::Recorder;
use super::cursor::{Cursor, Took, Violation};
use crate::net::{self, Call, Channel, Link};

/// A stream that stays away longer than this is worth a word to people.
const WORTH_A_WORD: Duration = Duration::from_secs(1);

/// What a log's reader sees.
#[derive(Debug)]
pub enum Step {
    /// The next record: in offset order, each once.
    Record(Record),
    /// The connection has been gone for a while. The task is not touched by it.
    Paused {
        /// When it was last there.
        since: Instant,
    },
    /// It is back.
    Resumed,
    /// The store was restored from a backup: what follows is the log as it is now, from its beginning.
    Reset {
        /// Which log it is now.
        generation: u64,
    },
    /// Somebody asked for this viewer to leave. The stream is over, the task goes on.
    Detached {
        /// Who, as `role/name`.
        by: String,
    },
    /// All is read.
    End,
}

enum State {
    Closed,
    Opening(BoxFuture<'static, Result<(Following, Channel), net::Error>>),
    Open(Channel),
    Over,
}

/// Reads a task's log; see [`super::Client::follow`].
pub struct RecordStream {
    link: Link,
    call: Call,
    cursor: Cursor,
    state: State,
    /// Decoded records of one frame at most.
    ready: VecDeque<Record>,
    /// When the stream was last there, while it is not.
    away_since: Instant,
    told: bool,
    recorder: Option<Recorder>,
    /// Nobody has asked for anything since it was made, or put to rest: it is not away.
    resting: bool,
}

impl RecordStream {
    pub(super) fn new(link: Link, call: Call, task: TaskId, from: StartAt, follow: bool) -> Self {
        Self {
            link,
            call,
            cursor: Cursor::new(task, from, follow),
            state: State::Closed,
            ready: VecDeque::new(),
            away_since: Instant::now(),
            told: false,
            recorder: None,
            resting: true,
        }
    }

    /// Gives up its place in the connection until the next step is asked for. Nothing is lost.
    pub fn rest(&mut self) {
        if !matches!(self.state, State::Over) {
            self.state = State::Closed;
            self.cursor.rest();
            self.resting = true;
        }
    }

    pub(super) fn recorded_by(mut self, recorder: Option<Recorder>) -> Self {
        self.recorder = recorder;
        self
    }

    /// Wants to know what happens to the task, not what it writes: a run of output comes as one
    /// [`Skipped`](ado_proto::record::Skipped), a long one as several.
    #[must_use]
    pub fn without_output(mut self) -> Self {
        self.cursor.skip_output();
        self
    }

    /// The offset after the last record that was handed out; `None` while the controller has not said where reading
    /// begins.
    pub fn next_offset(&self) -> Option<Offset> {
        self.ready.front().map(|record| record.span().start).or(self.cursor.next())
    }

    /// The next step; `None` after [`Step::End`] or an error. Cancel safe.
    ///
    /// # Errors
    /// What trying again cannot mend: a refusal, a certificate that is not accepted, a controller that breaks the rules.
    pub async fn next(&mut self) -> Option<Result<Step, Error>> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Some(Ok(Step::Record(record)));
            }
            let step = match &mut self.state {
                State::Over => return None,
                State::Closed => {
                    if std::mem::take(&mut self.resting) && !self.told {
                        self.away_since = Instant::now();
                    }
                    self.open();
                    None
                }
                State::Opening(opening) => {
                    let told = self.told;
                    let late = tokio::time::sleep_until(self.away_since + WORTH_A_WORD);
                    tokio::select! {
                        biased;
                        opened = opening => self.opened(opened),
                        () = late, if !told => {
                            self.told = true;
                            Some(Ok(Step::Paused { since: self.away_since }))
                        }
                    }
                }
                State::Open(channel) => {
                    let item = channel.rx.next_message::<FollowItem>().await;
                    self.take(item)
                }
            };
            if let Some(step) = step {
                if matches!(step, Ok(Step::End | Step::Detached { .. }) | Err(_)) {
                    self.state = State::Over;
                }
                return Some(step);
            }
        }
    }

    fn open(&mut self) {
        let (link, call, request, wait) =
            (self.link.clone(), self.call.clone(), self.cursor.request(), self.cursor.wait());
        self.state = State::Opening(Box::pin(async move {
            tokio::time::sleep(wait).await;
            link.open(&request, call).await
        }));
    }

    fn opened(&mut self, opened: Result<(Following, Channel), net::Error>) -> Option<Result<Step, Error>> {
        let (following, channel) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.failed(error),
        };
        match self.cursor.opened(&following) {
            Ok(None) => {
                self.state = State::Open(channel);
                std::mem::take(&mut self.told).then_some(Ok(Step::Resumed))
            }
            Ok(Some(generation)) => self.reset(generation),
            Err(violation) => self.violated(violation),
        }
    }

    fn take(&mut self, item: Result<Option<FollowItem>, net::Error>) -> Option<Result<Step, Error>> {
        match item {
            // The end of the stream without a word about the end of the log means "come again".
            Ok(None) => {
                self.close();
                None
            }
            Ok(Some(item)) => match self.cursor.take(item.clone()) {
                Ok(Took::Records(records)) => {
                    self.record(&item);
                    self.ready.extend(records);
                    None
                }
                Ok(Took::End) => Some(Ok(Step::End)),
                Ok(Took::Detached(by)) => Some(Ok(Step::Detached { by })),
                Ok(Took::Reopen) => {
                    self.close();
                    None
                }
                Ok(Took::Reset(generation)) => self.reset(generation),
                Err(violation) => self.violated(violation),
            },
            Err(error) => self.failed(error),
        }
    }

    /// Keeps records as they came: what is handed out may begin within one.
    fn record(&self, item: &FollowItem) {
        if let (Some(recorder), FollowItem::Records(records), Some(generation)) =
            (&self.recorder, item, self.cursor.generation())
        {
            recorder.records(self.cursor.task(), generation, records);
        }
    }

    fn failed(&mut self, error: net::Error) -> Option<Result<Step, Error>> {
        if !error.is_transient() {
            return Some(Err(error.into()));
        }
        tracing::debug!(%error, "reading again from the cursor");
        self.close();
        None
    }

    fn violated(&mut self, violation: Violation) -> Option<Result<Step, Error>> {
        if self.cursor.violated() {
            return Some(Err(Error::Violation(violation)));
        }
        tracing::warn!(%violation, "reading again from the cursor");
        self.close();
        None
    }

    fn reset(&mut self, generation: u64) -> Option<Result<Step, Error>> {
        self.close();
        if let Some(recorder) = &self.recorder {
            recorder.reset(generation);
        }
        Some(Ok(Step::Reset { generation }))
    }

    fn close(&mut self) {
        if matches!(self.state, State::Open(_)) {
            self.away_since = Instant::now();
        }
        self.state = State::Closed;
    }
}
