//! Starting the agent's process.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::unistd::{Pid, setsid};

use super::protocol::Start;
use crate::worker::containment::Hold;

/// Stands for "could not join the control group" on the way from the child. No failing exec returns it.
const NOT_HELD: Errno = Errno::ENOTRECOVERABLE;

pub(super) enum Failure {
    /// The control group does not let it in; another grade may do.
    NotHeld,
    /// It cannot be started.
    Refused { error: String, permanent: bool },
}

/// Starts the agent in a session of its own, held by `hold`, with nothing open but /dev/null and the two pipes, signals as
/// a shell would give them. It has been reaped by nobody when this returns.
pub(super) fn spawn(start: &Start, hold: &Hold) -> Result<Pid, Failure> {
    match fs::metadata(&start.cwd) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(refused(format!("`{}` is not a directory", start.cwd), true)),
        Err(error) => {
            let permanent = is_permanent(&error);
            return Err(refused(format!("cannot work in `{}`: {error}", start.cwd), permanent));
        }
    }
    let Some((program, arguments)) = start.argv.split_first() else {
        return Err(refused("there is no command".into(), true));
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(&start.env).current_dir(&start.cwd).stdin(Stdio::null());
    prepare_in_child(&mut command, hold);
    match command.spawn() {
        Ok(child) => Ok(Pid::from_raw(i32::try_from(child.id()).expect("the kernel's process ids are positive i32"))),
        Err(error) if error.raw_os_error() == Some(NOT_HELD as i32) => Err(Failure::NotHeld),
        Err(error) => Err(refused(format!("cannot run `{program}`: {error}"), is_permanent(&error))),
    }
}

fn refused(error: String, permanent: bool) -> Failure {
    Failure::Refused { error, permanent }
}

/// Whether another try, here or elsewhere, would fail the same way.
fn is_permanent(error: &io::Error) -> bool {
    use Errno::{E2BIG, EACCES, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOEXEC, ENOTDIR, EPERM};
    let permanent = [E2BIG, EACCES, EINVAL, EISDIR, ELOOP, ENAMETOOLONG, ENOENT, ENOEXEC, ENOTDIR, EPERM];
    error.raw_os_error().is_some_and(|code| permanent.contains(&Errno::from_raw(code)))
}

#[expect(unsafe_code, reason = "what happens between fork and exec; it only makes system calls, and allocates nothing")]
fn prepare_in_child(command: &mut Command, hold: &Hold) {
    #[cfg(target_os = "linux")]
    let entrance = {
        use std::os::fd::AsRawFd;
        hold.entrance().map(|fd| fd.as_raw_fd())
    };
    #[cfg(not(target_os = "linux"))]
    let _ = hold;
    // SAFETY: the closure runs in the child of a process with one thread, makes async-signal-safe calls only, and
    // `entrance` is open until the spawn returns, since `hold` outlives it.
    unsafe {
        command.pre_exec(move || {
            setsid()?;
            #[cfg(target_os = "linux")]
            {
                if let Some(fd) = entrance
                    && libc::write(fd, b"0".as_ptr().cast(), 1) != 1
                {
                    return Err(io::Error::from_raw_os_error(NOT_HELD as i32));
                }
                // If somebody kills the guard with SIGKILL, at least this process goes with it.
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            }
            // Some cannot be changed; those have their default.
            for signal in 1..=64 {
                libc::signal(signal, libc::SIG_DFL);
            }
            SigSet::empty().thread_set_mask()?;
            Ok(())
        });
    }
}

/// Closes what was inherited beside the three standard streams: whoever started the worker may have left files open.
#[expect(unsafe_code, reason = "nobody owns the file descriptors that are closed: this is the first thing that runs")]
pub(super) fn close_inherited() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    // SAFETY: takes numbers only; no object of this process owns any of the descriptors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    #[cfg(not(target_os = "linux"))]
    let result = {
        for fd in 3..1024 {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
        0
    };
    match Errno::result(result) {
        Ok(_) => Ok(()),
        // A kernel without it (before 5.9), or a filter: files opened by this program are closed on exec anyway.
        Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
