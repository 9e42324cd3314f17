//! The socket itself: few connections at a time, short lines, nobody waited for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ado_proto::inside::{Answer, MAX_LINE};
use ado_proto::record::{AskKind, Asked, Checkpointed, Choice};
use ado_proto::{AskDigest, AskId, CheckpointId, Seq};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::line::{self, Asking, Wish};
use super::said::Refusal;
use super::{Voice, peer};
use crate::env::Env;
use crate::worker::checkpoints::Asker;

/// Connections served at once. Whoever comes then waits until one has ended.
const CONNECTIONS: usize = 16;
/// How long a connection may say nothing while others wait for its place.
const IDLE_IN_A_CROWD: Duration = Duration::from_secs(1);
/// From the first byte of a line to its last; and for an answer to be taken.
const LINE_WITHIN: Duration = Duration::from_secs(10);
/// After a connection that could not be accepted (no file descriptors are left).
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Serves one attempt's socket. Dropped, it hears nothing more, and the socket is gone.
#[derive(Debug)]
pub(in crate::worker) struct Server {
    path: PathBuf,
    /// Aborted with it.
    _serving: JoinSet<()>,
}

impl Server {
    /// Listens for those below `guard` at `path`, which must be free. `durable` is the first seq that is not in the log.
    pub(in crate::worker) fn start(
        path: &Path,
        guard: u32,
        voice: Arc<Voice>,
        durable: watch::Receiver<Seq>,
        asker: Asker,
        env: Env,
    ) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, guard, Desk { voice, durable, asker, env }));
        Ok(Self { path: path.to_owned(), _serving: serving })
    }

    /// Where it listens.
    pub(in crate::worker) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One thread's work at most, whatever is sent: connections are futures of one task.
async fn serve(listener: UnixListener, guard: u32, desk: Desk) {
    let mut open = FuturesUnordered::new();
    let crowded = watch::Sender::new(false);
    let mut waiting: Option<UnixStream> = None;
    let mut accept_at = Instant::now();
    loop {
        let accept = async {
            sleep_until(accept_at).await;
            listener.accept().await
        };
        tokio::select! {
            biased;
            Some(()) = open.next() => {}
            accepted = accept, if waiting.is_none() => match accepted {
                Ok((stream, _)) => waiting = Some(stream),
                Err(error) => {
                    tracing::debug!(%error, "cannot accept what a task says");
                    accept_at = Instant::now() + ACCEPT_AGAIN_AFTER;
                }
            }
        }
        if open.len() < CONNECTIONS
            && let Some(stream) = waiting.take()
        {
            open.push(connection(stream, guard, &desk, crowded.subscribe()));
        }
        crowded.send_if_modified(|crowded| std::mem::replace(crowded, waiting.is_some()) != waiting.is_some());
    }
}

async fn connection(stream: UnixStream, guard: u32, desk: &Desk, crowded: watch::Receiver<bool>) {
    let caller = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let mut lines = Lines { stream, crowded, buffer: Vec::new(), searched: 0 };
    if !caller.is_some_and(|pid| peer::is_below(guard, pid)) {
        lines.answer(&refused("only processes of this task may speak for it, and must wait for the answer")).await;
        return;
    }
    let mut goes_on = true;
    while goes_on {
        goes_on = match lines.next().await {
            Ok(Some(line)) => {
                sleep_until(desk.voice.pace(line.len())).await;
                let answer = desk.hear(&line).await;
                lines.answer(&answer).await
            }
            Ok(None) => false,
            Err(complaint) => {
                lines.answer(&refused(complaint)).await;
                false
            }
        };
    }
}

fn refused(message: impl ToString) -> Answer {
    Answer::Error { message: message.to_string() }
}

/// What is done about a line.
struct Desk {
    voice: Arc<Voice>,
    durable: watch::Receiver<Seq>,
    /// For checkpoints that hold the task's folder.
    asker: Asker,
    env: Env,
}

impl Desk {
    async fn hear(&self, line: &[u8]) -> Answer {
        let accepted = match line::read(line) {
            Err(complaint) => return refused(complaint),
            Ok(Wish::Progress(progress)) => self.voice.progress(&progress).map(|()| None),
            Ok(Wish::Note(text)) => self.voice.note(text).map(|()| None),
            Ok(Wish::Verdict(verdict)) => self.voice.verdict(verdict).map(|()| None),
            Ok(Wish::Ask(asking)) => return self.ask(asking).await,
            Ok(Wish::Checkpoint { data, workspace }) => self.checkpoint(data, workspace).await.map(Some),
        };
        match accepted {
            Ok(checkpoint_id) => Answer::Ok { checkpoint_id, answer: None },
            Err(refusal) => refused(refusal),
        }
    }

    /// Waits until somebody has answered, however long that takes.
    async fn ask(&self, asking: Asking) -> Answer {
        let id = AskId(self.env.uuid());
        let answer = match self.voice.ask(question(id, asking)) {
            Ok(answer) => answer,
            Err(refusal) => return refused(refusal),
        };
        let _open = Open { voice: &self.voice, id };
        match answer.await {
            Ok(answer) => Answer::Ok { checkpoint_id: None, answer: answer.choice.or(answer.text) },
            Err(_) => refused(Refusal::Over),
        }
    }

    /// Waits until the checkpoint is in the log, however long that takes.
    async fn checkpoint(&self, data: String, workspace: bool) -> Result<CheckpointId, Refusal> {
        let at = self.voice.wants_checkpoint(data.len())?;
        let _waiting = Waiting(&self.voice);
        sleep_until(at).await;
        if self.asker.is_due(workspace) {
            return self.asker.checkpoint(data).await.map_err(Refusal::Folder);
        }
        let id = CheckpointId(self.env.uuid());
        let seq = self.voice.checkpoint(Checkpointed { id, data, snapshot: None })?.await.map_err(|_| Refusal::Over)?;
        let mut durable = self.durable.clone();
        durable.wait_for(|next| *next > seq).await.map_err(|_| Refusal::Over)?;
        Ok(id)
    }
}

fn question(id: AskId, asking: Asking) -> Asked {
    let Asking { text, options, default, wait_ms } = asking;
    let all = format!("task\0{text}\0{}", options.join("\0"));
    let digest = ring::digest::digest(&ring::digest::SHA256, all.as_bytes());
    let first: [u8; 16] = digest.as_ref()[..16].try_into().expect("SHA-256 has 32 bytes");
    Asked {
        id,
        digest: AskDigest(uuid::Uuid::from_bytes(first)),
        kind: AskKind::Question,
        text,
        detail: "{}".into(),
        free_text: options.is_empty(),
        choices: options.into_iter().map(|option| Choice { id: option.clone(), label: option }).collect(),
        default,
        wait_ms,
    }
}

/// A question that waits.
struct Open<'a> {
    voice: &'a Voice,
    id: AskId,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.voice.withdraw(self.id);
    }
}

/// A checkpoint that waits.
struct Waiting<'a>(&'a Voice);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.durable();
    }
}

/// A connection as lines.
struct Lines {
    stream: UnixStream,
    /// Whether others wait.
    crowded: watch::Receiver<bool>,
    /// What has come beyond the last line: less than [`MAX_LINE`] and a read.
    buffer: Vec<u8>,
    /// Bytes of it that hold no end of a line.
    searched: usize,
}

impl Lines {
    /// The next line, without its end; `None` at the end of all.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, &'static str> {
        let mut late = None;
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + at;
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.truncate(end);
                self.searched = 0;
                return if end > MAX_LINE { Err(TOO_LONG) } else { Ok(Some(line)) };
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                return Err(TOO_LONG);
            }
            let began = !self.buffer.is_empty();
            if began && late.is_none() {
                late = Some(Instant::now() + LINE_WITHIN);
            }
            if !self.read(late).await? {
                return if began { Err("the line has no end") } else { Ok(None) };
            }
        }
    }

    /// Whether anything has come. One that says nothing while others wait has ended.
    async fn read(&mut self, late: Option<Instant>) -> Result<bool, &'static str> {
        let idle_since = Instant::now();
        let crowded = async {
            // The sender outlives all connections.
            let _ = self.crowded.wait_for(|crowded| *crowded).await;
            sleep_until(idle_since + IDLE_IN_A_CROWD).await;
        };
        let half = async {
            match late {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        self.buffer.reserve(4096);
        tokio::select! {
            biased;
            read = self.stream.read_buf(&mut self.buffer) => Ok(read.is_ok_and(|length| length > 0)),
            () = half => Err("the rest of the line did not come in time"),
            () = crowded, if late.is_none() => Ok(false),
        }
    }

    /// Whether it was taken: who does not take answers is heard no more.
    async fn answer(&mut self, answer: &Answer) -> bool {
        let mut line = serde_json::to_vec(answer).expect("an answer is strings and ids");
        line.push(b'\n');
        timeout(LINE_WITHIN, self.stream.write_all(&line)).await.is_ok_and(|written| written.is_ok())
    }
}

const TOO_LONG: &str = "the line is too long: at most 394240 bytes";
const _: () = assert!(MAX_LINE == 394_240);
