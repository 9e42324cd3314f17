//! What ado promises, through the real binary: exact output whatever is stopped, killed or slow.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::processes::marked;
use crate::support::TestEnv;

/// Far above what any step takes: a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Everything in `ADO_TEST=full`, less where that only costs time.
fn full() -> bool {
    std::env::var_os("ADO_TEST").is_some_and(|tier| tier == "full")
}

fn numbered(lines: u32) -> String {
    (1..=lines).map(|line| format!("{line}\n")).collect()
}

/// Checks again and again until it holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "other processes are waited for, in real time")]
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        #[expect(clippy::disallowed_methods, reason = "other processes tell us nothing when they change")]
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A command whose output goes to files, so that nobody has to read it while it runs.
struct Viewer {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Viewer {
    fn start(env: &TestEnv, name: &str, args: &[&str]) -> Self {
        let (stdout, stderr) = (env.work().join(format!("{name}.out")), env.work().join(format!("{name}.err")));
        let child = env
            .command(args)
            .stdout(File::create(&stdout).expect("a file"))
            .stderr(File::create(&stderr).expect("a file"))
            .spawn()
            .expect("ado starts");
        Self { child, stdout, stderr }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), signal).expect("it runs");
    }

    fn shown(&self) -> Vec<u8> {
        fs::read(&self.stdout).expect("its output")
    }

    fn complaints(&self) -> String {
        fs::read_to_string(&self.stderr).expect("its errors")
    }

    #[track_caller]
    fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        eventually("the viewer ends", || {
            status = self.child.try_wait().expect("it is ours");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

/// Pid of the controller or the worker.
fn pid(env: &TestEnv, role: &str) -> Pid {
    let text = fs::read_to_string(env.home().join(role).join(format!("{role}.lock"))).expect("a lock file");
    Pid::from_raw(text.trim().parse().expect("a pid"))
}

/// Most memory a process ever held, KiB.
pub(crate) fn peak_memory(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

#[test]
fn viewers_see_every_line_once_however_they_are_stopped() {
    const LINES: u32 = 200_000;
    let env = TestEnv::new();
    // The task waits for both viewers, so that they see it live.
    let go = env.work().join("go");
    let task = env.submit(&format!("until test -e {}; do sleep 0.01; done; seq 1 {LINES}", go.display()));
    let mut stopped = Viewer::start(&env, "stopped", &["attach", &task, "--from", "start"]);
    let mut killed = Viewer::start(&env, "killed", &["attach", &task, "--from", "start"]);
    File::create(&go).expect("a file");

    // One is stopped from its first line on until the other has everything.
    eventually("the first lines come", || !stopped.shown().is_empty());
    stopped.signal(Signal::SIGSTOP);
    eventually("the second viewer has begun", || killed.shown().len() > 10_000);
    killed.signal(Signal::SIGTERM);
    killed.wait();
    let mut shown = killed.shown();
    if shown.len() < numbered(LINES).len() {
        let complaints = killed.complaints();
        let from = complaints.rsplit("--from ").next().and_then(|rest| rest.split_whitespace().next()).expect("a hint");
        let mut again = Viewer::start(&env, "again", &["attach", &task, "--from", from]);
        assert_eq!(again.wait(), Some(0), "{}", again.complaints());
        shown.extend(again.shown());
    }
    assert!(shown == numbered(LINES).as_bytes(), "the killed one and its successor show every line once");

    for _ in 0..20 {
        stopped.signal(Signal::SIGCONT);
        let before = stopped.shown().len();
        eventually("it goes on", || {
            stopped.shown().len() > before || stopped.child.try_wait().is_ok_and(|s| s.is_some())
        });
        if stopped.child.try_wait().is_ok_and(|status| status.is_some()) {
            break;
        }
        stopped.signal(Signal::SIGSTOP);
    }
    let _ = kill(Pid::from_raw(i32::try_from(stopped.child.id()).expect("a pid")), Signal::SIGCONT);
    assert_eq!(stopped.wait(), Some(0), "{}", stopped.complaints());
    assert!(stopped.shown() == numbered(LINES).as_bytes(), "the stopped one shows every line once");
}

#[test]
fn random_bytes_come_out_as_they_went_in() {
    let env = TestEnv::new();
    let size = if full() { 50_000_000 } else { 10_000_000 };
    let file = env.work().join("random");
    let made = Command::new("head")
        .args(["-c", &size.to_string(), "/dev/urandom"])
        .stdout(File::create(&file).expect("a file"))
        .status()
        .expect("head runs");
    assert!(made.success());
    let random = fs::read(&file).expect("the file");
    let mut run = Viewer::start(&env, "run", &["run", "--name", "random", "--", "cat", "random"]);
    assert_eq!(run.wait(), Some(0), "{}", run.complaints());
    assert!(run.shown() == random, "through `run`");
    let mut logs = Viewer::start(&env, "logs", &["logs", "random", "--raw"]);
    assert_eq!(logs.wait(), Some(0), "{}", logs.complaints());
    assert!(logs.shown() == random, "through `logs --raw`");
}

#[test]
fn a_killed_controller_is_restarted_and_the_viewer_goes_on() {
    let env = TestEnv::new();
    let lines = if full() { 600 } else { 80 };
    let text = format!("for i in $(seq 1 {lines}); do echo $i; sleep 0.05; done; exit 7");
    let mut run = Viewer::start(&env, "run", &["run", &text]);
    for part in 1..=3 {
        eventually("lines come", || run.shown().iter().filter(|byte| **byte == b'\n').count() > part * lines / 5);
        kill(pid(&env, "controller"), Signal::SIGKILL).expect("it runs");
    }
    assert_eq!(run.wait(), Some(7), "{}", run.complaints());
    assert_eq!(String::from_utf8_lossy(&run.shown()), numbered(u32::try_from(lines).expect("small")));
}

#[test]
fn a_killed_worker_leaves_no_process_and_its_task_is_tried_again() {
    let env = TestEnv::new();
    let marker = format!("ADO_TEST_MARKER=worker-{}", std::process::id());
    // The first epoch leaves as many kinds of processes behind as it can.
    let text = "if [ $ADO_EPOCH = 1 ]; then
            setsid sh -c 'sleep 600 & sleep 600' & (trap '' TERM; sleep 600) & echo begun; sleep 600
        else echo again $ADO_ATTEMPT; fi";
    let mut run = Viewer::start(&env, "run", &["run", "--env", &marker, "--name", "victim", text]);
    eventually("the task runs", || run.shown() == b"begun\n" && marked(&marker).len() >= 5);
    kill(pid(&env, "worker"), Signal::SIGKILL).expect("it runs");
    assert_eq!(run.wait(), Some(0), "{}", run.complaints());
    assert_eq!(String::from_utf8_lossy(&run.shown()), "begun\nagain 2\n");
    eventually("no process is left", || marked(&marker).is_empty());
    let logs = env.ado(["logs", "victim", "--output", "json"]);
    let types: Vec<_> = logs.json_lines().iter().map(|line| line["type"].as_str().unwrap_or("").to_owned()).collect();
    for expected in ["worker_lost", "requeued", "completed"] {
        assert!(types.iter().any(|found| found == expected), "{expected} in {types:?}");
    }
    assert_eq!(env.ado(["logs", "victim", "--final"]).stdout(), "again 2\n");
}

#[test]
fn cancelling_leaves_no_process() {
    let env = TestEnv::new();
    let marker = format!("ADO_TEST_MARKER=cancel-{}", std::process::id());
    let text = "setsid sh -c 'trap \"\" TERM; sleep 600 & sleep 600' & (sleep 600 &) ; echo begun; sleep 600";
    let mut run = Viewer::start(&env, "run", &["run", "--env", &marker, "--name", "forker", text]);
    eventually("the task runs", || run.shown() == b"begun\n" && marked(&marker).len() >= 4);
    env.ado(["cancel", "forker"]).assert_code(0);
    assert_eq!(run.wait(), Some(130), "{}", run.complaints());
    assert!(marked(&marker).is_empty(), "when the task has ended nothing of it is left");
}

#[test]
fn a_hundred_tasks_at_once_are_exact_and_memory_is_bounded() {
    /// Most that controller and worker may each hold, KiB: an unoptimised build with 100 attempts under way.
    const BOUND: u64 = 512 * 1024;
    const TASKS: usize = 100;
    let env = TestEnv::new();
    env.command(["up"]).env("ADO_WORKER_SLOTS", "100").status().expect("ado starts");
    let megabyte = numbered(145_000); // 1,003,894 bytes
    let mut viewers: Vec<_> =
        (0..TASKS).map(|number| Viewer::start(&env, &format!("v{number}"), &["run", "seq 1 145000"])).collect();
    for viewer in &mut viewers {
        assert_eq!(viewer.wait(), Some(0), "{}", viewer.complaints());
        assert!(viewer.shown() == megabyte.as_bytes(), "{}", viewer.complaints());
    }
    let (controller, worker) = (peak_memory(pid(&env, "controller")), peak_memory(pid(&env, "worker")));
    eprintln!("peak memory: controller {controller} KiB, worker {worker} KiB");
    assert!(controller < BOUND && worker < BOUND, "controller {controller} KiB, worker {worker} KiB");
}

#[test]
fn garbage_on_the_udp_port_does_no_harm() {
    let env = TestEnv::new();
    env.ado(["up"]).assert_code(0);
    let endpoint = fs::read(env.home().join("controller/endpoint.json")).expect("an endpoint");
    let endpoint: serde_json::Value = serde_json::from_slice(&endpoint).expect("JSON");
    let address = endpoint["quic"][0].as_str().expect("an address");
    let controller = pid(&env, "controller");
    let before = peak_memory(controller);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for number in 0..20_000 {
        let mut datagram = [0u8; 1200];
        for bytes in datagram.chunks_mut(8) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.copy_from_slice(&seed.to_le_bytes());
        }
        // Every other one looks like the first packet of a QUIC connection.
        if number % 2 == 0 {
            datagram[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
        }
        socket.send_to(&datagram, address).expect("it is sent");
    }
    env.ado(["run", "echo still here"]).assert_code(0);
    assert_eq!(pid(&env, "controller"), controller, "the same process");
    let grown = peak_memory(controller).saturating_sub(before);
    assert!(grown < 64 * 1024, "strangers cost {grown} KiB");
}

#[test]
fn a_full_disk_is_an_error_and_loses_nothing() {
    if !full() || !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: needs root and ADO_TEST=full, to make a small file system");
        return;
    }
    let env = TestEnv::new();
    let _disk = SmallDisk::mount(env.home(), "24m");
    env.ado(["run", "--name", "before", "echo kept"]).assert_code(0);
    let filler = env.home().join("filler");
    let mut file = File::create(&filler).expect("a file");
    while file.write_all(&[7; 65536]).is_ok() {}
    drop(file);
    // SQLite's own files have some room left: submit until there is none.
    let mut refused = None;
    for _ in 0..200 {
        let ran = env.ado(["run", "--detach", &format!("true {}", "x".repeat(60_000))]);
        if !ran.stderr().is_empty() {
            refused = Some(ran.stderr().to_owned());
            break;
        }
    }
    let refused = refused.expect("a full disk refuses sooner or later");
    assert!(refused.contains("out of space"), "{refused}");
    fs::remove_file(filler).expect("the filler goes");
    let mut last = None;
    eventually("it works again", || {
        let ran = env.ado(["run", "echo after"]);
        last = Some(ran.stderr().to_owned());
        ran.stdout() == "after\n"
    });
    assert_eq!(env.ado(["logs", "before"]).stdout(), "kept\n");
}

struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Self {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at)
            .stdin(Stdio::null())
            .status()
            .expect("mount runs");
        assert!(mounted.success());
        Self(at.into())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the processes on it are stopped after this.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
