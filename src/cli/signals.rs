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
    /// Ctrl-Z, where that is caught.
    Suspend,
}

/// Catches the signals that would end the process.
pub(crate) struct Signals {
    interrupt: Stream,
    terminate: Stream,
    /// `None` where whoever started this process wants it to go on without its terminal (`nohup`).
    hang_up: Option<Stream>,
    /// Ctrl-\\ and Ctrl-Z, for who has changed the terminal and must change it back before.
    terminal: Option<(Stream, Stream)>,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn catch() -> Result<Self, Error> {
        Ok(Self {
            terminal: None,
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hang_up: if hang_up_is_ignored() { None } else { Some(catch(SignalKind::hangup())?) },
        })
    }

    /// Catches what the terminal's keys send, too: whoever changes its modes must not end or stop before changing them back.
    pub(crate) fn catch_keys(&mut self) -> Result<(), Error> {
        if self.terminal.is_none() {
            self.terminal = Some((catch(SignalKind::quit())?, catch(SignalKind::from_raw(libc::SIGTSTP))?));
        }
        Ok(())
    }

    /// The next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Signal {
        let hang_up = async {
            match &mut self.hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        let key = async {
            match &mut self.terminal {
                Some((quit, suspend)) => tokio::select! {
                    biased;
                    _ = quit.recv() => Signal::Terminate,
                    _ = suspend.recv() => Signal::Suspend,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = hang_up => Signal::HangUp,
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
            signal = key => signal,
        }
    }
}

fn catch(kind: SignalKind) -> Result<Stream, Error> {
    signal(kind).map_err(|error| Error::new(Kind::Local, "cannot catch signals").because(error))
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
