//! Shows a task's log on this process's own stdout and stderr until it ends, the user leaves, or nobody reads any more.

use std::io;
use std::pin::pin;
use std::time::Duration;

use ado_proto::record::{Body, Desired, Ended};
use ado_proto::request::{StartAt, TaskInfo};
use ado_proto::{Offset, TaskId};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::error::{Error, Kind};
use super::lifecycle::exit_code;
use super::output::Format;
use super::painter::{Batch, Look, Painter};
use super::session::Session;
use super::signals::{Signal, Signals};
use super::surviving::Surviving;
use crate::client::{self, RecordStream, Step};

/// Most bytes written at once. What comes while they are written waits in the network's own windows.
const BATCH: usize = 256 * 1024;

/// How long leaving waits for the write under way.
const LAST_WRITE: Duration = Duration::from_millis(100);

/// What Ctrl-C means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnInterrupt {
    /// Leave; the task goes on.
    #[default]
    Detach,
    /// Cancel the task and wait for its end; a second Ctrl-C leaves.
    Cancel,
}

/// What to show of which task.
pub(crate) struct Watch<'a> {
    pub(crate) session: &'a Session,
    pub(crate) task: TaskId,
    /// Who holds it, when that is known.
    pub(crate) worker: Option<String>,
    pub(crate) start: StartAt,
    /// Stay until the task ends.
    pub(crate) follow: bool,
    pub(crate) look: Look,
    /// Only what this keeps; `None`: everything.
    pub(crate) surviving: Option<Surviving>,
    pub(crate) on_interrupt: OnInterrupt,
}

/// How watching ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// All was shown; how the task ended, if it did.
    End(Option<Ended>),
    /// The user left.
    Detached,
    /// Nobody reads stdout any more.
    NobodyReads,
}

impl Finish {
    /// The exit code of a command that stands for the task.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::End(Some(ended)) => exit_code(ended.outcome, ended.exit.as_ref()),
            Self::End(None) | Self::Detached | Self::NobodyReads => 0,
        }
    }
}

impl<'a> Watch<'a> {
    /// Everything of a task that is known, from its beginning, until it ends.
    pub(crate) fn new(session: &'a Session, task: TaskId, look: Look) -> Self {
        Self {
            session,
            task,
            worker: None,
            start: StartAt::Offset(Offset(0)),
            follow: true,
            look,
            surviving: None,
            on_interrupt: OnInterrupt::Detach,
        }
    }

    /// The same of a task that is known.
    pub(crate) fn of(session: &'a Session, info: &TaskInfo, look: Look) -> Self {
        Self { worker: info.worker.map(|worker| worker.to_string()), ..Self::new(session, info.id, look) }
    }

    /// Shows it.
    pub(crate) async fn run(self, signals: &mut Signals) -> Result<Finish, Error> {
        if self.follow {
            self.session.stay();
        }
        let stream = self.session.client.follow(self.task, self.start, self.follow);
        let painter = Painter::new(self.task, self.worker.clone(), self.look);
        let wishes = Wishes {
            session: self.session,
            task: self.task,
            on: self.on_interrupt,
            format: self.look.format,
            signals,
            cancelling: None,
        };
        Show { stream, painter, surviving: self.surviving, wishes, ended: None, written: None }.run().await
    }
}

struct Show<'a> {
    stream: RecordStream,
    painter: Painter,
    surviving: Option<Surviving>,
    wishes: Wishes<'a>,
    ended: Option<Ended>,
    /// One after the last record that was written.
    written: Option<Offset>,
}

/// Whether there is more to read.
enum Read {
    More,
    All,
    /// Somebody asked for this viewer to leave.
    SentAway(String),
    Failed(Error),
}

impl Show<'_> {
    async fn run(mut self) -> Result<Finish, Error> {
        let session = self.wishes.session;
        loop {
            let step = tokio::select! {
                biased;
                step = self.wishes.unless_leaving(self.stream.next()) => step,
                () = session.taken_down() => return Err(self.taken_down()),
            };
            let Some(step) = step else { return Ok(self.leave()) };
            let mut batch = Batch::default();
            let read = self.gather(step, &mut batch);
            if !matches!(read, Read::More) {
                self.painter.finish(&mut batch);
            }
            let mut writing = pin!(write(batch));
            match self.wishes.unless_leaving(&mut writing).await {
                None => {
                    // A reader that reads has it all by now: then it is not to be shown again.
                    if let Ok(Ok(())) = tokio::time::timeout(LAST_WRITE, writing).await {
                        self.written = self.stream.next_offset();
                    }
                    return Ok(self.leave());
                }
                Some(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Finish::NobodyReads),
                Some(Err(error)) => return Err(Error::new(Kind::Local, "cannot write the output").because(error)),
                Some(Ok(())) => self.written = self.stream.next_offset(),
            }
            match read {
                Read::More => {}
                Read::All => return Ok(Finish::End(self.ended)),
                Read::SentAway(_by) => return Ok(self.leave()),
                Read::Failed(error) => return Err(self.wishes.with_continuation(error, self.written)),
            }
        }
    }

    /// Takes the step and all that follow without waiting.
    fn gather(&mut self, mut step: Option<Result<Step, client::Error>>, batch: &mut Batch) -> Read {
        loop {
            match step {
                None | Some(Ok(Step::End)) => return Read::All,
                Some(Ok(Step::Detached { by })) => return Read::SentAway(by),
                Some(Err(error)) => return Read::Failed(error.into()),
                Some(Ok(step)) => self.paint(step, batch),
            }
            if batch.weight() >= BATCH {
                return Read::More;
            }
            match self.stream.next().now_or_never() {
                Some(next) => step = next,
                None => return Read::More,
            }
        }
    }

    fn paint(&mut self, step: Step, batch: &mut Batch) {
        match step {
            Step::Record(record) => {
                if self.surviving.as_ref().is_none_or(|surviving| surviving.keeps(&record)) {
                    self.painter.record(&record, batch);
                }
                if let Body::Ended(ended) = record.body {
                    self.ended = Some(ended);
                }
            }
            Step::Paused { .. } => {
                self.painter.notice("connection lost: waiting for it (the task goes on)", false, batch)
            }
            Step::Resumed => self.painter.notice("connected", false, batch),
            Step::Reset { generation } => self.painter.reset(generation, batch),
            Step::Detached { .. } | Step::End => {}
        }
    }

    /// Says how to come back.
    fn leave(mut self) -> Finish {
        let command = self.wishes.continuation(self.written);
        let mut batch = Batch::default();
        self.painter.farewell(self.written, &command, &mut batch);
        // Whoever closed stderr does not want to know.
        let _ = batch.write();
        Finish::Detached
    }

    /// Nobody will write more, however long one waits.
    fn taken_down(mut self) -> Error {
        let mut batch = Batch::default();
        self.painter.finish(&mut batch);
        let _ = batch.write();
        let text = "the controller and the worker of this machine were stopped (`ado down`): the task waits for them";
        self.wishes.with_continuation(Error::new(Kind::Local, text), self.written)
    }
}

/// A write may block for as long as the reader does not read; signals are heard meanwhile.
async fn write(batch: Batch) -> io::Result<()> {
    if batch.weight() == 0 {
        return Ok(());
    }
    tokio::task::spawn_blocking(move || batch.write()).await.map_err(io::Error::other)?
}

/// What the user wants while something else is waited for.
struct Wishes<'a> {
    session: &'a Session,
    task: TaskId,
    on: OnInterrupt,
    format: Format,
    signals: &'a mut Signals,
    cancelling: Option<BoxFuture<'static, Result<(), client::Error>>>,
}

impl Wishes<'_> {
    /// Waits for `work`, unless the user leaves before.
    async fn unless_leaving<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        loop {
            let cancelled = async {
                match &mut self.cancelling {
                    Some(cancelling) => cancelling.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                signal = self.signals.next() => if self.leaves(signal) { return None },
                result = cancelled => {
                    self.cancelling = None;
                    if let Err(error) = result {
                        eprint!("{}", Error::from(error).render(self.format));
                        self.on = OnInterrupt::Detach;
                    }
                }
                done = &mut work => return Some(done),
            }
        }
    }

    fn leaves(&mut self, signal: Signal) -> bool {
        if (signal, self.on) != (Signal::Interrupt, OnInterrupt::Cancel) {
            return true;
        }
        self.on = OnInterrupt::Detach;
        if self.format == Format::Text {
            eprintln!("\ncancelling {}; Ctrl-C again leaves", self.task.short());
        }
        let (client, task) = (self.session.client.clone(), self.task.to_string());
        self.cancelling =
            Some(Box::pin(async move { client.set_desired(&task, Desired::Cancelled, false).await.map(drop) }));
        false
    }

    fn continuation(&self, written: Option<Offset>) -> String {
        let from = written.map(|offset| format!(" --from {offset}")).unwrap_or_default();
        self.session.command(&format!("attach {}{from}", self.task.short()))
    }

    fn with_continuation(&self, error: Error, written: Option<Offset>) -> Error {
        error.hint(self.continuation(written))
    }
}
