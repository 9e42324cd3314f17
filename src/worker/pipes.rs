//! Reading an agent's two outputs, in the order in which they come.

use std::future::ready;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ado_proto::record::{MAX_OUTPUT, Output, Stream};
use bytes::{BufMut, BytesMut};
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep_until};

use super::redact::{Redacting, Redactor};

/// How long more is collected when more is waiting already: an agent that writes faster than it is read gets fewer,
/// larger records; one that does not never waits.
const COLLECT_FOR: Duration = Duration::from_millis(2);

/// Reads within [`PACE_FOR`] that are given out at once. A reader that keeps up with every line of a flood would make a record
/// of each, which costs more than the line, and all the machine is busy with it.
const FREE_READS: u32 = 8;
const PACE_FOR: Duration = Duration::from_millis(4);

/// How long output is held back that may be the beginning of a secret.
const HOLD_FOR: Duration = Duration::from_millis(20);

/// What a pipe should hold: 400,000 lines of 80 bytes a second, four times over, for as long as lines are collected.
#[cfg(target_os = "linux")]
const PIPE_BYTES: i32 = 256 * 1024;

/// Both outputs of one agent.
#[derive(Debug)]
pub(super) struct Pipes {
    stdout: Pipe,
    stderr: Pipe,
    /// Whose turn it is when both have something, so that a flood of one does not hide the other.
    stderr_first: bool,
    collected: Option<Collected>,
    pace: Pace,
    /// Where nothing is waiting is the end.
    last_call: bool,
}

#[derive(Debug)]
struct Pipe {
    stream: Stream,
    /// `None` after its end.
    receiver: Option<pipe::Receiver>,
    /// Bytes the agent wrote that have been given out.
    position: u64,
    /// Hides secrets, for tasks that have any.
    hiding: Option<Hiding>,
}

/// What has been read goes through this before it is given out.
#[derive(Debug)]
struct Hiding {
    redacting: Redacting,
    /// Bytes given out: fewer than the agent wrote.
    shown: u64,
    /// When what is held is given out, whatever it may be the beginning of.
    release_at: Option<Instant>,
}

/// What has been read and is not yet given out.
#[derive(Debug)]
struct Collected {
    stream: Stream,
    data: BytesMut,
    until: Instant,
    /// More is to be waited for.
    loaded: bool,
}

/// How fast reads follow each other.
#[derive(Debug)]
struct Pace {
    since: Instant,
    reads: u32,
}

impl Pace {
    /// There is another one. Whether there were too many lately.
    fn is_fast(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since) >= PACE_FOR {
            (self.since, self.reads) = (now, 0);
        }
        self.reads += 1;
        self.reads > FREE_READS
    }
}

/// A point in both outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    stdout: u64,
    stderr: u64,
}

enum Read {
    Some,
    Nothing,
    End,
}

impl Pipes {
    /// Takes the reading ends.
    pub(super) fn new(stdout: OwnedFd, stderr: OwnedFd, redactor: Option<&Arc<Redactor>>) -> io::Result<Self> {
        let pipe = |stream, fd| {
            widen(&fd);
            let hiding = redactor.map(|redactor| Hiding { redacting: redactor.stream(), shown: 0, release_at: None });
            io::Result::Ok(Pipe { stream, receiver: Some(pipe::Receiver::from_owned_fd(fd)?), position: 0, hiding })
        };
        Ok(Self {
            stdout: pipe(Stream::Stdout, stdout)?,
            stderr: pipe(Stream::Stderr, stderr)?,
            stderr_first: false,
            collected: None,
            pace: Pace { since: Instant::now(), reads: 0 },
            last_call: false,
        })
    }

    /// Nothing more comes.
    pub(super) fn is_ended(&self) -> bool {
        self.collected.is_none() && self.stdout.is_over() && self.stderr.is_over()
    }

    /// Nobody who writes now is the agent: what is in the pipes already is all there will be.
    pub(super) fn last_call(&mut self) {
        self.last_call = true;
    }

    /// How far both will have been given out when all that is written by now has been. What is in a pipe is bounded by its
    /// size, whoever goes on writing.
    pub(super) fn mark(&self) -> Mark {
        let collected = |stream| match &self.collected {
            Some(collected) if collected.stream == stream => collected.data.len() as u64,
            _ => 0,
        };
        let end = |pipe: &Pipe| pipe.position + pipe.held() as u64 + collected(pipe.stream) + pipe.waiting();
        Mark { stdout: end(&self.stdout), stderr: end(&self.stderr) }
    }

    /// Whether everything up to a mark has been given out, or never will be.
    pub(super) fn has_passed(&self, mark: &Mark) -> bool {
        let collects = |stream| self.collected.as_ref().is_some_and(|collected| collected.stream == stream);
        let ended = |pipe: &Pipe| pipe.is_over() && !collects(pipe.stream);
        let passed = |pipe: &Pipe, mark: u64| pipe.position >= mark || ended(pipe);
        passed(&self.stdout, mark.stdout) && passed(&self.stderr, mark.stderr)
    }

    /// Reads no more.
    pub(super) fn close(&mut self) {
        self.collected = None;
        for pipe in [&mut self.stdout, &mut self.stderr] {
            pipe.receiver = None;
            pipe.hiding = None;
        }
    }

    /// What was written next; `None` after the end of both. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Output> {
        loop {
            if self.collected.is_none() && !self.wait().await {
                if self.is_ended() {
                    return None;
                }
                match self.stdout.release().or_else(|| self.stderr.release()) {
                    Some(output) => return Some(output),
                    // What was held is hidden with what came before.
                    None => continue,
                }
            }
            self.collect().await;
            if let Some(output) = self.give() {
                return Some(output);
            }
        }
    }

    /// Waits for something to read, and begins to. `false`: there is something held to be given out now, or nothing more at
    /// all.
    async fn wait(&mut self) -> bool {
        while self.collected.is_none() {
            let release_at = [&self.stdout, &self.stderr].into_iter().filter_map(Pipe::release_at).min();
            if self.is_ended() || release_at.is_some_and(|at| at <= Instant::now()) {
                return false;
            }
            let (first, second) = if self.stderr_first {
                (&mut self.stderr, &mut self.stdout)
            } else {
                (&mut self.stdout, &mut self.stderr)
            };
            let mut data = BytesMut::new();
            let pipe = tokio::select! {
                biased;
                // Before what may never end.
                () = sleep_until(release_at.unwrap_or_else(Instant::now)), if release_at.is_some() => continue,
                () = first.readable() => first,
                () = second.readable() => second,
                () = ready(()), if self.last_call => {
                    first.receiver = None;
                    second.receiver = None;
                    continue;
                }
            };
            if let Read::Some = pipe.try_read(&mut data) {
                let stream = pipe.stream;
                self.stderr_first = stream == Stream::Stdout;
                let now = Instant::now();
                let loaded = self.pace.is_fast(now);
                self.collected = Some(Collected { stream, data, until: now + COLLECT_FOR, loaded });
            }
        }
        true
    }

    /// Goes on reading the same output while it has more, a short time at most. The time is waited out only once more was
    /// found to be waiting, or when reads follow each other fast.
    async fn collect(&mut self) {
        let Some(collected) = &mut self.collected else { return };
        let pipe = match collected.stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr | Stream::Tool => &mut self.stderr,
        };
        while collected.data.len() < pipe.most() {
            match pipe.try_read(&mut collected.data) {
                Read::Some => collected.loaded = true,
                Read::End => return,
                Read::Nothing if !collected.loaded || self.last_call || Instant::now() >= collected.until => return,
                // Waking for every line would cost more than the line: the pipe keeps them together.
                Read::Nothing => tokio::time::sleep_until(collected.until).await,
            }
        }
    }

    fn give(&mut self) -> Option<Output> {
        let Collected { stream, data, .. } = self.collected.take()?;
        let pipe = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr | Stream::Tool => &mut self.stderr,
        };
        pipe.give(data)
    }
}

impl Pipe {
    /// What becomes of what was read. `None`: all of it is held.
    fn give(&mut self, data: BytesMut) -> Option<Output> {
        let ended = self.receiver.is_none();
        let Some(hiding) = &mut self.hiding else {
            let position = self.position;
            self.position += data.len() as u64;
            return Some(Output { stream: self.stream, position, data: data.freeze() });
        };
        let before = hiding.redacting.held();
        let mut shown = BytesMut::new();
        hiding.redacting.take(&data, &mut shown);
        if ended {
            hiding.redacting.release(&mut shown);
        }
        let held = hiding.redacting.held();
        hiding.release_at = match hiding.release_at {
            _ if held == 0 => None,
            // Some of it was held before.
            Some(at) if held > data.len() => Some(at),
            _ => Some(Instant::now() + HOLD_FOR),
        };
        self.position += (before + data.len() - held) as u64;
        self.show(shown)
    }

    /// Gives out what is held, if it is time or nothing more comes.
    fn release(&mut self) -> Option<Output> {
        let is_time = self.receiver.is_none() || self.release_at().is_some_and(|at| at <= Instant::now());
        let hiding = self.hiding.as_mut().filter(|hiding| is_time && hiding.redacting.held() > 0)?;
        let mut shown = BytesMut::new();
        self.position += hiding.redacting.held() as u64;
        hiding.redacting.release(&mut shown);
        hiding.release_at = None;
        self.show(shown)
    }

    fn show(&mut self, data: BytesMut) -> Option<Output> {
        let hiding = self.hiding.as_mut().filter(|_| !data.is_empty())?;
        let position = hiding.shown;
        hiding.shown += data.len() as u64;
        Some(Output { stream: self.stream, position, data: data.freeze() })
    }

    /// Bytes that are held back.
    fn held(&self) -> usize {
        self.hiding.as_ref().map_or(0, |hiding| hiding.redacting.held())
    }

    /// When what is held is to be given out.
    fn release_at(&self) -> Option<Instant> {
        let hiding = self.hiding.as_ref().filter(|hiding| hiding.redacting.held() > 0)?;
        if self.receiver.is_none() { Some(Instant::now()) } else { hiding.release_at }
    }

    /// Nothing more comes of it.
    fn is_over(&self) -> bool {
        self.receiver.is_none() && self.held() == 0
    }

    /// Most bytes to read at once: with what is held they fit a record.
    fn most(&self) -> usize {
        MAX_OUTPUT - self.held()
    }

    /// Pending for ever after the end.
    async fn readable(&self) {
        match &self.receiver {
            // An error shows on reading.
            Some(receiver) => drop(receiver.readable().await),
            None => std::future::pending().await,
        }
    }

    /// Bytes that were written and not read.
    #[expect(unsafe_code, reason = "no wrapper has this question")]
    fn waiting(&self) -> u64 {
        let Some(receiver) = &self.receiver else { return 0 };
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open, and FIONREAD writes one int.
        let result = unsafe { libc::ioctl(receiver.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
        if result == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
    }

    fn try_read(&mut self, data: &mut BytesMut) -> Read {
        let room = self.most() - data.len();
        let Some(receiver) = &mut self.receiver else { return Read::End };
        data.reserve(room);
        match receiver.try_read_buf(&mut data.limit(room)) {
            Ok(0) => {
                self.receiver = None;
                Read::End
            }
            Ok(_) => Read::Some,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Read::Nothing
            }
            Err(error) => {
                tracing::warn!(stream = ?self.stream, %error, "cannot read the agent's output");
                self.receiver = None;
                Read::End
            }
        }
    }
}

/// Makes room for what an agent writes while its lines are collected. As far as the system lets us.
fn widen(pipe: &OwnedFd) {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)) {
        tracing::debug!(%error, "a pipe stays as it is");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = pipe;
}

#[cfg(test)]
mod tests {
    use nix::fcntl::OFlag;
    use nix::unistd::{pipe2, write};

    use super::*;

    fn pipes() -> (Pipes, OwnedFd, OwnedFd) {
        hiding(None)
    }

    fn hiding(secret: Option<&str>) -> (Pipes, OwnedFd, OwnedFd) {
        let (out, out_end) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (err, err_end) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let redactor = Redactor::new(secret).map(Arc::new);
        (Pipes::new(out, err, redactor.as_ref()).unwrap(), out_end, err_end)
    }

    #[tokio::test]
    async fn a_prompt_without_a_newline_is_read() {
        let (mut pipes, out, err) = pipes();
        write(&out, b"name? ").unwrap();
        let read = pipes.next().await.unwrap();
        assert_eq!((read.stream, read.position, &read.data[..]), (Stream::Stdout, 0, &b"name? "[..]));
        write(&err, b"x").unwrap();
        assert_eq!(pipes.next().await.unwrap().stream, Stream::Stderr);
        write(&out, b"more").unwrap();
        assert_eq!(pipes.next().await.unwrap().position, 6);
        drop((out, err));
        assert_eq!(pipes.next().await, None);
        assert!(pipes.is_ended());
    }

    #[tokio::test(start_paused = true)]
    async fn reads_that_follow_each_other_fast_are_collected() {
        let (mut pipes, out, _err) = pipes();
        let mut took = Vec::new();
        for line in 0..=FREE_READS {
            if line == FREE_READS {
                // A line more: all that is there comes together.
                write(&out, b"x\n").unwrap();
            }
            write(&out, b"x\n").unwrap();
            let asked = Instant::now();
            let read = pipes.next().await.unwrap();
            assert_eq!(read.data.len(), if line == FREE_READS { 4 } else { 2 });
            took.push(asked.elapsed());
        }
        assert!(took[..FREE_READS as usize].iter().all(Duration::is_zero), "{took:?}");
        assert!(took[FREE_READS as usize] >= COLLECT_FOR, "{took:?}");
        tokio::time::advance(PACE_FOR).await;
        write(&out, b"x\n").unwrap();
        let asked = Instant::now();
        pipes.next().await.unwrap();
        assert!(asked.elapsed().is_zero(), "it is slow again");
    }

    #[tokio::test]
    async fn no_record_is_too_long_and_no_byte_is_lost() {
        let (mut pipes, out, err) = pipes();
        drop(err);
        let written: Vec<u8> = (0..1_000_000u32).map(|number| (number % 251) as u8).collect();
        let expected = written.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let mut rest = &written[..];
            while !rest.is_empty() {
                let length = write(&out, &rest[..rest.len().min(999)]).unwrap();
                rest = &rest[length..];
            }
        });
        let mut read = Vec::new();
        while let Some(output) = pipes.next().await {
            assert!((1..=MAX_OUTPUT).contains(&output.data.len()));
            assert_eq!(output.position, read.len() as u64);
            read.extend_from_slice(&output.data);
        }
        writer.await.unwrap();
        assert!(read == expected);
    }

    #[tokio::test]
    async fn the_last_call_waits_for_nobody_and_loses_nothing() {
        let (mut pipes, out, err) = pipes();
        write(&out, &[b'o'; 50_000]).unwrap();
        write(&err, b"e").unwrap();
        assert_eq!(pipes.next().await.unwrap().stream, Stream::Stdout);
        pipes.last_call();
        let mut rest = 0;
        while let Some(output) = pipes.next().await {
            rest += output.data.len();
        }
        assert_eq!(rest, 50_001 - MAX_OUTPUT);
        assert!(pipes.is_ended());
        drop((out, err));
    }

    #[tokio::test]
    async fn a_mark_is_passed_once_all_before_it_was_given_out() {
        let (mut pipes, out, err) = pipes();
        assert!(pipes.has_passed(&pipes.mark()), "nothing was written");
        write(&out, &[b'o'; 50_000]).unwrap();
        write(&err, b"e").unwrap();
        assert_eq!(pipes.next().await.unwrap().data.len(), MAX_OUTPUT);
        let mark = pipes.mark();
        write(&out, &[b'l'; 10_000]).unwrap();
        let mut before = MAX_OUTPUT;
        while !pipes.has_passed(&mark) {
            before += pipes.next().await.unwrap().data.len();
        }
        // A read takes what is there: what was written after the mark may come with what was before it.
        assert!((50_001..=60_001).contains(&before), "{before}");
        let (mark, position) = (pipes.mark(), pipes.stdout.position);
        assert_eq!(mark.stdout, position + 60_001 - before as u64);
        drop((out, err));
        while pipes.next().await.is_some() {}
        assert!(pipes.has_passed(&mark));
        let beyond = Mark { stdout: mark.stdout + 1, ..mark };
        assert!(pipes.has_passed(&beyond), "nothing more comes");
    }

    #[tokio::test]
    async fn a_flood_of_one_does_not_hide_the_other() {
        let (mut pipes, out, err) = pipes();
        write(&out, &[b'o'; 60_000]).unwrap();
        write(&err, b"e").unwrap();
        let streams = [pipes.next().await.unwrap().stream, pipes.next().await.unwrap().stream];
        assert_eq!(streams, [Stream::Stdout, Stream::Stderr]);
    }

    #[tokio::test]
    async fn a_secret_is_hidden_across_reads_and_positions_are_those_of_what_is_shown() {
        let (mut pipes, out, err) = hiding(Some("hunter2-hunter2"));
        write(&out, b"key: hunter2").unwrap();
        let first = pipes.next().await.unwrap();
        assert_eq!((first.position, &first.data[..]), (0, &b"key: "[..]), "the rest may be a secret");
        let mark = pipes.mark();
        assert!(!pipes.has_passed(&mark));
        write(&out, b"-hunter2, and").unwrap();
        let second = pipes.next().await.unwrap();
        assert_eq!((second.position, &second.data[..]), (5, &b"***, and"[..]));
        assert!(pipes.has_passed(&mark));
        write(&err, b"hunter2-hunter2").unwrap();
        let other = pipes.next().await.unwrap();
        assert_eq!((other.stream, other.position, &other.data[..]), (Stream::Stderr, 0, &b"***"[..]));
        write(&out, b"hunter2-").unwrap();
        drop((out, err));
        let last = pipes.next().await.unwrap();
        assert_eq!((last.position, &last.data[..]), (13, &b"hunter2-"[..]), "there is no more of it");
        assert_eq!(pipes.next().await, None);
        assert!(pipes.is_ended());
    }

    #[tokio::test(start_paused = true)]
    async fn what_might_be_a_secret_waits_a_moment_only_and_is_not_shown_whole() {
        let (mut pipes, out, _err) = hiding(Some("hunter2-hunter2"));
        write(&out, b"hunter2").unwrap();
        let asked = Instant::now();
        assert_eq!(&pipes.next().await.unwrap().data[..], b"hunter2");
        assert!(asked.elapsed() >= HOLD_FOR && asked.elapsed() < HOLD_FOR * 2, "{:?}", asked.elapsed());
        write(&out, b"-hunter2.").unwrap();
        assert_eq!(&pipes.next().await.unwrap().data[..], b"***.");
    }

    #[tokio::test]
    async fn a_last_call_gives_out_what_is_held() {
        let (mut pipes, out, _err) = hiding(Some("hunter2-hunter2"));
        write(&out, b"a hunter2").unwrap();
        assert_eq!(&pipes.next().await.unwrap().data[..], b"a ");
        pipes.last_call();
        assert_eq!(&pipes.next().await.unwrap().data[..], b"hunter2");
        assert_eq!(pipes.next().await, None);
    }

    #[tokio::test]
    async fn a_flood_with_secrets_in_it_loses_nothing_else() {
        let (mut pipes, out, err) = hiding(Some("hunter2-hunter2"));
        drop(err);
        let writer = tokio::task::spawn_blocking(move || {
            let text = "x hunter2-hunter2 y hunter2 z\n".repeat(20_000);
            let mut rest = text.as_bytes();
            while !rest.is_empty() {
                let length = write(&out, &rest[..rest.len().min(4093)]).unwrap();
                rest = &rest[length..];
            }
        });
        let mut read = Vec::new();
        while let Some(output) = pipes.next().await {
            assert!((1..=MAX_OUTPUT).contains(&output.data.len()));
            assert_eq!(output.position, read.len() as u64);
            read.extend_from_slice(&output.data);
        }
        writer.await.unwrap();
        assert!(read == "x *** y hunter2 z\n".repeat(20_000).as_bytes());
    }
}
