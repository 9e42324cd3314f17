//! The worker's end of a guard.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::guard::protocol::{self, FromGuard, ToGuard};
use super::pipes::Pipes;
use super::redact::Redactor;

/// A guard. Dropping it closes the control socket: the guard kills its agent and ends.
#[derive(Debug)]
pub(super) struct Keeper {
    child: Child,
    control: UnixStream,
    buffer: Vec<u8>,
}

impl Keeper {
    /// Starts `executable guard <guards>`.
    pub(super) fn spawn(
        executable: &Path,
        guards: &Path,
        redactor: Option<&Arc<Redactor>>,
    ) -> io::Result<(Self, Pipes)> {
        let (ours, theirs) = StdStream::pair()?;
        ours.set_nonblocking(true)?;
        // Its environment is empty: what the agent gets comes in the start message, and nothing of ours can be read there.
        let mut child = Command::new(executable)
            .arg("guard")
            .arg(guards)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().expect("it is piped").into_owned_fd()?;
        let stderr = child.stderr.take().expect("it is piped").into_owned_fd()?;
        let keeper = Self { child, control: UnixStream::from_std(ours)?, buffer: Vec::new() };
        Ok((keeper, Pipes::new(stdout, stderr, redactor)?))
    }

    /// The guard's process id; `None` once it has been waited for.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Says something. A guard that is gone is noticed by [`Keeper::next`].
    pub(super) async fn tell(&mut self, message: &ToGuard) -> io::Result<()> {
        let bytes = protocol::encode(message).map_err(io::Error::other)?;
        self.control.write_all(&bytes).await
    }

    /// What the guard says; `None` when it is gone. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<FromGuard> {
        loop {
            match protocol::take(&mut self.buffer) {
                Ok(Some(message)) => return Some(message),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "a guard talks nonsense");
                    return None;
                }
            }
            match self.control.read_buf(&mut self.buffer).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return None,
            }
        }
    }

    /// Waits until its process is gone.
    pub(super) async fn gone(self) {
        let Self { mut child, control, .. } = self;
        drop(control);
        if let Err(error) = child.wait().await {
            tracing::warn!(%error, "cannot wait for a guard");
        }
    }
}
