//! The terminal this process was started on: its size, its modes, its keys.
//!
//! While a line is drawn in place, what people type is not echoed: it would land in that line. Modes are changed only by
//! who is in the foreground, and changed back when this is dropped, or before the process stops.

use std::io::{self, IsTerminal, Stdin};
use std::os::fd::AsFd;

use nix::sys::signal::{Signal, raise};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::termios::{LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, isatty, tcgetpgrp};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Longest that one press of a key sends, bytes.
const LONGEST_KEY: usize = 32;

/// Whether a line may be drawn in place on stderr: nobody but this process writes to its terminal. Behind a pipe somebody
/// might.
pub(crate) fn is_ours() -> bool {
    let (stdout, stderr) = (io::stdout(), io::stderr());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
    if dumb || !stderr.is_terminal() {
        return false;
    }
    let (Ok(out), Ok(err)) = (fstat(&stdout), fstat(&stderr)) else { return false };
    if isatty(&stdout).unwrap_or(false) {
        return out.st_rdev == err.st_rdev;
    }
    let kind = SFlag::from_bits_truncate(out.st_mode) & SFlag::S_IFMT;
    kind == SFlag::S_IFREG || kind == SFlag::S_IFCHR
}

/// Whether text may be coloured (<https://no-color.org>).
pub(crate) fn may_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_some_and(|term| term != "dumb" && !term.is_empty())
}

/// Columns and rows of the terminal at stderr.
pub(crate) fn size() -> (usize, usize) {
    let size = terminal_size::terminal_size_of(io::stderr());
    size.map_or((80, 24), |(width, height)| (usize::from(width.0).max(2), usize::from(height.0).max(2)))
}

/// Whether keys typed at the terminal are meant for this process, and its lines for who looks.
pub(crate) fn in_foreground() -> bool {
    tcgetpgrp(io::stderr()).is_ok_and(|group| group == getpgrp())
}

/// Modes of the terminal, changed and changed back.
#[derive(Debug, Default)]
pub(crate) struct Terminal {
    found: Option<Termios>,
}

impl Terminal {
    /// Stops the echo of what is typed. Does nothing in the background, or when it is done.
    pub(crate) fn hush(&mut self) {
        if self.found.is_none() && in_foreground() {
            self.change(SetArg::TCSANOW, |_| {});
        }
    }

    /// Whether it shows what is typed.
    pub(crate) fn echoes(&self) -> bool {
        self.found.is_none()
    }

    /// Takes keys one by one, from now on: what was typed before was not meant for this.
    pub(crate) fn keys(&mut self) -> io::Result<Keys> {
        if !in_foreground() {
            return Err(io::Error::other("in the background"));
        }
        self.change(SetArg::TCSAFLUSH, |modes| {
            modes.local_flags.remove(LocalFlags::ICANON);
            // A read never waits: readiness is waited for.
            modes.control_chars[SpecialCharacterIndices::VMIN as usize] = 0;
            modes.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        });
        Keys::new()
    }

    /// Makes it as it was found.
    pub(crate) fn restore(&mut self) {
        if let Some(found) = self.found.take()
            && in_foreground()
        {
            let _ = tcsetattr(io::stderr().as_fd(), SetArg::TCSANOW, &found);
        }
    }

    /// Makes it as it was found, and stops this process until somebody wants it to go on.
    pub(crate) fn suspend(&mut self) {
        self.restore();
        let _ = raise(Signal::SIGSTOP);
    }

    fn change(&mut self, when: SetArg, change: impl FnOnce(&mut Termios)) {
        let stderr = io::stderr();
        let Ok(now) = tcgetattr(&stderr) else { return };
        let found = self.found.get_or_insert(now);
        let mut modes = found.clone();
        modes.local_flags.remove(LocalFlags::ECHO);
        change(&mut modes);
        let _ = tcsetattr(&stderr, when, &modes);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Keys, one by one.
pub(crate) struct Keys(AsyncFd<Stdin>);

impl Keys {
    #[expect(unsafe_code, reason = "registering a descriptor is safe only for who keeps it open")]
    fn new() -> io::Result<Self> {
        // SAFETY: `Stdin` names descriptor 0, which nobody in this process closes.
        unsafe { Ok(Self(AsyncFd::register_with_interest(io::stdin(), Interest::READABLE)?)) }
    }

    /// What the next press of a key sends; `None` when there is no keyboard any more. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let mut ready = self.0.readable().await.ok()?;
            let mut key = [0; LONGEST_KEY];
            let read = nix::unistd::read(io::stdin(), &mut key);
            match read {
                Ok(0) | Err(nix::errno::Errno::EINTR | nix::errno::Errno::EAGAIN) => ready.clear_ready(),
                Ok(read) => return Some(key[..read].to_vec()),
                Err(_) => return None,
            }
        }
    }
}
