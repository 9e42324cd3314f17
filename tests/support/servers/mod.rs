//! Servers that tests start for themselves: private, in a temporary folder, ended with this process however that ends.

#![allow(dead_code, unreachable_pub, reason = "included by several test binaries, each of which uses a part")]

pub mod postgres;
pub mod redis;
pub mod s3;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Starts a server, says its pid, and waits for the pipe that ends with whoever holds its other end. What the kernel
/// offers for this (a signal at the parent's death) is sent when the starting thread ends, and each test is a thread.
const KEEPER: &str = r#"
folder=$1 signal=$2; shift 2
"$@" >>"$folder/log" 2>&1 </dev/null &
echo $!
cat >/dev/null
kill -$signal $! 2>/dev/null
wait
rm -rf "$folder"
"#;

/// Whether what is missing must be installed: `ADO_TEST=full`.
pub fn full() -> bool {
    std::env::var("ADO_TEST").is_ok_and(|tier| tier == "full")
}

/// Finds a program that may have to be installed. `None` (said loudly): skip the test.
pub fn program(name: &str, package: &str, find: impl Fn() -> Option<PathBuf>) -> Option<PathBuf> {
    if let Some(found) = find() {
        return Some(found);
    }
    if full() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/servers/install.sh");
        let status = Command::new("sh").arg(script).arg(package).status().expect("a shell");
        assert!(status.success(), "{package} cannot be installed");
        return Some(find().unwrap_or_else(|| panic!("{name} is installed")));
    }
    eprintln!("SKIPPED: there is no {name} here; install it, or set ADO_TEST=full (root) to have it installed");
    None
}

/// A running server and the shell that ends it.
pub struct Kept {
    keeper: Child,
    pub pid: i32,
}

/// What is to be kept, and how it ends.
pub struct Keep<'a> {
    /// Holds the server's files, and what it prints in `log`; goes with it.
    pub folder: &'a Path,
    /// Ends it at once, without leaving anything: a name that `kill` knows.
    pub signal: &'a str,
    /// Whose process it is, if not ours.
    pub user: Option<(u32, u32)>,
}

impl Kept {
    pub fn start(keep: &Keep<'_>, program: &Path, arguments: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", KEEPER, "keeper"]).arg(keep.folder).arg(keep.signal);
        shell.arg(program).args(arguments);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).current_dir(keep.folder);
        // Ctrl-C on the tests is not meant for it: it would end before they do.
        shell.process_group(0);
        if let Some((user, group)) = keep.user {
            shell.uid(user).gid(group);
        }
        let mut keeper = shell.spawn().expect("a shell");
        let mut pid = String::new();
        BufReader::new(keeper.stdout.take().expect("it is piped")).read_line(&mut pid).expect("its pid");
        Self { keeper, pid: pid.trim().parse().expect("a pid") }
    }

    /// No longer ends the server, which is dead, nor removes its folder.
    pub fn forget(mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }

    /// Ends the server and waits for its end.
    pub fn end(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.end();
    }
}
