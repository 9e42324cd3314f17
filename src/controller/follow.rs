//! Viewers: a log from a position, and then as it grows.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ado_proto::record::{Body, Record};
use ado_proto::request::{Follow, Following, StartAt};
use ado_proto::session::{Detached, End, FollowItem, Idle, LogReset, Records};
use ado_proto::{Offset, TaskId};

use tokio::time::Instant;

use super::Shared;
use super::hub::Tail;
use super::metrics::Metrics;
use super::quiet::Quiet;
use super::viewers::Seat;
use crate::net::{self, Sender};
use crate::store;

/// Bytes of records in one frame. A viewer costs this much memory and what its stream's window holds.
const FRAME_BYTES: usize = 256 * 1024;
/// A viewer hears at least this often that its stream lives.
const IDLE: Duration = Duration::from_secs(15);
/// How long a run of skipped output is held back when there is nothing else to send: a flood costs a viewer that does not
/// want it ten small frames a second.
const HOLD: Duration = Duration::from_millis(100);
/// Between two reads while the store is unavailable.
const RETRY: Duration = Duration::from_millis(500);

/// What a viewer was promised.
pub(super) struct Promise {
    from: Offset,
    /// For who stays, and may be asked to leave.
    seat: Option<Seat>,
    /// For who does not stay: the log's length when it asked, and whether the task was over.
    until: Option<(Offset, bool)>,
}

/// Where a viewer begins: the answer to [`Follow`].
pub(super) async fn begin(shared: &Shared, follow: &Follow, seat: Option<Seat>) -> store::Result<(Following, Promise)> {
    let store = &shared.store;
    let until = match follow.follow {
        true => None,
        false => store.read(follow.task, Offset(u64::MAX), 0).await?.map(|end| (end.next_offset, end.ended)),
    };
    let (from, skip) = match follow.from {
        StartAt::Offset(offset) => (offset, 0),
        StartAt::Since(since) => (store.offset_since(follow.task, since).await?.unwrap_or_default(), 0),
        StartAt::Tail(lines) => tail_start(shared, follow.task, lines).await?,
    };
    Ok((Following { from, skip, generation: store.generation() }, Promise { from, seat, until }))
}

/// Sends what [`begin`] promised, until the log or the viewer ends.
pub(super) async fn serve(
    shared: &Shared,
    follow: &Follow,
    promise: Promise,
    tx: &mut Sender,
) -> Result<(), net::Error> {
    let generation = shared.store.generation();
    if follow.generation.is_some_and(|theirs| theirs != generation) {
        tx.send_message(&FollowItem::from(LogReset { generation })).await?;
        tx.finish();
        return Ok(());
    }
    let Promise { from, mut seat, until } = promise;
    let mut viewer = Viewer { shared, task: follow.task, tail: shared.hub.follow(follow.task), cursor: from };
    let mut out = Out::new(tx, &shared.metrics, follow.without_output);
    let mut committed = viewer.tail.watch();
    loop {
        committed.mark_unchanged();
        if let Some(by) = seat.as_mut().and_then(Seat::asked) {
            return out.end(Detached { by }).await;
        }
        // A log that grows as fast as it is read would never end for who does not stay.
        let next = match until {
            Some((end, ended)) if viewer.cursor >= end => Ok(Next::Nothing { ended: ended && viewer.cursor == end }),
            _ => viewer.next().await,
        };
        let wait = match next {
            Ok(Next::Records(records)) => {
                viewer.cursor = records.last().map_or(viewer.cursor, |last| last.offset.next());
                out.records(records).await?;
                continue;
            }
            Ok(Next::Nothing { ended }) if ended || !follow.follow => {
                return out.end(End { next: viewer.cursor, ended }).await;
            }
            Ok(Next::Nothing { .. }) => IDLE,
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "a viewer waits for the store");
                RETRY
            }
            Err(error) => {
                tracing::error!(%error, "a log cannot be read");
                return Err(net::Error::Protocol(error.to_string()));
            }
        };
        tokio::select! {
            biased;
            () = shared.tasks.stopping() => return Ok(()),
            () = out.tx.closed() => return Err(net::Error::Closed),
            by = asked_to_leave(&mut seat) => return out.end(Detached { by }).await,
            () = out.due() => out.flush().await?,
            _ = committed.changed() => {}
            () = tokio::time::sleep(wait) => if wait == IDLE {
                out.tx.send_message(&FollowItem::from(Idle { next: viewer.cursor })).await?;
            }
        }
    }
}

async fn asked_to_leave(seat: &mut Option<Seat>) -> String {
    match seat {
        Some(seat) => seat.leave().await,
        None => std::future::pending().await,
    }
}

/// What goes to a viewer, in frames.
struct Out<'a> {
    tx: &'a mut Sender,
    metrics: &'a Metrics,
    /// For who does not want the output. Between frames it holds a run back for [`HOLD`] at most.
    quiet: Option<Quiet>,
    held_since: Instant,
}

impl<'a> Out<'a> {
    fn new(tx: &'a mut Sender, metrics: &'a Metrics, without_output: bool) -> Self {
        Self { tx, metrics, quiet: without_output.then(Quiet::default), held_since: Instant::now() }
    }

    async fn records(&mut self, records: Vec<Record>) -> Result<(), net::Error> {
        let Some(quiet) = &mut self.quiet else { return self.send(&records).await };
        let held_before = quiet.holds();
        let mut ready = quiet.take(records);
        if !held_before || !ready.is_empty() {
            self.held_since = Instant::now();
        }
        if self.held_since.elapsed() >= HOLD {
            ready.extend(quiet.flush());
        }
        self.send(&ready).await
    }

    /// Resolves when what is held back is to be sent.
    fn due(&self) -> impl Future<Output = ()> + use<> {
        let at = self.quiet.as_ref().filter(|quiet| quiet.holds()).map(|_| self.held_since + HOLD);
        async move {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        }
    }

    /// Sends what is held back.
    async fn flush(&mut self) -> Result<(), net::Error> {
        let held = self.quiet.as_mut().and_then(Quiet::flush);
        self.send(held.as_slice()).await
    }

    async fn end(mut self, last: impl Into<FollowItem>) -> Result<(), net::Error> {
        self.flush().await?;
        self.tx.send_message(&last.into()).await?;
        self.tx.finish();
        Ok(())
    }

    async fn send(&mut self, records: &[Record]) -> Result<(), net::Error> {
        match records {
            [] => Ok(()),
            records => {
                let frame = Records::new(records);
                self.metrics.viewed(records.len(), frame.0.len());
                self.tx.send_message(&FollowItem::from(frame)).await
            }
        }
    }
}

enum Next {
    Records(Vec<Record>),
    /// The viewer has everything there is.
    Nothing {
        /// And there will be no more.
        ended: bool,
    },
}

struct Viewer<'a> {
    shared: &'a Shared,
    task: TaskId,
    tail: Arc<Tail>,
    cursor: Offset,
}

impl Viewer<'_> {
    async fn next(&self) -> store::Result<Next> {
        if let Some(records) = self.tail.read(self.cursor, FRAME_BYTES) {
            return Ok(Next::Records(records));
        }
        let known = *self.tail.watch().borrow();
        if known.next != Offset(0) && self.cursor >= known.next {
            return Ok(Next::Nothing { ended: known.ended });
        }
        let Some(page) = self.shared.store.read(self.task, self.cursor, FRAME_BYTES).await? else {
            return Ok(Next::Nothing { ended: true });
        };
        let records = page.records;
        if records.is_empty() { Ok(Next::Nothing { ended: page.ended }) } else { Ok(Next::Records(records)) }
    }
}

/// Where the last `lines` lines of output begin: a record, and bytes of its data that come before them.
async fn tail_start(shared: &Shared, task: TaskId, lines: u32) -> store::Result<(Offset, u32)> {
    let Some(end) = shared.store.read(task, Offset(u64::MAX), 0).await? else { return Ok((Offset(0), 0)) };
    let mut before = end.next_offset;
    let mut wanted = Lines { left: u64::from(lines), at_end: true };
    while before > Offset(0) {
        let Some(page) = shared.store.read_back(task, before, FRAME_BYTES).await? else { break };
        for record in page.records.iter().rev() {
            if let Body::Output(output) = &record.body
                && let Some(skip) = wanted.take(&output.data)
            {
                return Ok((record.offset, u32::try_from(skip).unwrap_or(0)));
            }
        }
        match page.records.first() {
            Some(first) => before = first.span().start,
            None => break,
        }
    }
    Ok((Offset(0), 0))
}

/// Counts lines backwards.
struct Lines {
    left: u64,
    /// Nothing has been seen yet: a newline here ends the last line and begins none.
    at_end: bool,
}

impl Lines {
    /// Goes over data that comes before what was seen. Returns where the wanted lines begin, if in this data.
    fn take(&mut self, data: &[u8]) -> Option<usize> {
        for (index, byte) in data.iter().enumerate().rev() {
            if *byte == b'\n' && !std::mem::take(&mut self.at_end) {
                self.left = self.left.saturating_sub(1);
            }
            self.at_end = false;
            if self.left == 0 {
                return Some(index + 1);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_lines_backwards() {
        let check = |pieces: &[&str], lines: u64, expected: &str| {
            let mut wanted = Lines { left: lines, at_end: true };
            let mut kept = String::new();
            for piece in pieces.iter().rev() {
                match wanted.take(piece.as_bytes()) {
                    Some(skip) => {
                        kept.insert_str(0, &piece[skip..]);
                        break;
                    }
                    None => kept.insert_str(0, piece),
                }
            }
            assert_eq!(kept, expected, "{pieces:?} {lines}");
        };
        check(&["a\nb\nc\n"], 1, "c\n");
        check(&["a\nb\nc"], 1, "c");
        check(&["a\nb\nc\n"], 2, "b\nc\n");
        check(&["a\nb", "b\nc\n"], 2, "bb\nc\n");
        check(&["a\n", "b\n"], 9, "a\nb\n");
        check(&["a\n", "\n", "\n"], 2, "\n\n");
    }
}
