//! A worker's talk with an AI agent: joins a driver to the agent's pipes.
//!
//! Owns: what the agent says on its stdout and through its tools, turned into records; what is said to it; its questions,
//! from the rules that answer them to the answers of people; how its run ended. Must never know: protocols of agents,
//! connections, guards.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::future::pending;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ado_proto::record::{
    Answer, AskClosed, AskKind, Asked, Body, MAX_ANSWER, MAX_ASKS, MAX_CHOICES, MAX_MESSAGE, Note, Output, Progress,
    Stream, Used,
};
use ado_proto::spec::{Exit, Quota, Rules, TaskSpec, Usage};
use ado_proto::{AskDigest, AskId};
use bytes::{Buf, BytesMut};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep_until};

use super::redact::Redactor;
use super::tool;
use super::track::Track;
use crate::agents::{self, Driver, Event, Launch, Line, Lines, Out, Outcome, Question, Real, Site, Verdict};
use crate::env::Env;

/// After the end of its run an agent has this long to end by itself. Some never do.
const END_WITHIN: Duration = Duration::from_secs(3);
/// Most bytes that wait for an agent which does not read.
const MOST_UNSENT: usize = 4 * 1024 * 1024;
/// One read of what tools write.
const TOOL_READ: usize = 16 * 1024;
/// Warnings that become notes, which are never cut off a log. Those that follow are not kept.
const WARNINGS: u32 = 100;
/// Names below the agent's folder.
const STDIN: &str = "stdin";
const TOOLS: &str = "tools";

/// See the module.
pub(super) struct Dialogue {
    agent: &'static str,
    driver: Box<dyn Driver>,
    env: Env,
    lines: Lines,
    stdin: Option<pipe::Sender>,
    unsent: BytesMut,
    tools: Option<pipe::Receiver>,
    words: Track,
    errors: Track,
    tool: Track,
    redactor: Option<Arc<Redactor>>,
    rules: Rules,
    wait_ms: Option<u64>,
    quota: Quota,
    asks: Vec<Open>,
    /// What was answered in earlier epochs.
    known: BTreeMap<AskDigest, Answer>,
    usage: Usage,
    session: Option<String>,
    outcome: Option<Outcome>,
    warnings: u32,
    /// When an agent whose run has ended is killed.
    kill_at: Option<Instant>,
    killed: bool,
    /// For the log, in order.
    ready: VecDeque<Body>,
}

/// A question that is open.
#[derive(Debug)]
struct Open {
    id: AskId,
    /// The agent's own word for it.
    own: String,
}

/// What a turn of the talk leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may be something for the log.
    Said,
    /// The agent is to be killed: its run is over, and it stays.
    Kill,
}

/// What a dialogue needs of its attempt.
pub(super) struct Needs<'a> {
    pub(super) real: &'static Real,
    pub(super) spec: &'a TaskSpec,
    /// The agent's program.
    pub(super) program: &'a Path,
    /// This build of ado.
    pub(super) ado: &'a Path,
    /// A folder for the agent alone; made here.
    pub(super) home: &'a Path,
    /// Where it works.
    pub(super) cwd: &'a Path,
    pub(super) redactor: Option<&'a Arc<Redactor>>,
    /// What was answered in earlier epochs.
    pub(super) answers: Vec<(AskDigest, Answer)>,
    pub(super) env: &'a Env,
}

impl Dialogue {
    /// Makes the agent's folder, and all that is in it. What to start; the agent's stdin is [`Started::stdin`].
    pub(super) fn prepare(needs: Needs<'_>) -> io::Result<(Self, Started)> {
        let text = |path: &Path| path.to_str().map(ToOwned::to_owned).ok_or_else(|| io::Error::other("no UTF-8"));
        let session = needs.env.uuid().to_string();
        let mut driver = needs.real.driver(needs.spec, &session);
        let (program, home, ado, cwd) = (text(needs.program)?, text(needs.home)?, text(needs.ado)?, text(needs.cwd)?);
        driver.works_in(&cwd);
        let mut launch = driver.launch(&Site { program: &program, home: &home, ado: &ado });
        make(needs.home, &launch)?;
        let (stdin, tools) = (needs.home.join(STDIN), needs.home.join(TOOLS));
        for path in [&stdin, &tools] {
            mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        launch.env.insert(tool::OUTPUT.into(), text(&tools)?);
        // Both ends at once: opening waits for nobody, and the end of a tool is not the end of the pipe.
        let sender = pipe::OpenOptions::new().read_write(true).open_sender(&stdin)?;
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&tools)?;
        let mut dialogue = Self {
            agent: needs.real.name,
            driver,
            env: needs.env.clone(),
            lines: Lines::default(),
            stdin: Some(sender),
            unsent: BytesMut::new(),
            tools: Some(receiver),
            words: Track::new(Stream::Stdout, needs.redactor),
            errors: Track::new(Stream::Stderr, needs.redactor),
            tool: Track::new(Stream::Tool, needs.redactor),
            redactor: needs.redactor.cloned(),
            rules: needs.spec.rules.clone(),
            wait_ms: needs.spec.answer_limit_ms,
            quota: needs.spec.quota,
            asks: Vec::new(),
            known: needs.answers.into_iter().collect(),
            usage: Usage::default(),
            session: None,
            outcome: None,
            warnings: 0,
            kill_at: None,
            killed: false,
            ready: VecDeque::new(),
        };
        let mut out = Out::default();
        dialogue.driver.start(&mut out);
        dialogue.take(out);
        Ok((dialogue, Started { launch, stdin }))
    }

    /// What its pipes hold was read.
    pub(super) fn hear(&mut self, output: &Output) {
        match output.stream {
            Stream::Stderr => self.errors.write(&output.data, &mut self.ready),
            Stream::Stdout | Stream::Tool => {
                // What a tool wrote before the agent spoke of it.
                self.drain_tools();
                let mut out = Out::default();
                let (driver, mut dropped) = (&mut self.driver, Vec::new());
                self.lines.take(&output.data, |line| match line {
                    Line::Whole(line) => driver.hear(line, &mut out),
                    Line::TooLong(bytes) => dropped.push(bytes),
                });
                self.take(out);
                for bytes in dropped {
                    self.warn(&format!("a line of {bytes} bytes on its stdout is no frame, and was dropped"));
                }
            }
        }
    }

    /// Somebody has answered, or the answer of a question is said again.
    pub(super) fn answered(&mut self, given: &[(AskId, Answer)]) {
        for (id, answer) in given {
            if let Some(at) = self.asks.iter().position(|open| open.id == *id) {
                let open = self.asks.remove(at);
                self.pass_on(&open.own, answer);
                self.ready.push_back(AskClosed { ask: open.id }.into());
            }
        }
    }

    /// Something to do beside what its pipes hold. Cancel safe.
    pub(super) async fn next(&mut self) -> Turn {
        let release_at = [&self.words, &self.errors, &self.tool].into_iter().filter_map(Track::release_at).min();
        let kill_at = self.kill_at.filter(|_| !self.killed);
        let now = Instant::now();
        tokio::select! {
            biased;
            () = sleep_until(kill_at.unwrap_or(now)), if kill_at.is_some() => {
                self.killed = true;
                return Turn::Kill;
            }
            () = sleep_until(release_at.unwrap_or(now)), if release_at.is_some() => self.release(now),
            sent = send(&mut self.stdin, &self.unsent), if !self.unsent.is_empty() => self.sent(sent),
            () = readable(&self.tools) => self.drain_tools(),
        }
        Turn::Said
    }

    /// Takes what there is for the log.
    pub(super) fn ready(&mut self) -> impl Iterator<Item = Body> + '_ {
        self.ready.drain(..)
    }

    /// Whether it waits for somebody's answer, and for nothing else that is known.
    pub(super) fn is_waiting(&self) -> bool {
        !self.asks.is_empty()
    }

    /// The process is gone, and all it said is heard: how its run ended, given how the process did. What there is to say of
    /// that is [`Self::ready`].
    pub(super) fn judge(&mut self, exit: Exit) -> Exit {
        self.drain_tools();
        let rest = self.lines.rest();
        if !rest.is_empty() {
            self.errors.write(&rest, &mut self.ready);
        }
        for track in [&mut self.words, &mut self.errors, &mut self.tool] {
            track.release(&mut self.ready);
        }
        if self.usage != Usage::default() || self.session.is_some() {
            self.ready.push_back(Used { usage: self.usage, session: self.session.take() }.into());
        }
        match (self.outcome.take(), exit) {
            // Somebody else ended it, and knows why.
            (_, exit @ (Exit::NotStarted { .. } | Exit::TimedOut(_))) => exit,
            (None, exit @ (Exit::Cancelled | Exit::Lost { .. } | Exit::OutOfMemory { .. })) => exit,
            (Some(Outcome::Done), _) => Exit::Code(0),
            (Some(Outcome::Failed(error)), _) => Exit::Failed { error },
            (Some(Outcome::Hopeless(error)), _) => Exit::Hopeless { error, code: 1 },
            (Some(Outcome::Away { what, retry_after_ms }), _) => Exit::Unavailable { what, retry_after_ms },
            // Whatever its exit code says: an agent that has done its work says so.
            (None, exit) => {
                let how = match exit {
                    Exit::Code(code) => format!("exited with code {code}"),
                    Exit::Signal(signal) => format!("was killed by signal {signal}"),
                    _ => "ended".into(),
                };
                Exit::Failed { error: format!("{} {how} without a result", self.agent) }
            }
        }
    }

    fn take(&mut self, out: Out) {
        if self.unsent.len() + out.bytes.len() > MOST_UNSENT {
            self.warn("it does not read what it is told");
        } else {
            self.unsent.extend_from_slice(&out.bytes);
        }
        for event in out.events {
            self.event(event);
        }
        self.keep_to_quota();
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Text(text) => self.words.write(text.as_bytes(), &mut self.ready),
            Event::Stray(mut line) => {
                line.push(b'\n');
                self.errors.write(&line, &mut self.ready);
            }
            Event::ToolBegan(tool) => {
                let line = format!("● {}: {}\n", tool.name, tool.summary);
                self.tool.write(line.as_bytes(), &mut self.ready);
                self.doing(&format!("{}: {}", tool.name, tool.summary));
            }
            // Here a checkpoint may be taken.
            Event::ToolEnded { .. } => {}
            Event::Doing(text) => self.doing(&text),
            Event::Asks(question) => self.asks(&question),
            Event::Withdrawn { id } => {
                if let Some(at) = self.asks.iter().position(|open| open.own == id) {
                    let open = self.asks.remove(at);
                    self.ready.push_back(AskClosed { ask: open.id }.into());
                }
            }
            Event::Warning(text) => self.warn(&text),
            Event::Session(session) => self.session = Some(session),
            Event::Used(usage) => self.usage = usage,
            // The first word on it counts.
            Event::Ended(_) if self.outcome.is_some() => {}
            Event::Ended(outcome) => {
                self.outcome = Some(outcome);
                self.stdin = None;
                self.unsent.clear();
                self.kill_at = Some(Instant::now() + END_WITHIN);
                for open in std::mem::take(&mut self.asks) {
                    self.ready.push_back(AskClosed { ask: open.id }.into());
                }
            }
        }
    }

    /// Ends a run that has used more than it may, and has not ended by itself.
    fn keep_to_quota(&mut self) {
        let (quota, usage) = (self.quota, self.usage);
        let tokens = usage.input_tokens.saturating_add(usage.output_tokens);
        let over = if quota.turns.is_some_and(|most| usage.turns > most) {
            format!("{} turns", quota.turns.unwrap_or(0))
        } else if quota.tokens.is_some_and(|most| tokens > most) {
            format!("{} tokens", quota.tokens.unwrap_or(0))
        } else if quota.cost_micros.is_some_and(|most| usage.cost_micros.is_some_and(|cost| cost > most)) {
            format!("${}", quota.cost_micros.unwrap_or(0) as f64 / 1e6)
        } else {
            return;
        };
        if self.outcome.is_none() {
            self.event(Event::Ended(Outcome::Hopeless(format!("its limit of {over} is used up"))));
            self.kill_at = Some(Instant::now());
        }
    }

    fn doing(&mut self, text: &str) {
        let message = Some(cut(text, MAX_MESSAGE));
        self.say(Progress { percent: None, message });
    }

    fn warn(&mut self, text: &str) {
        self.warnings += 1;
        match self.warnings {
            ..WARNINGS => self.say(Note { text: cut(text, MAX_MESSAGE) }),
            WARNINGS => self.say(Note { text: "it warns again and again: no more of that is kept".into() }),
            _ => {}
        }
    }

    /// With its secrets hidden.
    fn say(&mut self, body: impl Into<Body>) {
        let body = body.into();
        self.ready.push_back(match &self.redactor {
            Some(redactor) => redactor.body(body),
            None => body,
        });
    }

    /// A question: answered by the rules, by what was answered before, or by somebody.
    fn asks(&mut self, question: &Question) {
        let verdict = question.subject.as_ref().map_or(Verdict::Ask, |subject| agents::judge(&self.rules, subject));
        let digest = question.digest();
        let by_rule = match verdict {
            Verdict::Allow => question.choices.first().map(|choice| choice.id.clone()),
            Verdict::Deny => {
                self.warn(&format!("denied by a rule: {}", question.text));
                question.default.clone()
            }
            Verdict::Ask => None,
        };
        let answer = match (by_rule, verdict) {
            (Some(choice), _) => Some(Answer { choice: Some(choice), text: None }),
            (None, Verdict::Deny) => Some(Answer { choice: None, text: None }),
            (None, _) => self.known.remove(&digest),
        };
        if let Some(answer) = answer {
            return self.pass_on(&question.id, &answer);
        }
        if self.asks.len() >= MAX_ASKS {
            self.warn(&format!("it asks more than {MAX_ASKS} things at once: not asked further: {}", question.text));
            return self.pass_on(&question.id, &Answer { choice: question.default.clone(), text: None });
        }
        let id = AskId(self.env.uuid());
        let mut choices = question.choices.clone();
        choices.truncate(MAX_CHOICES);
        choices.retain(|choice| choice.id.len() <= MAX_ANSWER);
        for choice in &mut choices {
            choice.label = cut(&choice.label, MAX_ANSWER);
        }
        let kind = match &question.kind {
            AskKind::Permission { tool } => AskKind::Permission { tool: cut(tool, MAX_ANSWER) },
            AskKind::Question => AskKind::Question,
        };
        self.asks.push(Open { id, own: question.id.clone() });
        self.say(Asked {
            id,
            digest,
            kind,
            text: cut(&question.text, MAX_MESSAGE),
            detail: cut(&question.detail.to_string(), MAX_MESSAGE),
            choices,
            free_text: question.free_text,
            default: question.default.clone(),
            wait_ms: self.wait_ms,
        });
    }

    fn pass_on(&mut self, own: &str, answer: &Answer) {
        let mut out = Out::default();
        self.driver.answer(own, answer, &mut out);
        self.take(out);
    }

    fn release(&mut self, now: Instant) {
        for track in [&mut self.words, &mut self.errors, &mut self.tool] {
            if track.release_at().is_some_and(|at| at <= now) {
                track.release(&mut self.ready);
            }
        }
    }

    fn sent(&mut self, sent: io::Result<usize>) {
        match sent {
            Ok(length) => self.unsent.advance(length),
            Err(error) => {
                tracing::debug!(%error, "an agent takes no more");
                self.stdin = None;
                self.unsent.clear();
            }
        }
    }

    fn drain_tools(&mut self) {
        let mut buffer = [0; TOOL_READ];
        // As much as a pipe holds: whoever writes without end does not keep everything else waiting.
        for _ in 0..64 {
            let Some(tools) = &self.tools else { return };
            match tools.try_read(&mut buffer) {
                Ok(0) => self.tools = None,
                Ok(length) => self.tool.write(&buffer[..length], &mut self.ready),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot read what tools write");
                    self.tools = None;
                }
            }
        }
    }
}

/// What is started.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) launch: Launch,
    /// A named pipe.
    pub(super) stdin: PathBuf,
}

fn make(home: &Path, launch: &Launch) -> io::Result<()> {
    let folder = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    folder(home)?;
    for file in &launch.files {
        let path = home.join(file.path);
        path.parent().map_or(Ok(()), folder)?;
        let mode = if file.is_program { 0o700 } else { 0o600 };
        let mut made = fs::File::options().write(true).create_new(true).mode(mode).open(&path)?;
        io::Write::write_all(&mut made, file.text.as_bytes())?;
    }
    Ok(())
}

async fn send(stdin: &mut Option<pipe::Sender>, bytes: &[u8]) -> io::Result<usize> {
    match stdin {
        // Cancelled, it has written nothing.
        Some(stdin) => stdin.write(bytes).await,
        None => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

async fn readable(tools: &Option<pipe::Receiver>) {
    match tools {
        Some(tools) => drop(tools.readable().await),
        None => pending().await,
    }
}

fn cut(text: &str, most: usize) -> String {
    let mut text = text.to_owned();
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most - '…'.len_utf8()));
        text.push('…');
    }
    text
}
