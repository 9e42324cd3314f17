//! HTTP: health, readiness and metrics of a controller or a worker.
//!
//! Must never know: policy. What "ready" means is handed in, and what is counted.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Answers whether the process can do its work; the error says why not.
pub type Readiness = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// Makes a [`Readiness`] of an async function.
pub fn readiness<F, Fut>(check: F) -> Readiness
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), String>> + Send + 'static,
{
    Arc::new(move || Box::pin(check()))
}

/// Writes a page of text.
pub type Page = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync>;

/// Makes a [`Page`] of an async function.
pub fn page<F, Fut>(write: F) -> Page
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = String> + Send + 'static,
{
    Arc::new(move || Box::pin(write()))
}

/// What Prometheus calls its text format.
const METRICS: [(HeaderName, &str); 1] = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];

/// Longest time a check may take before the process counts as not ready.
const CHECK: Duration = Duration::from_secs(2);

/// A running HTTP server.
pub struct Gateway {
    address: SocketAddr,
    stop: CancellationToken,
    server: tokio::task::JoinHandle<()>,
}

impl Gateway {
    /// Serves `/health` (200 while the process lives), `/ready` (200, or 503 with the reason), and `/metrics` in the text
    /// format of Prometheus, which `metrics` writes.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(address: SocketAddr, ready: Readiness, metrics: Page) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let app = Router::new()
            .route("/health", get(async || "ok\n"))
            .route("/ready", get(move || check(ready.clone())))
            .route("/metrics", get(async move || (METRICS, metrics().await)));
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stopped).await {
                tracing::error!(%error, "HTTP ended");
            }
        });
        Ok(Self { address, stop, server })
    }

    /// The address bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops; waits a moment for requests under way.
    pub async fn stop(self) {
        self.stop.cancel();
        let mut server = self.server;
        if tokio::time::timeout(CHECK, &mut server).await.is_err() {
            server.abort();
        }
    }
}

async fn check(ready: Readiness) -> (StatusCode, String) {
    match tokio::time::timeout(CHECK, ready()).await {
        Ok(Ok(())) => (StatusCode::OK, "ready\n".into()),
        Ok(Err(why)) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: no answer within {CHECK:?}\n")),
    }
}
