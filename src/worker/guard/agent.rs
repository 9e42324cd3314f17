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

/// Starts the agent in a session of its own, held by `hold`, with nothing open but its standard input and the two pipes, signals as
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
    let stdin = match &start.stdin {
        Some(path) => match fs::File::open(path) {
            Ok(pipe) => Stdio::from(pipe),
            Err(error) => return Err(refused(format!("cannot open `{path}`: {error}"), false)),
        },
        None => Stdio::null(),
    };
    command.args(arguments).env_clear().envs(&start.env).current_dir(&start.cwd).stdin(stdin);
    command.envs(start.secrets.iter().map(|(name, value)| (name, value.expose())));
    match born(&mut command, hold) {
        Ok(agent) => Ok(agent),
        Err(error) if error.raw_os_error() == Some(NOT_HELD as i32) => Err(Failure::NotHeld),
        Err(error) => Err(refused(format!("cannot run `{program}`: {error}"), is_permanent(&error))),
    }
}

/// The process, held by `hold` from its first instruction on.
fn born(command: &mut Command, hold: &Hold) -> io::Result<Pid> {
    prepare_in_child(command);
    #[cfg(target_os = "linux")]
    limit_in_child(command, hold);
    #[cfg(target_os = "linux")]
    if let Some(group) = hold.group_fd() {
        return match birth::spawn_into(command, group) {
            // No such call here, or a filter that knows none: it walks in by itself.
            Err(birth::NotBorn) => {
                enter_in_child(command, hold);
                forked(command)
            }
            Ok(result) => result,
        };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = hold;
    forked(command)
}

/// Lets the child go under its limits by itself, where that is not done by the group it is born in.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "what happens between fork and exec; it makes one system call for each limit")]
fn limit_in_child(command: &mut Command, hold: &Hold) {
    use std::os::fd::AsRawFd;
    for entrance in hold.limited_by().into_iter().map(|fd| fd.as_raw_fd()) {
        // SAFETY: one async-signal-safe call, and `entrance` is open until the spawn returns, since `hold` outlives it.
        unsafe {
            command.pre_exec(move || match libc::write(entrance, b"0".as_ptr().cast(), 1) {
                1 => Ok(()),
                _ => Err(io::Error::from_raw_os_error(NOT_HELD as i32)),
            });
        }
    }
}

fn forked(command: &mut Command) -> io::Result<Pid> {
    let child = command.spawn()?;
    Ok(Pid::from_raw(i32::try_from(child.id()).expect("the kernel's process ids are positive i32")))
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
fn prepare_in_child(command: &mut Command) {
    // SAFETY: the closure runs in the child of a process with one thread, and makes async-signal-safe calls only.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            // If somebody kills the guard with SIGKILL, at least this process goes with it.
            #[cfg(target_os = "linux")]
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            // Some cannot be changed; those have their default.
            for signal in 1..=64 {
                libc::signal(signal, libc::SIG_DFL);
            }
            SigSet::empty().thread_set_mask()?;
            Ok(())
        });
    }
}

/// Lets the child enter its control group by itself. The kernel may need some 20 ms for that.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "what happens between fork and exec; it makes one system call")]
fn enter_in_child(command: &mut Command, hold: &Hold) {
    use std::os::fd::AsRawFd;
    let Some(entrance) = hold.entrance().map(|fd| fd.as_raw_fd()) else { return };
    // SAFETY: one async-signal-safe call, and `entrance` is open until the spawn returns, since `hold` outlives it.
    unsafe {
        command.pre_exec(move || match libc::write(entrance, b"0".as_ptr().cast(), 1) {
            1 => Ok(()),
            _ => Err(io::Error::from_raw_os_error(NOT_HELD as i32)),
        });
    }
}

/// Processes that begin their life in a control group (clone3(2)): moving one there afterwards makes the kernel wait for
/// all of its processors.
#[cfg(target_os = "linux")]
mod birth {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::{AsRawFd, BorrowedFd};

    use nix::fcntl::OFlag;
    use nix::sys::wait::waitpid;
    use nix::unistd::pipe2;

    use super::*;

    /// The kernel does not do it.
    pub(super) struct NotBorn;

    /// Like [`Command::spawn`], in the group whose directory is open as `group`. Only for processes with one thread.
    pub(super) fn spawn_into(command: &mut Command, group: BorrowedFd<'_>) -> Result<io::Result<Pid>, NotBorn> {
        let (failure, report) = pipe2(OFlag::O_CLOEXEC).map_err(|_| NotBorn)?;
        match clone_into(group)? {
            None => {
                let error = command.exec();
                let code = error.raw_os_error().unwrap_or(Errno::EINVAL as i32);
                let _ = File::from(report).write_all(&code.to_ne_bytes());
                leave()
            }
            Some(child) => {
                drop(report);
                let mut code = [0; 4];
                // It ends without a word when the program runs.
                if File::from(failure).read_exact(&mut code).is_err() {
                    return Ok(Ok(child));
                }
                let _ = waitpid(child, None);
                Ok(Err(io::Error::from_raw_os_error(i32::from_ne_bytes(code))))
            }
        }
    }

    /// Forks; `None` in the child.
    #[expect(unsafe_code, reason = "no wrapper has this system call")]
    fn clone_into(group: BorrowedFd<'_>) -> Result<Option<Pid>, NotBorn> {
        /// From linux/sched.h; the constant in `libc` is cut off.
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        // SAFETY: integers only, for which zero means "not used".
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = CLONE_INTO_CGROUP;
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.cgroup = u64::try_from(group.as_raw_fd()).expect("an open descriptor is not negative");
        // SAFETY: like fork(2), in a process with one thread: the child has its own copy of everything, no lock is held
        // by another thread, and it goes on to exec or to `_exit`.
        let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
        match Errno::result(result) {
            Ok(0) => Ok(None),
            Ok(child) => Ok(Some(Pid::from_raw(i32::try_from(child).expect("the kernel's process ids are i32")))),
            Err(_) => Err(NotBorn),
        }
    }

    /// Ends the child without what this program does at its end.
    #[expect(unsafe_code, reason = "a child must not run its parent's destructors")]
    fn leave() -> ! {
        // SAFETY: takes a number and does not return.
        unsafe { libc::_exit(127) }
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
