//! What a task says to its worker while it runs: progress, checkpoints, notes, on a Unix socket of its own attempt.
//!
//! Owns: the socket, what its lines mean, how much may be said. Must never know: outputs, the guard's protocol, the network.
//! A task may be hostile: whatever it sends costs bounded memory, slows nobody's output, speaks for no other task, and
//! counts for nothing once its attempt is given up.

mod folder;
mod line;
mod peer;
mod said;
mod server;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ado_proto::record::{Answer, AskClosed, Asked, Body, Checkpointed, Progress};
use ado_proto::spec::Exit;
use ado_proto::{AskDigest, AskId, Seq};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

pub use self::folder::Sockets;
pub(super) use self::folder::link_to;
pub(super) use self::said::Refusal;
use self::said::{Next, Said, Verdict};
pub(super) use self::server::Server;

/// Where a task is told under which seq its checkpoint stands in the log.
pub(super) type Reply = oneshot::Sender<Seq>;

/// What a task has said, between the one that listens and the one that writes its log.
#[derive(Debug)]
pub(super) struct Voice {
    said: Mutex<Said<Reply>>,
    /// There may be something for the log. One waits.
    more: Notify,
    since: Instant,
    asks: Mutex<Asks>,
}

/// Questions, and what is known of answers.
#[derive(Debug, Default)]
struct Asks {
    open: BTreeMap<AskId, oneshot::Sender<Answer>>,
    /// What was answered in earlier epochs.
    known: BTreeMap<AskDigest, Answer>,
}

impl Voice {
    /// Nothing was said yet. What was answered in earlier epochs is not asked again.
    pub(super) fn new(known: impl IntoIterator<Item = (AskDigest, Answer)>) -> Self {
        let asks = Mutex::new(Asks { open: BTreeMap::new(), known: known.into_iter().collect() });
        Self { said: Mutex::new(Said::new()), more: Notify::new(), since: Instant::now(), asks }
    }

    /// Questions are answered: whoever asked is told.
    pub(super) fn answered(&self, given: &[(AskId, Answer)]) {
        for (id, answer) in given {
            let asker = self.asks().open.remove(id);
            if let Some(asker) = asker {
                // Its connection may be gone.
                let _ = asker.send(answer.clone());
                self.closed(*id);
            }
        }
    }

    /// Whether it waits for somebody.
    pub(super) fn is_waiting(&self) -> bool {
        !self.asks().open.is_empty()
    }

    /// Asks somebody; where the answer comes.
    fn ask(&self, asked: Asked) -> Result<oneshot::Receiver<Answer>, Refusal> {
        let (reply, answer) = oneshot::channel();
        let mut asks = self.asks();
        if let Some(known) = asks.known.remove(&asked.digest) {
            let _ = reply.send(known);
            return Ok(answer);
        }
        if asks.open.len() >= said::ASKS_WAITING {
            return Err(Refusal::Asking);
        }
        asks.open.insert(asked.id, reply);
        drop(asks);
        self.tell(|said, _| said.ask(asked.into())).map(|()| answer)
    }

    /// Nobody waits for the answer any more.
    fn withdraw(&self, id: AskId) {
        let open = self.asks().open.remove(&id);
        if open.is_some() {
            self.closed(id);
        }
    }

    fn closed(&self, ask: AskId) {
        // Once the attempt is given up nobody asks any more.
        let _ = self.tell(|said, _| said.ask(AskClosed { ask }.into()));
    }

    fn asks(&self) -> MutexGuard<'_, Asks> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes into the log next. Cancel safe; one waits at a time.
    pub(super) async fn next(&self) -> (Body, Option<Reply>) {
        loop {
            let next = self.lock().next(self.now());
            match next {
                Next::Body(body, reply) => return (body, reply),
                Next::At(at) => {
                    tokio::select! {
                        biased;
                        () = self.more.notified() => {}
                        () = sleep_until(self.since + at) => {}
                    }
                }
                Next::Nothing => self.more.notified().await,
            }
        }
    }

    /// What was accepted and is not in the log yet, whether its time has come or not. Nothing is accepted after that.
    pub(super) fn last_words(&self) -> Vec<(Body, Option<Reply>)> {
        self.lock().last_words()
    }

    /// The attempt is given up: what is not in the log is forgotten, and nothing more is accepted.
    pub(super) fn silence(&self) {
        self.lock().silence();
    }

    /// When the next `bytes` of lines may be read.
    fn pace(&self, bytes: usize) -> Instant {
        let now = self.now();
        self.since + self.lock().pace(now, bytes)
    }

    fn progress(&self, progress: &Progress) -> Result<(), Refusal> {
        self.tell(|said, _| said.progress(progress))
    }

    fn verdict(&self, verdict: Verdict) -> Result<(), Refusal> {
        self.lock().verdict(verdict)
    }

    /// How the agent ended, given how its process did: it may have said why.
    pub(super) fn judge(&self, exit: Exit) -> Exit {
        self.lock().judge(exit)
    }

    /// Something people should know.
    pub(super) fn note(&self, text: String) -> Result<(), Refusal> {
        self.tell(|said, now| said.note(now, text))
    }

    /// When a checkpoint of so many bytes may be made. It counts as waiting until [`Voice::durable`].
    fn wants_checkpoint(&self, bytes: usize) -> Result<Instant, Refusal> {
        let now = self.now();
        self.lock().wants_checkpoint(now, bytes).map(|at| self.since + at)
    }

    /// A point to go on from; told under which seq it stands.
    pub(super) fn checkpoint(&self, made: Checkpointed) -> Result<oneshot::Receiver<Seq>, Refusal> {
        let (reply, seq) = oneshot::channel();
        self.tell(|said, _| said.checkpoint(made, reply)).map(|()| seq)
    }

    /// A checkpoint that was wanted waits no longer.
    fn durable(&self) {
        self.lock().durable();
    }

    fn tell(&self, say: impl FnOnce(&mut Said<Reply>, Duration) -> Result<(), Refusal>) -> Result<(), Refusal> {
        let now = self.now();
        let result = say(&mut self.lock(), now);
        self.more.notify_one();
        result
    }

    fn now(&self) -> Duration {
        self.since.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, Said<Reply>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
