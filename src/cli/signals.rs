//! What users and systems send to a command while it watches or serves.

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use super::error::{Error, Kind};

/// A wish to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// The system or another program.
    Terminate,
    /// The terminal is gone.
    HangUp,
}

/// Catches the signals that would end the process.
pub(crate) struct Signals {
    interrupt: Stream,
    terminate: Stream,
    /// `None` where whoever started this process wants it to go on without its terminal (`nohup`).
    hang_up: Option<Stream>,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn catch() -> Result<Self, Error> {
        let catch = |kind| signal(kind).map_err(|error| Error::new(Kind::Local, "cannot catch signals").because(error));
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hang_up: if hang_up_is_ignored() { None } else { Some(catch(SignalKind::hangup())?) },
        })
    }

    /// The next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Signal {
        let hang_up = async {
            match &mut self.hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = hang_up => Signal::HangUp,
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
        }
    }
}

#[expect(unsafe_code, reason = "the disposition of a signal is only to be had from the C library")]
fn hang_up_is_ignored() -> bool {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: nothing is set, and what is read is written whole when the call succeeds.
    unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}
