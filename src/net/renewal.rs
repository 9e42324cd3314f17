//! Keeps a certificate from ending: a new one is made when two thirds of the old one's life are over.

use std::time::Duration;

use ado_certs::{ClientTls, Identity, KeyRequest};
use ado_proto::request::Renew;
use rustls::pki_types::CertificateDer;
use tokio::time::sleep;

use super::channel::Priority;
use super::error::Error;
use super::link::{Call, Link, LinkState};
use crate::env::Env;

/// Longest sleep before the wall clock is read again: a suspended machine's timers stand still, certificates age on.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Longest wait for a new certificate.
const RENEW_FOR: Duration = Duration::from_secs(30);
/// First and longest wait between failed attempts.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// Renews the certificate of `tls` over `link`, again and again; `save` is told every new one. Ends when the link is
/// closed.
pub async fn keep_renewed(link: Link, tls: ClientTls, save: impl Fn(&Identity) + Send, env: Env) {
    let mut retry = RETRY.0;
    // None: who joins has nothing to renew.
    while let Some(identity) = tls.identity() {
        if !identity.should_renew(env.now()) {
            sleep(until_due(&identity, &env).min(LOOK_EVERY)).await;
            continue;
        }
        match renew(&link, &tls).await {
            Ok(()) => {
                if let Some(identity) = tls.identity() {
                    tracing::info!(identity = %identity.principal(), "certificate renewed");
                    save(&identity);
                }
                retry = RETRY.0;
            }
            Err(_) if matches!(*link.state().borrow(), LinkState::Closed(_)) => return,
            Err(error) => {
                tracing::warn!(%error, ?retry, "cannot renew the certificate");
                sleep(retry.mul_f64(env.jitter())).await;
                retry = (retry * 2).min(RETRY.1);
            }
        }
    }
}

async fn renew(link: &Link, tls: &ClientTls) -> Result<(), Error> {
    let broken = |error: ado_certs::Error| Error::Certificate(error.to_string());
    let key = KeyRequest::new().map_err(broken)?;
    let call = Call { priority: Priority::Control, timeout: Some(RENEW_FOR), ..Call::default() };
    let renewed = link.call(&Renew { csr: key.csr_der().to_vec() }, call).await?;
    let chain = renewed.chain.into_iter().map(CertificateDer::from).collect();
    tls.replace(key.into_identity(chain).map_err(broken)?).map_err(broken)
}

/// Until two thirds of its life are over. Never zero, or a clock that moves in steps would make a busy loop.
fn until_due(identity: &Identity, env: &Env) -> Duration {
    let life = identity.not_after().since(identity.not_before());
    let due = identity.not_before().after(life * 2 / 3);
    due.since(env.now()).max(Duration::from_millis(10))
}
