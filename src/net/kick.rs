//! Congestion control that can be set aside for one flight.
//!
//! What was sent into an outage counts as under way until it is known to be lost, and that is known only when something
//! later is acknowledged. A full window lets nothing later out, and QUIC's own probes come at intervals that double: after
//! an outage the silence lasts as long again. A kick lets one flight out whatever the window says; its acknowledgement
//! settles everything before it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics, CubicConfig};
use quinn_proto::RttEstimator;

/// Far above any window. A few packets would not do: probes overshoot the window, and what is under way may exceed it by
/// any amount.
const BOUNDLESS: u64 = 1 << 40;

/// Sets the congestion control of one connection aside, until it has sent something. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Kick(Arc<AtomicU64>);

impl Kick {
    /// The next flight leaves whatever is under way. Something to send has to follow.
    pub(super) fn now(&self) {
        self.0.store(BOUNDLESS, Ordering::Relaxed);
    }
}

/// A path that is new gets a new controller: the factory hands the same kick to each.
impl ControllerFactory for Kick {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let inner = Arc::new(CubicConfig::default()).build(now, mtu);
        Box::new(Kicked { inner, kick: Self::clone(&self) })
    }
}

struct Kicked {
    inner: Box<dyn Controller>,
    kick: Kick,
}

impl Controller for Kicked {
    fn window(&self) -> u64 {
        self.inner.window().saturating_add(self.kick.0.load(Ordering::Relaxed))
    }

    fn on_sent(&mut self, now: Instant, bytes: u64, last: u64) {
        self.kick.0.store(0, Ordering::Relaxed);
        self.inner.on_sent(now, bytes, last);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent, lost);
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.inner.on_mtu_update(mtu);
    }

    fn metrics(&self) -> ControllerMetrics {
        self.inner.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), kick: self.kick.clone() })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kick_lasts_until_something_is_sent_on_whichever_path() {
        let kick = Kick::default();
        let now = tokio::time::Instant::now().into_std();
        let mut path = Arc::new(kick.clone()).build(now, 1200);
        let before = path.window();
        kick.now();
        assert!(path.window() > BOUNDLESS && path.clone_box().window() > BOUNDLESS);
        path.on_sent(now, 1200, 1);
        assert_eq!((path.window(), path.clone_box().window()), (before, before));
    }
}
