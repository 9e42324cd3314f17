//! Guards of earlier lives of this worker: a new incarnation may register only once none of their agents is left.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::containment;
use super::guard::MARKS;

/// How long they get. They noticed their worker's end when it ended; killing a large agent takes a moment.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Waits until no guard holds a lock in `guards`; kills those that do not go.
///
/// # Errors
/// When the directory cannot be read, or a guard can neither be waited for nor killed.
pub(super) async fn wait_for_guards(guards: &Path) -> io::Result<()> {
    let begin = Instant::now();
    let mut killed = false;
    loop {
        let living = living(guards)?;
        if living.is_empty() {
            return Ok(());
        }
        let waited = begin.elapsed();
        if waited > 2 * PATIENCE {
            return Err(io::Error::other(format!("guards of an earlier worker do not end: {living:?}")));
        }
        if waited > PATIENCE && !killed {
            killed = true;
            for guard in &living {
                tracing::warn!(guard, "killing a guard of an earlier worker");
                kill_guard(guards, *guard);
            }
        }
        // Locks are held by processes that are not our children: nothing tells us of their end.
        sleep(LOOK_EVERY).await;
    }
}

/// Process ids of the guards that live. Removes what dead ones left.
fn living(guards: &Path) -> io::Result<Vec<u32>> {
    let mut living = Vec::new();
    for entry in fs::read_dir(guards)? {
        let entry = entry?;
        let Some(guard) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let file = match File::open(entry.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        match file.try_lock() {
            Ok(()) => clean_up(guards, guard),
            Err(TryLockError::WouldBlock) => living.push(guard),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(living)
}

/// Kills what a dead guard left behind, and removes its lock. Blocks for a second or two at most.
pub(super) fn clean_up(guards: &Path, guard: u32) {
    let path = guards.join(guard.to_string());
    let note = fs::read_to_string(&path).unwrap_or_default();
    let mut lines = note.lines();
    let groups = lines.next().unwrap_or_default().split('\t').filter(|group| !group.is_empty()).map(Path::new);
    let groups: Vec<_> = groups.collect();
    let marks: Vec<String> = lines.map(str::to_owned).collect();
    // All of them or nothing: fewer would fit other attempts.
    let marks = if marks.len() == MARKS.len() { marks } else { Vec::new() };
    containment::remove_leftovers(&groups, &marks);
    let _ = fs::remove_file(path);
}

/// Kills the process only if it says that it is a guard of this directory: a lock can outlive its maker for a moment, in
/// a child between fork and exec.
fn kill_guard(guards: &Path, guard: u32) {
    let arguments = fs::read(format!("/proc/{guard}/cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|byte| *byte == 0).skip(1);
    let is_ours = arguments.next() == Some(b"guard") && arguments.next() == Some(guards.as_os_str().as_bytes());
    if let (true, Ok(pid)) = (is_ours, i32::try_from(guard)) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(guards: &Path, name: &str) -> File {
        let file = File::create(guards.join(name)).unwrap();
        file.try_lock().unwrap();
        file
    }

    #[tokio::test(start_paused = true)]
    async fn a_guard_that_lives_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path(), "1");
        fs::write(dir.path().join("2"), "/not/a/group").unwrap();
        fs::write(dir.path().join("README"), "not a guard's").unwrap();
        let waiting = wait_for_guards(dir.path());
        tokio::pin!(waiting);
        assert!(tokio::time::timeout(Duration::from_secs(2), &mut waiting).await.is_err());
        assert!(!dir.path().join("2").exists(), "a dead one's lock is removed");
        drop(held);
        waiting.await.unwrap();
        assert!(!dir.path().join("1").exists());
        assert!(dir.path().join("README").exists());
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_has_the_number_of_a_guard_is_not_killed() {
        let dir = tempfile::tempdir().unwrap();
        // The number of this very process, which is no guard: were it killed, so would be the test.
        let _held = lock(dir.path(), &std::process::id().to_string());
        assert!(wait_for_guards(dir.path()).await.is_err());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_a_dead_guard_left_is_killed() {
        use std::os::unix::process::ExitStatusExt;

        let dir = tempfile::tempdir().unwrap();
        let task = crate::env::Env::system().uuid().to_string();
        let sleep = |epoch: &str| {
            let mut command = std::process::Command::new("sleep");
            command.arg("1000").env("ADO_TASK_ID", &task).env("ADO_EPOCH", epoch).spawn().unwrap()
        };
        let (mut left, mut other) = (sleep("7"), sleep("8"));
        fs::write(dir.path().join("1"), format!("\nADO_TASK_ID={task}\nADO_EPOCH=7")).unwrap();
        wait_for_guards(dir.path()).await.unwrap();
        assert_eq!(left.wait().unwrap().signal(), Some(9));
        assert_eq!(other.try_wait().unwrap(), None, "another epoch's");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
