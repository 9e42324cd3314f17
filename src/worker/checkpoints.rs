//! Checkpoints that hold a task's folder: when one is taken, in which order, and when it counts.
//!
//! Owns: the order look, freeze, look again, thaw, send, record. Must never know: how a folder is looked at, who keeps the
//! blobs, what the guard is told. One attempt takes one at a time, and few attempts look at their folders at once.
//!
//! A checkpoint counts from its record on, and that is written when all its blobs are durable: whoever dies before leaves
//! the former one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ado_proto::record::Checkpointed;
use ado_proto::snapshot::Manifest;
use ado_proto::{BlobId, CheckpointId, Seq, Snapshot, TaskId};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::backoff;
use super::inside::Voice;
use super::snapshot::{Error, Limits, Root, Taken, Taker, Vault, VaultError};
use crate::env::Env;

/// How long a guard may take to freeze its agent. One that is told to stop, or dying, never does.
const FREEZE_WITHIN: Duration = Duration::from_secs(5);
/// From the first blob of a snapshot to its last. Controllers keep longer what nobody has named yet; beyond that a part of it
/// might be gone when the rest comes.
const SEND_WITHIN: Duration = Duration::from_secs(30 * 60);
/// Blobs of one attempt on their way at once: one is made durable while another travels.
const IN_FLIGHT: usize = 2;
/// Attempts of a worker that look at their folders at once, and that send what they found.
const LOOKING: usize = 2;
const SENDING: usize = 4;
/// Requests that wait; the task's socket takes no more than this anyway.
const WAITING: usize = 8;

/// With what a worker takes snapshots.
#[derive(Debug, Clone)]
pub struct Archive {
    /// What one may take.
    pub limits: Limits,
    /// Where packs lie until they are sent: a folder per attempt.
    pub staging: std::path::PathBuf,
    looking: Arc<Semaphore>,
    sending: Arc<Semaphore>,
}

impl Archive {
    /// For all attempts of a worker.
    pub fn new(limits: Limits, staging: std::path::PathBuf) -> Self {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Self { limits, staging, looking: semaphore(LOOKING), sending: semaphore(SENDING) }
    }
}

/// What the one who holds the agent is asked.
#[derive(Debug)]
pub(super) enum Hold {
    /// Let it stand still.
    Freeze {
        /// Told when it does.
        frozen: oneshot::Sender<()>,
        /// Told the seq of what it says next, once all it had written before is in its place.
        until: oneshot::Sender<Seq>,
    },
    /// Let it go on.
    Thaw,
}

/// Asks for checkpoints. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    asks: mpsc::Sender<Ask>,
    /// Whether every checkpoint holds the folder.
    always: Arc<AtomicBool>,
    /// Why none can.
    never: Option<Arc<str>>,
}

#[derive(Debug)]
struct Ask {
    data: String,
    reply: oneshot::Sender<Result<CheckpointId, String>>,
}

impl Asker {
    /// One for whom no folder can be kept.
    pub(super) fn never(why: &str) -> Self {
        let (asks, _) = mpsc::channel(1);
        Self { asks, always: Arc::default(), never: Some(why.into()) }
    }

    /// Whether a checkpoint holds the folder, for one that asks for that or not.
    pub(super) fn is_due(&self, asked: bool) -> bool {
        asked || self.always.load(Ordering::Relaxed)
    }

    /// Makes one; it is durable then.
    pub(super) async fn checkpoint(&self, data: String) -> Result<CheckpointId, String> {
        if let Some(why) = &self.never {
            return Err(why.to_string());
        }
        let over = || "this attempt is over: nothing it says is recorded any more".to_owned();
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask { data, reply }).await.map_err(|_| over())?;
        answer.await.unwrap_or_else(|_| Err(over()))
    }
}

/// What a folder was made of.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) id: BlobId,
    pub(super) manifest: Manifest,
    pub(super) home: TaskId,
}

/// The parts of [`Checkpoints`].
pub(super) struct Parts<'a> {
    pub(super) task: TaskId,
    pub(super) roots: Vec<Root>,
    pub(super) archive: &'a Archive,
    /// A folder for this attempt alone.
    pub(super) staging: std::path::PathBuf,
    pub(super) vault: Arc<dyn Vault>,
    /// Between two that nobody asked for.
    pub(super) every: Option<Duration>,
    /// What the attempt goes on from.
    pub(super) origin: Option<Origin>,
    /// What the last checkpoint told.
    pub(super) data: Option<String>,
    pub(super) voice: Arc<Voice>,
    /// The first seq that is not in the log.
    pub(super) durable: watch::Receiver<Seq>,
    pub(super) env: Env,
}

/// Takes the snapshots of one attempt.
pub(super) struct Checkpoints<'a> {
    parts: Parts<'a>,
    /// Away while somebody works with it on another thread.
    taker: Option<Taker>,
    asks: mpsc::Receiver<Ask>,
    always: Arc<AtomicBool>,
    holds: mpsc::Sender<Hold>,
    data: String,
    /// What was last said about one that failed; `None`: the last one did not.
    failed: Option<String>,
    /// What was last said to be left out.
    left_out: Option<String>,
}

/// Tells a thread that nobody waits for it any more.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Checkpoints<'a> {
    /// Ready to run; with the one who asks, and what the agent's holder is asked.
    pub(super) fn new(mut parts: Parts<'a>) -> (Self, Asker, mpsc::Receiver<Hold>) {
        let (to_here, asks) = mpsc::channel(WAITING);
        let (holds, held) = mpsc::channel(1);
        // Who goes on from a folder is not left without it.
        let always = Arc::new(AtomicBool::new(parts.every.is_some() || parts.origin.is_some()));
        let mut taker = Taker::new(parts.roots.clone(), parts.archive.limits, parts.staging.clone());
        if let Some(origin) = parts.origin.take().filter(|origin| origin.home == parts.task) {
            taker.begins_with(origin.id, origin.manifest);
        }
        let asker = Asker { asks: to_here, always: always.clone(), never: None };
        let data = parts.data.take().unwrap_or_else(|| "{}".into());
        (Self { parts, taker: Some(taker), asks, always, holds, data, failed: None, left_out: None }, asker, held)
    }

    /// Takes them until it is dropped.
    pub(super) async fn run(mut self) {
        let mut due = self.parts.every.map(|every| Instant::now() + every);
        loop {
            let at = due.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                ask = self.asks.recv() => {
                    let Some(Ask { data, reply }) = ask else { return std::future::pending().await };
                    let made = self.checkpoint(Some(data)).await;
                    // Whoever asked may be gone; it counts all the same.
                    let _ = reply.send(made.map(|id| id.expect("one that was asked for is made")));
                }
                () = sleep_until(at), if due.is_some() => match self.checkpoint(None).await {
                    Ok(Some(_)) => self.failed = None,
                    Ok(None) => {}
                    Err(why) => say(&self.parts.voice, &mut self.failed, format!("no checkpoint: {why}")),
                }
            }
            due = self.parts.every.map(|every| Instant::now() + every);
        }
    }

    /// Makes a checkpoint. `None`: nobody asked for it, and nothing has changed.
    async fn checkpoint(&mut self, data: Option<String>) -> Result<Option<CheckpointId>, String> {
        let made = self.try_checkpoint(data).await;
        if made.is_err()
            && let Some(taker) = &mut self.taker
        {
            taker.failed();
        }
        made
    }

    async fn try_checkpoint(&mut self, data: Option<String>) -> Result<Option<CheckpointId>, String> {
        let turn =
            self.parts.archive.looking.clone().acquire_owned().await.map_err(|_| "the worker stops".to_owned())?;
        let first = self.take(&Stop(Arc::default())).await?;
        if data.is_none() && first.unchanged {
            return Ok(None);
        }
        let (taken, until) = self.cut().await?;
        drop(turn);
        if let Some(left_out) = &taken.left_out {
            let text = format!("not in the checkpoint, being no files: {left_out}");
            say(&self.parts.voice, &mut self.left_out, text);
        }
        let turn =
            self.parts.archive.sending.clone().acquire_owned().await.map_err(|_| "the worker stops".to_owned())?;
        let sent = timeout(SEND_WITHIN, self.send(&taken)).await;
        sent.unwrap_or_else(|_| Err(format!("it was not sent within {} minutes", SEND_WITHIN.as_secs() / 60)))?;
        drop(turn);
        let snapshot =
            Snapshot { home: self.parts.task, manifest: taken.id, until, files: taken.files, bytes: taken.bytes };
        let id = CheckpointId(self.parts.env.uuid());
        let data = data.unwrap_or_else(|| self.data.clone());
        let over = "this attempt is over: nothing it says is recorded any more";
        let made = Checkpointed { id, data: data.clone(), snapshot: Some(snapshot) };
        let seq = self.parts.voice.checkpoint(made).map_err(|refusal| refusal.to_string())?;
        let seq = seq.await.map_err(|_| over.to_owned())?;
        self.parts.durable.wait_for(|next| *next > seq).await.map_err(|_| over.to_owned())?;
        tracing::debug!(files = taken.files, bytes = taken.bytes, packs = taken.new.len(), "a folder is kept");
        self.always.store(true, Ordering::Relaxed);
        self.data = data;
        if let Some(mut taker) = self.taker.take() {
            let recorded = move || {
                taker.recorded(taken.id);
                taker
            };
            self.taker = tokio::task::spawn_blocking(recorded).await.ok();
        }
        Ok(Some(id))
    }

    /// Looks at the folder while the agent stands still.
    async fn cut(&mut self) -> Result<(Taken, Seq), String> {
        let most = self.parts.archive.limits.max_freeze;
        let (frozen, is_frozen) = oneshot::channel();
        let (until, is_until) = oneshot::channel();
        let ending = || "the agent has ended".to_owned();
        self.holds.send(Hold::Freeze { frozen, until }).await.map_err(|_| ending())?;
        let begun = Instant::now();
        let cut = async {
            match timeout(FREEZE_WITHIN, is_frozen).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(ending()),
                Err(_) => return Err("the agent could not be frozen: it is being stopped".to_owned()),
            }
            let stop = Stop(Arc::default());
            let too_slow = Stop(stop.0.clone());
            let limit = async move {
                sleep(most).await;
                drop(too_slow);
                std::future::pending::<()>().await;
            };
            let taken = tokio::select! {
                biased;
                taken = self.take(&stop) => taken,
                () = limit => unreachable!("it pends"),
            };
            let in_time = most.saturating_sub(begun.elapsed());
            let slow = format!(
                "the agent would have stood still for more than {} ms (worker.snapshots.maxFreeze)",
                most.as_millis()
            );
            match (taken, timeout(in_time, is_until).await) {
                (Ok(taken), Ok(Ok(until))) => Ok((taken, until)),
                (Err(_), _) if begun.elapsed() >= most => Err(slow),
                (Err(error), _) => Err(error),
                (_, Ok(Err(_))) => Err(ending()),
                (_, Err(_)) => Err(slow),
            }
        };
        let cut = cut.await;
        // Whatever came of it.
        let _ = self.holds.send(Hold::Thaw).await;
        tracing::debug!(frozen_ms = begun.elapsed().as_millis(), "the agent goes on");
        cut
    }

    async fn take(&mut self, stop: &Stop) -> Result<Taken, String> {
        let limits = self.parts.archive.limits;
        let new = || Taker::new(self.parts.roots.clone(), limits, self.parts.staging.clone());
        let mut taker = self.taker.take().unwrap_or_else(new);
        let (now, flag) = (self.parts.env.now().0, stop.0.clone());
        let work = move || {
            let taken = taker.take(now, &flag);
            (taker, taken)
        };
        let (taker, taken) = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
        self.taker = Some(taker);
        taken.map_err(|error: Error| error.in_words())
    }

    /// Makes all blobs durable that are not: the manifest last, so that what it names is there.
    async fn send(&self, taken: &Taken) -> Result<(), String> {
        let Parts { vault, staging, env, .. } = &self.parts;
        let mut packs = stream::iter(taken.new.clone().into_iter().map(|id| async move {
            let from = staging.clone();
            let read = tokio::task::spawn_blocking(move || Taker::pack(&from, &id)).await;
            let bytes = read.map_err(|error| error.to_string())?.map_err(|error| error.in_words())?;
            put(vault.as_ref(), id, bytes, env).await
        }))
        .buffer_unordered(IN_FLIGHT);
        while let Some(kept) = packs.next().await {
            kept?;
        }
        put(vault.as_ref(), taken.id, taken.manifest.clone(), env).await
    }
}

/// Tells people, unless that was the last thing they were told of its kind.
fn say(voice: &Voice, said: &mut Option<String>, text: String) {
    // What is refused is said the next time.
    if said.as_ref() != Some(&text) && voice.note(text.clone()).is_ok() {
        *said = Some(text);
    }
}

/// Keeps a blob, however often that takes.
async fn put(vault: &dyn Vault, id: BlobId, bytes: Bytes, env: &Env) -> Result<(), String> {
    let mut failures = 0;
    loop {
        match vault.put(id, bytes.clone()).await {
            Ok(()) => return Ok(()),
            Err(VaultError::Broken(error)) => {
                failures += 1;
                tracing::debug!(error, failures, "a blob is not kept yet");
                sleep(backoff(failures, env.jitter())).await;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Reads a blob, however often that takes.
pub(super) async fn get(vault: &dyn Vault, id: BlobId, env: &Env) -> Result<Bytes, VaultError> {
    let mut failures = 0;
    loop {
        match vault.get(id).await {
            Err(VaultError::Broken(error)) => {
                failures += 1;
                tracing::debug!(error, failures, "a blob is not read yet");
                sleep(backoff(failures, env.jitter())).await;
            }
            other => return other,
        }
    }
}

/// Makes folders of a snapshot.
pub(super) async fn restore(
    vault: &Arc<dyn Vault>,
    snapshot: &Snapshot,
    places: std::collections::BTreeMap<String, std::path::PathBuf>,
    env: &Env,
) -> Result<Origin, String> {
    use super::snapshot::Restore;

    fn words<T>(done: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, String> {
        done.map_err(|error| error.to_string())?.map_err(|error| error.in_words())
    }
    let bytes = get(vault.as_ref(), snapshot.manifest, env).await.map_err(|error| error.to_string())?;
    let begin = move || Restore::begin(Manifest::decode(&bytes)?, &places);
    let restore = Arc::new(words(tokio::task::spawn_blocking(begin).await)?);
    let mut packs = stream::iter(restore.packs().into_iter().map(|id| {
        let restore = restore.clone();
        async move {
            let bytes = get(vault.as_ref(), id, env).await.map_err(|error| error.to_string())?;
            words(tokio::task::spawn_blocking(move || restore.fill(id, &bytes)).await)
        }
    }))
    .buffer_unordered(2 * IN_FLIGHT);
    while let Some(filled) = packs.next().await {
        filled?;
    }
    drop(packs);
    let restore = Arc::into_inner(restore).ok_or("a part of it is still being written")?;
    let manifest = words(tokio::task::spawn_blocking(move || restore.finish()).await)?;
    Ok(Origin { id: snapshot.manifest, manifest, home: snapshot.home })
}
