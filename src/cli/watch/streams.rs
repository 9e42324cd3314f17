//! The logs of many tasks, read at once over one connection, in bounded memory.
//!
//! What a reader does not ask for waits in the network's own windows; here is one frame of each open log at most.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::client::{self, RecordStream, Step};

/// Logs that are open at once. A connection has 256 streams, and requests need some.
const MOST_OPEN: usize = 192;
/// Logs that are open ahead of the one that is read, where they are read one after the other.
const AHEAD: usize = 16;
/// A log without news for this long lets another one have its place, while there are more than places.
const QUIET: Duration = Duration::from_secs(1);

/// What came of one of them, and its stream: to be given back unless it is over.
pub(crate) struct Came {
    pub(crate) index: usize,
    pub(crate) stream: RecordStream,
    pub(crate) step: Option<Result<Step, client::Error>>,
}

/// Many logs.
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
pub(crate) enum Streams {
    /// Each as news come, for who stays.
    Live(Live),
    /// One after the other, by index, for who wants what there is: the same bytes whenever it is asked.
    InOrder(InOrder),
}

impl Streams {
    /// Those logs, each with the index it is known by.
    pub(crate) fn new(logs: impl IntoIterator<Item = (usize, RecordStream)>, live: bool) -> Self {
        let waiting = logs.into_iter().collect();
        if live {
            Self::Live(Live { waiting, open: FuturesUnordered::new(), places: BTreeMap::new() })
        } else {
            Self::InOrder(InOrder { waiting, ahead: FuturesOrdered::new(), head: None })
        }
    }

    /// What comes next; `None` when all were read. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Came> {
        match self {
            Self::Live(live) => live.next().await,
            Self::InOrder(in_order) => in_order.next().await,
        }
    }

    /// Reads on.
    pub(crate) fn give_back(&mut self, index: usize, stream: RecordStream) {
        match self {
            Self::Live(live) => live.open(index, stream),
            Self::InOrder(in_order) => in_order.head = Some((index, stream)),
        }
    }

    /// Time passes: those that wait for a place get those of the quiet.
    pub(crate) fn tick(&mut self) {
        if let Self::Live(live) = self {
            live.rotate(Instant::now());
        }
    }

    /// Whether some are not read right now for want of a place.
    pub(crate) fn some_wait(&self) -> bool {
        matches!(self, Self::Live(live) if !live.waiting.is_empty())
    }
}

type Reading = BoxFuture<'static, (usize, RecordStream, Option<Option<Result<Step, client::Error>>>)>;

/// See [`Streams::Live`].
pub(crate) struct Live {
    waiting: VecDeque<(usize, RecordStream)>,
    open: FuturesUnordered<Reading>,
    /// Of each open one: what calls it back, and since when it is read without news.
    places: BTreeMap<usize, (Arc<Notify>, Instant)>,
}

impl Live {
    async fn next(&mut self) -> Option<Came> {
        loop {
            while self.places.len() < MOST_OPEN
                && let Some((index, stream)) = self.waiting.pop_front()
            {
                self.open(index, stream);
            }
            let (index, mut stream, step) = self.open.next().await?;
            self.places.remove(&index);
            match step {
                Some(step) => return Some(Came { index, stream, step }),
                None => {
                    stream.rest();
                    self.waiting.push_back((index, stream));
                }
            }
        }
    }

    fn open(&mut self, index: usize, mut stream: RecordStream) {
        let recall = Arc::new(Notify::new());
        self.places.insert(index, (recall.clone(), Instant::now()));
        self.open.push(Box::pin(async move {
            let step = tokio::select! {
                biased;
                step = stream.next() => Some(step),
                () = recall.notified() => None,
            };
            (index, stream, step)
        }));
    }

    fn rotate(&mut self, now: Instant) {
        let quiet = self.places.values().filter(|(_, since)| now.saturating_duration_since(*since) >= QUIET);
        for (recall, _) in quiet.take(self.waiting.len()) {
            recall.notify_one();
        }
    }
}

/// See [`Streams::InOrder`].
pub(crate) struct InOrder {
    waiting: VecDeque<(usize, RecordStream)>,
    ahead: FuturesOrdered<BoxFuture<'static, Came>>,
    head: Option<(usize, RecordStream)>,
}

impl InOrder {
    async fn next(&mut self) -> Option<Came> {
        if let Some((_, stream)) = &mut self.head {
            let step = stream.next().await;
            let (index, stream) = self.head.take()?;
            return Some(Came { index, stream, step });
        }
        while self.ahead.len() < AHEAD
            && let Some((index, mut stream)) = self.waiting.pop_front()
        {
            self.ahead.push_back(Box::pin(async move {
                let step = stream.next().await;
                Came { index, stream, step }
            }));
        }
        self.ahead.next().await
    }
}
