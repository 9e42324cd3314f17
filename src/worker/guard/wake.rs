//! What a guard waits for: its worker, the death of a child, the end of memory, an instant. It only waits; the caller then looks at all of them.

use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::BootTime;

fn poll_all(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> io::Result<()> {
    match poll(fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(target_os = "linux")]
pub(super) use linux::Wake;
#[cfg(not(target_os = "linux"))]
pub(super) use portable::Wake;

#[cfg(target_os = "linux")]
mod linux {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

    use super::*;

    pub(in super::super) struct Wake {
        children: SignalFd,
        /// On the clock that goes on while the machine sleeps: a poll's own timeout does not.
        timer: TimerFd,
    }

    impl Wake {
        /// SIGCHLD must be blocked.
        pub(in super::super) fn new() -> io::Result<Self> {
            let mut mask = SigSet::empty();
            mask.add(Signal::SIGCHLD);
            let children = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            Ok(Self { children, timer: TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)? })
        }

        /// Waits for anything.
        pub(in super::super) fn wait(
            &mut self,
            control: BorrowedFd<'_>,
            also: Option<BorrowedFd<'_>>,
            until: BootTime,
        ) -> io::Result<()> {
            self.set_timer(until)?;
            let own = [self.timer.as_fd(), control, self.children.as_fd()];
            let mut fds: Vec<_> = own.into_iter().chain(also).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            poll_all(&mut fds, PollTimeout::NONE)?;
            self.drain()
        }

        /// Waits for a child's death or the instant.
        pub(in super::super) fn wait_for_child(&mut self, until: BootTime) -> io::Result<()> {
            self.set_timer(until)?;
            let mut fds = [
                PollFd::new(self.timer.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
            ];
            poll_all(&mut fds, PollTimeout::NONE)?;
            self.drain()
        }

        fn set_timer(&mut self, until: BootTime) -> io::Result<()> {
            if until == BootTime::NEVER {
                self.timer.unset()?;
            } else {
                // Zero would disarm it.
                let at = Duration::from_nanos(until.0.max(1));
                self.timer.set(Expiration::OneShot(at.into()), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            }
            Ok(())
        }

        /// Several deaths may be one signal; who died is found by waiting for all.
        fn drain(&mut self) -> io::Result<()> {
            while self.children.read_signal()?.is_some() {}
            Ok(())
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod portable {
    use super::*;

    /// Looks twenty times a second: good enough to develop on.
    const TICK_MS: u8 = 50;

    pub(in super::super) struct Wake;

    impl Wake {
        pub(in super::super) fn new() -> io::Result<Self> {
            Ok(Self)
        }

        /// Waits for anything.
        pub(in super::super) fn wait(
            &mut self,
            control: BorrowedFd<'_>,
            _also: Option<BorrowedFd<'_>>,
            until: BootTime,
        ) -> io::Result<()> {
            poll_all(&mut [PollFd::new(control, PollFlags::POLLIN)], timeout(until))
        }

        /// Waits for a child's death or the instant.
        pub(in super::super) fn wait_for_child(&mut self, until: BootTime) -> io::Result<()> {
            poll_all(&mut [], timeout(until))
        }
    }

    fn timeout(until: BootTime) -> PollTimeout {
        let left = until.since(BootTime::now()).as_millis();
        PollTimeout::from(u8::try_from(left).unwrap_or(u8::MAX).min(TICK_MS))
    }
}
