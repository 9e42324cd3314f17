//! System events, and waiting for them.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use ado_proto::request::{ErrorReply, Events, EventsFrom, ListEvents};
use tokio::time::Instant;

use super::{Asked, MAX_ROWS, info, unavailable};

/// Longest wait for an event.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// What comes this soon after an event is read with it: under load a waiting reader asks the store a hundred times a second
/// at most, not once a commit.
const GATHER: Duration = Duration::from_millis(10);

impl Asked<'_> {
    /// One page of events. `gone` resolves when nobody waits for the answer.
    pub(super) async fn list_events(
        &self,
        request: ListEvents,
        gone: impl Future<Output = ()>,
    ) -> Result<Events, ErrorReply> {
        let until = Instant::now() + Duration::from_millis(request.wait_ms.into()).min(LONGEST_WAIT);
        let mut news = self.shared.hub.watch_news();
        let (mut from, mut gone) = (request.from, pin!(gone));
        loop {
            news.mark_unchanged();
            let page = self.events(from, request.limit).await?;
            if !page.events.is_empty() || Instant::now() >= until || self.shared.tasks.is_stopping() {
                return Ok(page);
            }
            from = EventsFrom::After(page.next);
            tokio::select! {
                biased;
                () = self.shared.tasks.stopping() => {}
                () = &mut gone => return Ok(page),
                () = tokio::time::sleep_until(until) => {}
                _ = news.changed() => tokio::time::sleep(GATHER).await,
            }
        }
    }

    async fn events(&self, from: EventsFrom, limit: u32) -> Result<Events, ErrorReply> {
        let limit = limit.clamp(1, MAX_ROWS) as usize;
        let mut page = self.shared.store.events(&self.access.audience, from, limit).await.map_err(unavailable)?;
        let fitting = info::fitting(&page.events);
        if fitting < page.events.len() {
            page.events.truncate(fitting);
            page.next = page.events.last().map_or(page.next, |event| event.cursor);
        }
        Ok(page)
    }
}
