//! The wait of whoever carries packets: for the next that is due, or for a change of what is.

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Waits for a change, at most until `next`; `None`: nothing is due.
pub(crate) async fn changed_or(next: Option<Instant>, changed: &Notify) {
    let timer = async {
        match next {
            Some(next) => sleep_until(next).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        () = changed.notified() => {}
        () = timer => {}
    }
}
