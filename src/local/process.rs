//! Starting and stopping a background process.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::home::{Home, Role};

/// A log file longer than this is put aside when its process is started; one old file is kept.
const LOG_LIMIT: u64 = 16 * 1024 * 1024;
/// Most bytes of a log that are quoted in an error.
const QUOTE: u64 = 2048;

/// Variables that say something about the caller, which may itself be a task, and nothing about this machine.
const OF_THE_CALLER: [&str; 8] = [
    "ADO_API_KEY",
    "ADO_ATTEMPT",
    "ADO_CONTEXT",
    "ADO_EPOCH",
    "ADO_GROUP_COUNT",
    "ADO_GROUP_INDEX",
    "ADO_TASK",
    "ADO_TASK_ID",
];

/// A process that was just started.
pub(super) struct Started {
    child: Child,
    log: PathBuf,
    /// Length of the log before it wrote anything.
    log_from: u64,
}

impl Started {
    /// Whether it has ended already.
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// The end of what it said.
    pub(super) fn last_words(&self) -> String {
        tail(&self.log, self.log_from).unwrap_or_default()
    }
}

/// Starts a role's process: this program, its output appended to the role's log, without what belongs to the caller.
pub(super) fn spawn(home: &Home, role: Role) -> io::Result<Started> {
    let log = home.log(role);
    if std::fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_LIMIT) {
        std::fs::rename(&log, log.with_extension("log.old"))?;
    }
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log)?;
    let log_from = file.metadata()?.len();
    let mut command = Command::new(this_program()?);
    command.arg(role.as_str()).arg("--local").current_dir(home.path());
    for name in OF_THE_CALLER {
        command.env_remove(name);
    }
    command.env("ADO_HOME", home.path());
    let child = command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0).spawn()?;
    Ok(Started { child, log, log_from })
}

/// This program's file. After an upgrade in place the kernel marks the old one as deleted: the new one is meant.
fn this_program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    match path.to_str().and_then(|text| text.strip_suffix(" (deleted)")) {
        Some(replaced) => Ok(replaced.into()),
        None => Ok(path),
    }
}

/// Asks a process to stop.
pub(super) fn terminate(pid: u32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    match kill(Pid::from_raw(pid), Signal::SIGTERM) {
        // It ended by itself in the meantime.
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn tail(log: &Path, from: u64) -> io::Result<String> {
    let mut file = std::fs::File::open(log)?;
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(from.max(end.saturating_sub(QUOTE))))?;
    let mut bytes = Vec::new();
    file.take(QUOTE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_of_this_life_only_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("x.log");
        std::fs::write(&log, "old\nnew one\n").unwrap();
        assert_eq!(tail(&log, 4).unwrap(), "new one");
        std::fs::write(&log, "x".repeat(10_000) + "end").unwrap();
        let quoted = tail(&log, 0).unwrap();
        assert!(quoted.len() as u64 == QUOTE && quoted.ends_with("end"));
    }
}
