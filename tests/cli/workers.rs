//! Workers of a mesh, as operators run them: stopped, killed, cut off, told to leave.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::metrics_page::{Samples, scrape};
use crate::processes::{is_frozen, marked};
use crate::promises::{eventually, peak_memory};
use crate::support::{Ran, TestEnv};

/// Milliseconds: short, so that leases end within a test.
const HEARTBEAT: &str = "200";
const LOST_AFTER: Duration = Duration::from_secs(2);

/// A process of the mesh. Killed at the end, also when it is stopped.
pub(crate) struct Process {
    child: Child,
    http: u16,
    pub(crate) log: PathBuf,
}

impl Process {
    fn start(mut command: Command, http: u16, log: PathBuf) -> Self {
        let file = File::options().create(true).append(true).open(&log).expect("a log");
        let child = command.stderr(file).spawn().expect("ado starts");
        Self { child, http, log }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("it runs");
    }

    pub(crate) fn end(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().expect("it is ours");
            status.is_some()
        });
        status.expect("it has ended")
    }

    /// The status code of a path; 0 when nobody answers.
    fn get(&self, path: &str) -> u16 {
        let answer = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.http))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = answer().unwrap_or_default();
        answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    fn counted(&self) -> Samples {
        scrape(([127, 0, 0, 1], self.http).into())
    }

    fn is_ready(&self) -> bool {
        self.get("/ready") == 200
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- {}\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// A controller of its own and a user of it, elsewhere.
pub(crate) struct Mesh {
    controller: Process,
    quic: u16,
    lost_after: Duration,
    /// In the environment of all agents, and in nobody else's.
    marker: String,
    pub(crate) env: TestEnv,
}

impl Mesh {
    pub(crate) fn start(name: &str) -> Self {
        Self::with(name, LOST_AFTER)
    }

    fn with(name: &str, lost_after: Duration) -> Self {
        let env = TestEnv::new();
        let marker = format!("ADO_TEST_MARKER={name}-{}", std::process::id());
        let (quic, http) = (free_udp(), free_tcp());
        let mut controller = controller(&env, quic, http, lost_after);
        let mut greeting = String::new();
        // Another test may have taken the port: then it says nothing and ends.
        let stdout = controller.child.stdout.take().expect("it is piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut greeting).expect("its output");
        let greeting: Value = serde_json::from_str(&greeting).expect("a line of JSON");
        env.ado(["join", greeting["join"].as_str().expect("a join string")]).assert_code(0);
        Self { controller, quic, lost_after, marker, env }
    }

    /// Another start of it, where it was.
    fn restart_controller(&mut self) {
        self.controller = controller(&self.env, self.quic, free_tcp(), self.lost_after);
    }

    fn join_string(&self) -> String {
        let token = self.ado(&["token", "create", "--role", "worker"]);
        token.assert_code(0);
        token.stdout().trim().to_owned()
    }

    fn work(&self, name: &str) -> PathBuf {
        self.env.home().join(name)
    }

    /// The command that starts a worker; it joins if there is a join string.
    fn worker_command(&self, name: &str, join: Option<&str>, http: u16, more: &[&str]) -> Command {
        let mut command = self.env.command(["worker", "--name", name]);
        command.arg("--dir").arg(self.work(name)).args(["--http", &format!("127.0.0.1:{http}")]).args(more);
        // Nothing that looks like this reaches an agent.
        command.env("ADO_API_KEY", "secret-of-the-worker").env("SOME_TOKEN", "secret-of-the-worker");
        if let Some(join) = join {
            command.args(["--join", join]);
        }
        command.stdout(Stdio::null());
        command
    }

    pub(crate) fn worker(&self, name: &str, more: &[&str]) -> Process {
        let worker = self.rejoin(name, Some(&self.join_string()), more);
        eventually("the worker is ready", || worker.is_ready());
        worker
    }

    fn rejoin(&self, name: &str, join: Option<&str>, more: &[&str]) -> Process {
        let http = free_tcp();
        Process::start(self.worker_command(name, join, http, more), http, self.env.work().join(format!("{name}.log")))
    }

    pub(crate) fn ado(&self, args: &[&str]) -> Ran {
        self.env.ado(["--context", "remote"].iter().chain(args))
    }

    pub(crate) fn submit(&self, name: &str, text: &str) {
        self.ado(&["run", "--detach", "--name", name, "--env", &self.marker, text]).assert_code(0);
    }

    /// Waits for a task's end: its exit code and all it printed.
    pub(crate) fn output(&self, name: &str) -> (Option<i32>, String) {
        let (code, out, _) = self.env.start(["--context", "remote", "attach", name, "--from", "start"]).end();
        (code, out)
    }

    /// The whole log, one record an element.
    pub(crate) fn log(&self, name: &str) -> Vec<Value> {
        self.ado(&["logs", name, "--output", "json"]).json_lines()
    }

    /// Of each record of a type, the value of a key.
    pub(crate) fn told(&self, name: &str, kind: &str, key: &str) -> Vec<Value> {
        self.log(name).iter().filter(|record| record["type"] == kind).map(|record| record[key].clone()).collect()
    }

    pub(crate) fn agents(&self) -> Vec<i32> {
        marked(&self.marker)
    }

    fn are_frozen(&self) -> bool {
        let agents = self.agents();
        !agents.is_empty() && agents.into_iter().all(is_frozen)
    }
}

fn controller(env: &TestEnv, quic: u16, http: u16, lost_after: Duration) -> Process {
    let mut command = env.command(["controller", "--output", "json"]);
    command.arg("--dir").arg(env.home().join("mesh"));
    command.args(["--listen", &format!("127.0.0.1:{quic}"), "--http", &format!("127.0.0.1:{http}")]);
    command.env("ADO_HEARTBEAT_INTERVAL", HEARTBEAT).env("ADO_HEARTBEAT_TIMEOUT", lost_after.as_millis().to_string());
    Process::start(command, http, env.work().join("mesh.log"))
}

/// Whether this machine lets us limit memory; says loudly if not.
pub(crate) fn can_limit_memory() -> bool {
    use ado::worker::containment;
    let able = containment::enforceable(containment::choose(None)).memory.is_some();
    if !able {
        eprintln!("SKIPPED: no limit of memory can be enforced here");
    }
    able
}

fn free_udp() -> u16 {
    UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

fn free_tcp() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port()
}

fn lines(file: &Path) -> Vec<String> {
    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn pause(duration: Duration) {
    #[expect(clippy::disallowed_methods, reason = "what is tested is what time does to other processes")]
    std::thread::sleep(duration);
}

#[test]
fn a_worker_that_was_stopped_is_fenced() {
    // Long enough to be given a task before it is known to be silent.
    let mesh = Mesh::with("zombie", 2 * LOST_AFTER);
    let zombie = mesh.worker("zombie", &["--slots", "2"]);
    // What the agents do to the world, in order.
    let effects = mesh.env.work().join("effects");
    let act = format!("echo $ADO_EPOCH | tee -a {}", effects.display());
    mesh.submit(
        "seen",
        &format!("while test $ADO_EPOCH = 1; do {act}; sleep 0.01; done; {act}; echo attempt $ADO_ATTEMPT"),
    );
    eventually("it runs", || lines(&effects).len() > 10);
    zombie.signal(Signal::SIGSTOP);
    // Given to the stopped worker, which hears of it when it is too late.
    let late = mesh.env.work().join("late");
    mesh.submit("unseen", &format!("echo $ADO_EPOCH >> {}", late.display()));
    eventually("it is assigned", || mesh.told("unseen", "assigned", "worker") == ["zombie"]);
    eventually("the guard freezes its agent", || mesh.are_frozen());
    let frozen_at = lines(&effects).len();

    let other = mesh.worker("other", &["--slots", "2"]);
    let (code, shown) = mesh.output("seen");
    assert_eq!(code, Some(0));
    assert_eq!(mesh.output("unseen").0, Some(0));
    let done = lines(&effects);
    assert_eq!(done[frozen_at..], ["2"], "the frozen one did nothing more, and before the other one began");
    assert!(shown.ends_with("2\nattempt 1\n"), "nothing is charged: {shown}");
    assert_eq!(mesh.told("seen", "assigned", "worker"), ["zombie", "other"]);
    assert_eq!(mesh.told("unseen", "assigned", "worker"), ["zombie", "other"]);

    let logs = [mesh.log("seen"), mesh.log("unseen")];
    assert!(!mesh.agents().is_empty(), "frozen, not dead");
    zombie.signal(Signal::SIGCONT);
    eventually("its agent is killed", || mesh.agents().is_empty());
    // Once it runs something, it has read all that was waiting for it.
    other.signal(Signal::SIGTERM);
    eventually("the other one leaves", || !other.is_ready());
    mesh.submit("last", "true");
    assert_eq!(mesh.output("last").0, Some(0));
    assert_eq!(mesh.told("last", "assigned", "worker"), ["zombie"]);
    assert_eq!([mesh.log("seen"), mesh.log("unseen")], logs, "nothing it said is recorded");
    assert_eq!(lines(&effects), done);
    assert_eq!(lines(&late), ["2"], "what came too late did not begin");
}

/// A task that counts, in its output and in a file, and what is expected of it.
struct Counting {
    effects: PathBuf,
    expected: Vec<String>,
}

impl Counting {
    fn begin(mesh: &Mesh) -> Self {
        let effects = mesh.env.work().join("effects");
        let text = format!("for i in $(seq 1 300); do echo $i; echo $i >> {}; sleep 0.01; done", effects.display());
        mesh.submit("count", &text);
        let counting = Self { effects, expected: (1..=300).map(|number| number.to_string()).collect() };
        eventually("it runs", || counting.reached() > 20);
        counting
    }

    fn reached(&self) -> usize {
        lines(&self.effects).len()
    }

    fn assert_done_by_the_first_attempt(self, mesh: &Mesh) {
        let (code, shown) = mesh.output("count");
        assert_eq!(code, Some(0));
        assert_eq!(shown.lines().collect::<Vec<_>>(), self.expected);
        assert_eq!(lines(&self.effects), self.expected);
        assert_eq!(mesh.told("count", "assigned", "epoch"), [1], "nothing was given to anybody else");
        assert!(mesh.told("count", "worker_lost", "epoch").is_empty());
    }
}

#[test]
fn a_controller_that_was_stopped_finds_everything_as_it_was() {
    let mesh = Mesh::start("outage");
    let worker = mesh.worker("worker", &[]);
    let counting = Counting::begin(&mesh);
    mesh.controller.signal(Signal::SIGSTOP);
    let begun = counting.reached();
    eventually("it goes on alone", || counting.reached() > begun + 10);
    eventually("it is frozen when its lease ends", || mesh.are_frozen());
    assert!(counting.reached() < 300);
    assert_eq!(worker.get("/health"), 200);
    pause(LOST_AFTER);
    mesh.controller.signal(Signal::SIGCONT);
    counting.assert_done_by_the_first_attempt(&mesh);
}

#[test]
fn what_is_counted_and_what_is_logged_tells_what_it_is_about() {
    let mesh = Mesh::start("counts");
    let http = free_tcp();
    let mut command = mesh.worker_command("counts", Some(&mesh.join_string()), http, &["--drain-for", "0s"]);
    command.args(["--slots", "2"]).env("ADO_LOG_FORMAT", "json");
    let mut worker = Process::start(command, http, mesh.env.work().join("counts.log"));
    eventually("the worker is ready", || worker.is_ready());
    let before = worker.counted();
    mesh.submit("short", "echo done");
    assert_eq!(mesh.output("short"), (Some(0), "done\n".into()));
    mesh.submit("long", "echo begun; sleep 600");
    eventually("it runs", || mesh.told("long", "output", "data").len() == 1);
    let running = worker.counted();
    running.grew(
        &before,
        &[
            ("ado_worker_attempts", 1.0),
            ("ado_worker_attempts_begun_total", 2.0),
            (r#"ado_worker_attempts_ended_total{how="reported"}"#, 1.0),
            ("ado_worker_connected", 0.0),
            ("ado_worker_slots", 0.0),
        ],
    );
    assert_eq!((running.get("ado_worker_connected"), running.get("ado_worker_slots")), (1.0, 2.0));
    assert!(running.get("ado_worker_sent_bytes_total") > 11.0);
    let told = mesh.controller.counted();
    assert_eq!((told.get("ado_output_bytes_total"), told.get("ado_leases")), (11.0, 1.0));

    worker.signal(Signal::SIGTERM);
    assert!(worker.end().success());
    mesh.controller.counted().grew(&told, &[(r#"ado_reassignments_total{reason="handed_back"}"#, 1.0)]);
    let log: Vec<Value> = lines(&worker.log).iter().map(|line| serde_json::from_str(line).expect(line)).collect();
    let line = log.iter().find(|line| line["message"] == "handed back").expect("it is said");
    let (about, ids) = (&line["spans"], mesh.ado(&["list", "--all", "--output", "json"]).stdout().to_owned());
    assert_eq!((&about[0]["worker"], &about[1]["epoch"]), (&"counts".into(), &"1".into()), "{line}");
    assert!(ids.contains(about[1]["task"].as_str().expect("an id")), "{line} {ids}");
}

#[test]
fn a_worker_that_comes_back_removes_the_limits_of_the_dead() {
    let mesh = Mesh::start("limited");
    if !can_limit_memory() {
        return;
    }
    let mut worker = mesh.worker("limited", &[]);
    let args = ["run", "--detach", "--name", "held", "--memory", "64Mi", "--pids", "20", "--env", &mesh.marker];
    mesh.ado(&[&args[..], &["echo begun; test $ADO_EPOCH != 1 || sleep 600"]].concat()).assert_code(0);
    eventually("it runs", || mesh.told("held", "output", "data").len() == 1);
    let guards = mesh.work("limited").join("guards");
    let (guard, note) = fs::read_dir(&guards)
        .expect("guards")
        .map(|entry| entry.expect("an entry"))
        .map(|entry| {
            (entry.file_name().into_string().expect("a pid"), fs::read_to_string(entry.path()).expect("a note"))
        })
        .next()
        .expect("one guard");
    let groups: Vec<_> = note.lines().next().expect("its groups").split('\t').map(PathBuf::from).collect();
    assert!(groups.len() > 1 || groups[0].join("memory.max").exists(), "{groups:?}");
    // It is stopped first: it can do nothing about its worker's death.
    let guard = Pid::from_raw(guard.parse().expect("a pid"));
    kill(guard, Signal::SIGSTOP).expect("it runs");
    worker.signal(Signal::SIGKILL);
    worker.end();
    kill(guard, Signal::SIGKILL).expect("it is stopped");
    assert!(groups.iter().all(|group| group.exists()), "{groups:?}");
    let _again = mesh.rejoin("limited", None, &[]);
    assert_eq!(mesh.output("held").0, Some(0));
    assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
    assert_eq!(mesh.agents(), [] as [i32; 0]);
}

#[test]
fn a_machine_that_slept_goes_on() {
    let mesh = Mesh::start("sleep");
    let worker = mesh.worker("worker", &[]);
    let counting = Counting::begin(&mesh);
    worker.signal(Signal::SIGSTOP);
    mesh.controller.signal(Signal::SIGSTOP);
    eventually("the guard froze its agent", || mesh.are_frozen());
    pause(LOST_AFTER);
    // The controller wakes first. It has not listened, so it cannot tell who was silent.
    mesh.controller.signal(Signal::SIGCONT);
    pause(LOST_AFTER / 4);
    worker.signal(Signal::SIGCONT);
    counting.assert_done_by_the_first_attempt(&mesh);
}

#[test]
fn a_worker_that_leaves_finishes_what_is_short_and_hands_back_the_rest() {
    let mesh = Mesh::start("drain");
    let mut leaving = mesh.worker("leaving", &["--slots", "3", "--drain-for", "3s"]);
    let go = mesh.env.work().join("go");
    mesh.submit("short", &format!("until test -e {}; do sleep 0.01; done; echo finished", go.display()));
    mesh.submit("long", "if test $ADO_EPOCH = 1; then (setsid sleep 600 &) ; sleep 600; fi; echo attempt $ADO_ATTEMPT");
    eventually("both run", || mesh.agents().len() >= 4);
    leaving.signal(Signal::SIGTERM);
    eventually("it is not ready any more", || leaving.get("/ready") == 503);
    mesh.submit("new", "echo elsewhere");
    File::create(&go).expect("a file");
    assert_eq!(mesh.output("short"), (Some(0), "finished\n".into()));
    assert!(leaving.end().success());
    assert_eq!(mesh.agents(), [] as [i32; 0], "no process is left");
    let _other = mesh.worker("other", &[]);
    assert_eq!(mesh.output("new"), (Some(0), "elsewhere\n".into()));
    assert_eq!(mesh.output("long"), (Some(0), "attempt 1\n".into()), "nothing is charged");
    assert_eq!(mesh.told("new", "assigned", "worker"), ["other"]);
    assert_eq!(mesh.told("long", "assigned", "worker"), ["leaving", "other"]);
    assert_eq!(mesh.told("short", "assigned", "epoch"), [1]);
}

#[test]
fn a_guard_that_is_killed_costs_an_attempt() {
    let mesh = Mesh::start("guard");
    let _worker = mesh.worker("worker", &[]);
    mesh.submit(
        "victim",
        "if test $ADO_EPOCH = 1; then echo first; (setsid sh -c 'sleep 600 & sleep 600' &); sleep 600; fi
         echo attempt $ADO_ATTEMPT",
    );
    eventually("all of it runs", || mesh.agents().len() >= 5);
    let first = mesh.agents();
    let guards = fs::read_dir(mesh.work("worker").join("guards")).expect("its guards").flatten();
    let guards: Vec<i32> = guards.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    assert_eq!(guards.len(), 1);
    kill(Pid::from_raw(guards[0]), Signal::SIGKILL).expect("it runs");
    assert_eq!(mesh.output("victim"), (Some(0), "first\nattempt 2\n".into()));
    assert!(mesh.agents().iter().all(|pid| !first.contains(pid)), "the first one's processes are gone");
    let log = mesh.log("victim");
    assert_eq!(log.iter().filter(|record| record["type"] == "requeued").count(), 1, "{log:?}");
}

#[test]
fn a_worker_waits_for_its_controller_and_keeps_its_secrets() {
    let mut mesh = Mesh::start("waits");
    let mut worker = mesh.worker("worker", &[]);
    assert_eq!((worker.get("/health"), mesh.controller.get("/health"), mesh.controller.get("/ready")), (200, 200, 200));
    worker.signal(Signal::SIGTERM);
    assert!(worker.end().success());
    mesh.controller.signal(Signal::SIGTERM);
    assert!(mesh.controller.end().success());

    let worker = mesh.rejoin("worker", None, &[]);
    eventually("it lives", || worker.get("/health") == 200);
    assert_eq!(worker.get("/ready"), 503, "nobody has accepted it");
    mesh.restart_controller();
    eventually("it finds the controller", || worker.is_ready());
    mesh.submit(
        "environment",
        "env; ls -l /proc/self/fd | grep -v ' /proc/'; cat /proc/$PPID/environ | tr '\\0' '\\n'",
    );
    let (code, shown) = mesh.output("environment");
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("ADO_TASK_ID=") && !shown.contains("secret-of-the-worker"), "{shown}");
}

#[test]
fn a_flood_waits_for_a_controller_that_is_away() {
    const SPOOL: u64 = 8 << 20;
    /// KiB: spool, windows, and what an unoptimised program holds anyway.
    const BOUND: u64 = 128 * 1024;
    const BLOCKS: usize = 800;
    let mesh = Mesh::with("flood", Duration::from_secs(60));
    let worker = mesh.worker("worker", &["--spool-limit", &SPOOL.to_string()]);
    // 50 MiB of which no part is like another.
    let file = mesh.env.work().join("data");
    let mut expected = Vec::with_capacity(BLOCKS * 65536);
    for block in 0..BLOCKS {
        let mut bytes = vec![b'x'; 65536];
        bytes[..8].copy_from_slice(&block.to_be_bytes());
        expected.extend(bytes);
    }
    fs::write(&file, &expected).expect("a file");
    let go = mesh.env.work().join("go");
    let written = mesh.env.work().join("written");
    let text = "until test -e {go}; do sleep 0.01; done; cat {data}; touch {written}"
        .replace("{go}", &go.display().to_string())
        .replace("{data}", &file.display().to_string())
        .replace("{written}", &written.display().to_string());
    mesh.submit("flood", &text);
    eventually("it runs", || !mesh.told("flood", "started", "pid").is_empty());
    mesh.controller.signal(Signal::SIGSTOP);
    File::create(&go).expect("a file");
    let mut spooled = 0;
    eventually("the agent waits", || {
        let before = std::mem::replace(&mut spooled, held_on_disk(worker.pid()));
        pause(Duration::from_millis(300));
        spooled > SPOOL / 2 && spooled == before
    });
    assert!(spooled <= SPOOL, "the spool holds {spooled} bytes");
    assert!(!written.exists());
    let peak = peak_memory(worker.pid());
    eprintln!("peak memory of the worker {peak} KiB, spool {spooled} bytes");
    assert!(peak < BOUND, "the worker held {peak} KiB");
    mesh.controller.signal(Signal::SIGCONT);
    let shown = mesh.env.work().join("shown");
    let mut attach = mesh.env.command(["--context", "remote", "attach", "flood", "--from", "start"]);
    let status = attach.stdout(File::create(&shown).expect("a file")).status().expect("ado starts");
    assert_eq!(status.code(), Some(0));
    assert!(fs::read(&shown).expect("its output") == expected, "every byte, once");
    eventually("the disk is given back", || held_on_disk(worker.pid()) == 0);
}

/// Bytes of the files without a name that a process has open.
fn held_on_disk(pid: Pid) -> u64 {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").flatten();
    let deleted = entries
        .filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().ends_with(" (deleted)")));
    deleted.filter_map(|entry| Some(fs::metadata(entry.path()).ok()?.len())).sum()
}
