//! Attempts and guards with real processes: nothing is lost, nothing is left behind. Each test runs under every grade of
//! containment this machine has.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests panic as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ado::env::Env;
use ado::worker::attempt::{Attempt, Delivery, Ended, Place, base_environment};
use ado::worker::checkpoints::Archive;
use ado::worker::containment;
use ado::worker::course::{GiveUp, Orders};
use ado::worker::guard::BootTime;
use ado::worker::guard::protocol::{self, FromGuard, Reason, Start, ToGuard};
use ado::worker::inside::Sockets;
use ado::worker::outbox::{Outbox, SharedOutbox};
use ado::worker::programs::Programs;
use ado::worker::snapshot::{Limits, Vault, VaultError};
use ado::worker::spool::{MEMORY_LIMIT, Spool};
use ado_proto::record::{Body, Checkpointed, Desired, MAX_CHECKPOINT, Progress, Stream};
use ado_proto::session::Assignment;
use ado_proto::spec::{Containment, Exit, Input, Limit, Resource, Resources, TaskSpec};
use ado_proto::{BlobId, Epoch, Namespace, Seq, Snapshot, TaskId};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
const MARK: &str = "ADO_TEST_MARK";

/// A worker's place, and a mark by which all processes of its agents are found.
struct Rig {
    dir: tempfile::TempDir,
    place: Place,
    env: Env,
    mark: String,
    vault: Arc<Memory>,
}

/// Keeps blobs as long as the test lives.
#[derive(Debug, Default)]
struct Memory {
    blobs: Mutex<BTreeMap<BlobId, Bytes>>,
    /// Fails so often before it keeps one.
    failures: AtomicU32,
}

#[async_trait::async_trait]
impl Vault for Memory {
    async fn put(&self, id: BlobId, bytes: Bytes) -> Result<(), VaultError> {
        if self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(VaultError::Broken("not now".into()));
        }
        self.blobs.lock().unwrap().insert(id, bytes);
        Ok(())
    }

    async fn get(&self, id: BlobId) -> Result<Bytes, VaultError> {
        self.blobs.lock().unwrap().get(&id).cloned().ok_or(VaultError::Gone(id))
    }
}

/// The grades to be had here.
fn grades() -> Vec<Containment> {
    let mut grades = vec![Containment::Subreaper];
    if containment::choose(None) == Containment::Cgroup {
        grades.push(Containment::Cgroup);
    } else {
        eprintln!("SKIPPED: no control group of version 2 can be made here");
    }
    grades
}

impl Rig {
    fn new(containment: Containment) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for part in ["guards", "tasks"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        let env = Env::system();
        let place = Place {
            executable: env!("CARGO_BIN_EXE_ado").into(),
            guards: dir.path().join("guards"),
            tasks: dir.path().join("tasks"),
            sockets: Some(Sockets::prepare(dir.path(), &["/tmp".into()], std::process::id().into()).unwrap()),
            bin: Some(Path::new(env!("CARGO_BIN_EXE_ado")).parent().unwrap().into()),
            containment,
            archive: Archive::new(Limits::default(), dir.path().join("snapshots")),
            environment: base_environment(std::env::vars()),
            programs: Programs::default(),
        };
        Self { dir, place, mark: env.uuid().to_string(), env, vault: Arc::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn shell(&self, script: &str) -> TaskSpec {
        self.spec(Input::Text(script.into()))
    }

    fn spec(&self, input: Input) -> TaskSpec {
        let mut spec = TaskSpec::new("shell", input);
        spec.env.insert(MARK.into(), self.mark.clone());
        spec.env.insert("SELF".into(), std::env::current_exe().unwrap().display().to_string());
        spec.env.insert("DIR".into(), self.dir.path().display().to_string());
        spec
    }

    fn marked(&self) -> Vec<u32> {
        let mark = format!("{MARK}={}", self.mark);
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(|pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        })
        .collect()
    }

    /// The control groups of the agents that run.
    fn groups(&self) -> Vec<PathBuf> {
        let notes = names(&self.place.guards).into_iter().map(|name| self.place.guards.join(name));
        let text = |note: PathBuf| fs::read_to_string(note).unwrap_or_default();
        let first = |text: String| text.lines().next().unwrap_or_default().to_owned();
        notes.map(text).map(first).flat_map(|line| groups_of(&line)).collect()
    }

    /// Nothing of its agents and guards is left, not even a control group.
    fn assert_clean(&self) {
        assert_eq!(self.marked(), [] as [u32; 0], "processes are left");
        assert_eq!(names(&self.place.guards), [] as [String; 0], "locks are left");
        assert_eq!(names(&self.place.tasks), [] as [String; 0], "workspaces are left");
        assert_eq!(names(&self.path("sockets")), [] as [String; 0], "sockets are left");
        let staged = |path: &Path| fs::read_dir(path).is_ok_and(|files| files.count() > 0);
        let folders = fs::read_dir(self.path("snapshots")).into_iter().flatten().map(|entry| entry.unwrap().path());
        assert!(folders.into_iter().all(|folder| !staged(&folder)), "packs are left");
    }

    fn run(&self, spec: TaskSpec) -> Run {
        self.run_with(spec, Spool::new(self.path("spool"), MEMORY_LIMIT, 1 << 28), true)
    }

    fn run_with(&self, spec: TaskSpec, spool: Spool, deliver: bool) -> Run {
        self.run_from(spec, spool, deliver, None)
    }

    fn run_from(&self, spec: TaskSpec, spool: Spool, deliver: bool, checkpoint: Option<String>) -> Run {
        self.run_on(spec, spool, deliver, checkpoint, None)
    }

    /// Goes on from what somebody kept.
    fn run_after(&self, spec: TaskSpec, made: &Checkpointed) -> Run {
        let spool = Spool::new(self.path("spool"), MEMORY_LIMIT, 1 << 28);
        self.run_on(spec, spool, true, Some(made.data.clone()), made.snapshot)
    }

    fn run_on(
        &self,
        spec: TaskSpec,
        spool: Spool,
        deliver: bool,
        checkpoint: Option<String>,
        snapshot: Option<Snapshot>,
    ) -> Run {
        let assignment = Assignment {
            task: TaskId(self.env.uuid()),
            epoch: Epoch(7),
            namespace: Namespace::default(),
            name: None,
            group: None,
            attempt: 1,
            spec,
            checkpoint,
            snapshot,
            lease_ms: 0,
            desired: Desired::Running,
            generation: 0,
            total_left_ms: None,
            secrets: Vec::new(),
            answers: Vec::new(),
        };
        let orders = watch::Sender::new(Orders::new(&assignment, BootTime::now().after(PATIENCE)));
        let answers = watch::channel(Vec::new()).1;
        let (place, env) = (self.place.clone(), self.env.clone());
        let attempt = Attempt { assignment, orders: orders.clone(), answers, place, vault: self.vault.clone(), env };
        let log = watch::Sender::new(Vec::new());
        let open = watch::Sender::new(if deliver { Door::Open } else { Door::Shut });
        let (to, door) = (log.clone(), open.subscribe());
        let ended = tokio::spawn(async move {
            let outbox = Arc::new(SharedOutbox::new(Outbox::new(Epoch(7), spool)));
            attempt.run(&outbox, controller(outbox.clone(), to, door)).await
        });
        Run { orders, log: log.subscribe(), open, ended }
    }
}

fn groups_of(line: &str) -> Vec<PathBuf> {
    line.split('\t').filter(|group| !group.is_empty()).map(PathBuf::from).collect()
}

/// The grades under which such a limit can be enforced here.
fn limiting(kind: Resource) -> Vec<Containment> {
    let able = |grade: &Containment| {
        let has = containment::enforceable(*grade).kinds().into_iter().any(|(has, most)| has == kind && most.is_some());
        if !has {
            eprintln!("SKIPPED: no limit of {} can be enforced here under {}", kind.as_str(), grade.as_str());
        }
        has
    };
    grades().into_iter().filter(able).collect()
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Door {
    Shut,
    Open,
    Stale,
}

/// A controller as small as can be: it commits and acknowledges every frame, and checks what it gets.
async fn controller(
    outbox: Arc<SharedOutbox>,
    log: watch::Sender<Vec<Body>>,
    mut door: watch::Receiver<Door>,
) -> Delivery {
    if *door.wait_for(|door| *door != Door::Shut).await.unwrap() == Door::Stale {
        return Delivery::Stale;
    }
    outbox.connected(Seq(0)).unwrap();
    loop {
        let frame = tokio::select! {
            biased;
            _ = door.wait_for(|door| *door == Door::Stale) => return Delivery::Stale,
            frame = outbox.next_frame() => frame.unwrap(),
        };
        let Some(frame) = frame else { return Delivery::Complete };
        let mut seq = log.borrow().len() as u64;
        for record in frame.decode().unwrap() {
            assert_eq!(record.origin, ado_proto::Origin::Worker { epoch: Epoch(7), seq: Seq(seq) });
            seq += 1;
            log.send_modify(|log| log.push(record.body));
        }
        outbox.acknowledged(Seq(seq)).unwrap();
    }
}

struct Run {
    orders: watch::Sender<Orders>,
    log: watch::Receiver<Vec<Body>>,
    open: watch::Sender<Door>,
    ended: JoinHandle<Ended>,
}

impl Run {
    fn want(&self, desired: Desired, force: bool) {
        self.orders.send_modify(|orders| {
            *orders = Orders { desired, force, generation: orders.generation + 1, ..*orders };
        });
    }

    async fn until(&mut self, what: &str, is_so: impl Fn(&[Body]) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, self.log.wait_for(|log| is_so(log))).await;
        waited.unwrap_or_else(|_| panic!("no {what}")).unwrap();
    }

    async fn until_output(&mut self, text: &str) {
        self.until(text, |log| String::from_utf8_lossy(&output(log, Stream::Stdout)).contains(text)).await;
    }

    async fn end(self) -> (Ended, Vec<Body>) {
        let ended = tokio::time::timeout(PATIENCE, self.ended).await.expect("the attempt ends").unwrap();
        let log = self.log.borrow().clone();
        (ended, log)
    }

    /// Runs to the end: its log must be whole.
    async fn exit(self) -> (Exit, Vec<Body>) {
        let (ended, log) = self.end().await;
        assert_eq!(ended, Ended::Reported);
        let Some(Body::Exited(exited)) = log.last() else { panic!("no end: {log:?}") };
        (exited.exit.clone(), log)
    }
}

/// What was written to a stream; its positions must be dense.
fn output(log: &[Body], stream: Stream) -> Vec<u8> {
    let mut all = Vec::new();
    for body in log {
        if let Body::Output(output) = body
            && output.stream == stream
        {
            assert_eq!(output.position, all.len() as u64);
            all.extend_from_slice(&output.data);
        }
    }
    all
}

fn stdout(log: &[Body]) -> String {
    String::from_utf8(output(log, Stream::Stdout)).unwrap()
}

/// Looks until it is so. For what nobody announces: other processes.
async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let look = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn what_an_agent_writes_and_how_it_ends_is_reported() {
    for grade in grades() {
        let rig = Rig::new(grade);
        let mut spec = rig.shell("pwd; echo $ADO_EPOCH-$ADO_ATTEMPT-$ADO_GROUP_COUNT >&2; printf x; exit 7");
        spec.env.insert("ADO_EPOCH".into(), "overridden".into());
        let (exit, log) = rig.run(spec).exit().await;
        assert_eq!(exit, Exit::Code(7));
        assert!(
            matches!(&log[0], Body::Started(started) if started.containment == grade && started.pid > 0),
            "{log:?}"
        );
        let text = stdout(&log);
        assert!(text.starts_with(&format!("{}/", rig.place.tasks.display())) && text.ends_with("\nx"), "{text}");
        assert_eq!(output(&log, Stream::Stderr), b"7-1-1\n");
        rig.assert_clean();

        let (exit, _) = rig.run(rig.shell("kill -KILL $$")).exit().await;
        assert_eq!(exit, Exit::Signal(9));
        let (exit, log) = rig.run(TaskSpec::new("noop", Input::Text(String::new()))).exit().await;
        assert_eq!((exit, log.len()), (Exit::Code(0), 2));
        rig.assert_clean();
    }
}

#[tokio::test]
async fn an_agent_starts_with_nothing_of_ours() {
    for grade in grades() {
        let rig = Rig::new(grade);
        let (_, log) = rig.run(rig.spec(Input::Argv(vec!["ls".into(), "/proc/self/fd".into()]))).exit().await;
        assert_eq!(stdout(&log), "0\n1\n2\n3\n", "the last is the directory it reads");
        let script = "readlink /proc/self/fd/0; grep -E 'Sig(Blk|Ign)' /proc/self/status; \
                      env | cut -d= -f1 | grep -c -E '^(CARGO|RUST)'";
        let (_, log) = rig.run(rig.shell(script)).exit().await;
        let text = stdout(&log);
        assert!(text.starts_with("/dev/null\n"), "{text}");
        let signals = text.lines().filter_map(|line| u64::from_str_radix(line.strip_prefix("Sig")?.get(5..)?, 16).ok());
        let signals: Vec<u64> = signals.collect();
        assert_eq!(signals.len(), 2, "{text}");
        // The C library keeps 32 and 33 to itself: they are as whoever started the tests left them.
        assert!(signals.iter().all(|set| set & !(0b11 << 31) == 0), "{text}");
        assert!(text.ends_with("\n0\n"), "{text}");
    }
}

#[tokio::test]
async fn what_cannot_start_is_permanent_or_not() {
    let rig = Rig::new(Containment::Subreaper);
    let permanent =
        |exit: &Exit, part: &str| matches!(exit, Exit::NotStarted { error, permanent: true } if error.contains(part));
    let (exit, log) = rig.run(rig.spec(Input::Argv(vec!["no-such-program".into()]))).exit().await;
    assert!(permanent(&exit, "no-such-program"), "{exit:?}");
    assert_eq!(log.len(), 1, "{log:?}");
    for cwd in ["/no/such/directory", "/dev/null"] {
        let mut spec = rig.shell("true");
        spec.cwd = Some(cwd.into());
        let (exit, _) = rig.run(spec).exit().await;
        assert!(permanent(&exit, cwd), "{exit:?}");
    }
    let (exit, _) = rig.run(TaskSpec::new("nobody", Input::Text("x".into()))).exit().await;
    assert!(permanent(&exit, "nobody"), "{exit:?}");
    let mut broken = Rig::new(Containment::Subreaper);
    broken.place.executable = "/no/such/ado".into();
    let (exit, _) = broken.run(broken.shell("true")).exit().await;
    assert!(matches!(exit, Exit::NotStarted { permanent: false, .. }), "{exit:?}");
    rig.assert_clean();
}

#[tokio::test]
async fn nothing_is_left_behind() {
    let scripts = [
        ("a daemon", "(setsid sh -c 'sleep 1000 & sleep 1000' >/dev/null 2>&1 &); exit 3"),
        ("one that holds the pipes", "setsid sleep 1000 & exit 3"),
        ("one that ignores signals", "sh -c 'trap \"\" TERM HUP INT; sleep 1000; sleep 1000' & exit 3"),
        ("a stopped one", "sleep 1000 & kill -STOP $!; exit 3"),
        (
            "many sessions",
            "for i in 1 2 3 4 5 6 7 8 9; do setsid setsid sh -c 'sleep 1000 & sleep 1000' & done; exit 3",
        ),
    ];
    for grade in grades() {
        let rig = Rig::new(grade);
        for (what, script) in scripts {
            let (exit, _) = rig.run(rig.shell(script)).exit().await;
            assert_eq!(exit, Exit::Code(3), "{what}");
            rig.assert_clean();
        }
    }
}

#[tokio::test]
async fn a_fork_storm_is_ended() {
    // Each generation forks two in new sessions and goes on; bounded by its depth.
    let storm =
        "storm() { [ $1 -gt 0 ] && { setsid sh \"$0\" $(($1-1)) & sh \"$0\" $(($1-1)) & }; sleep 1000; }; storm $1";
    for grade in grades() {
        let rig = Rig::new(grade);
        fs::write(rig.path("storm"), storm).unwrap();
        let run = rig.run(rig.shell("sh $DIR/storm 7 & echo on; wait"));
        eventually("a storm", || rig.marked().len() > 50).await;
        run.want(Desired::Cancelled, true);
        let (exit, _) = run.exit().await;
        assert_eq!(exit, Exit::Cancelled);
        rig.assert_clean();
    }
}

#[tokio::test]
async fn a_pause_freezes_all_and_a_resume_leaves_the_stopped_stopped() {
    let script = "sleep 1000 & stopped=$!; kill -STOP $stopped; echo $stopped > $DIR/stopped; \
                  (setsid sh -c 'while :; do echo x >> $DIR/daemon; done' &); \
                  while :; do echo x >> $DIR/main; done";
    for grade in grades() {
        let rig = Rig::new(grade);
        let size = |name: &str| fs::metadata(rig.path(name)).map_or(0, |found| found.len());
        let mut run = rig.run(rig.shell(script));
        eventually("work", || size("main") > 0 && size("daemon") > 0).await;
        run.want(Desired::Paused, false);
        run.until("pause", |log| matches!(log.last(), Some(Body::Paused(paused)) if paused.generation == 1)).await;
        let before = (size("main"), size("daemon"));
        // Long enough for thousands of lines.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!((size("main"), size("daemon")), before, "{grade:?}");

        run.want(Desired::Running, false);
        run.until("resume", |log| matches!(log.last(), Some(Body::Resumed(resumed)) if resumed.generation == 2)).await;
        eventually("work again", || size("main") > before.0 && size("daemon") > before.1).await;
        let stopped = fs::read_to_string(rig.path("stopped")).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", stopped.trim())).unwrap();
        assert!(status.contains("State:\tT"), "{status}");
        run.want(Desired::Paused, false);
        run.want(Desired::Cancelled, false);
        assert_eq!(run.exit().await.0, Exit::Cancelled, "it was asked, and ended");
        rig.assert_clean();
    }
}

#[tokio::test]
async fn a_stale_epoch_is_killed_and_silent() {
    for grade in grades() {
        let rig = Rig::new(grade);
        let mut run = rig.run(rig.shell("trap '' TERM; echo on; while :; do echo more; done"));
        run.until_output("on").await;
        run.open.send_replace(Door::Stale);
        let (ended, log) = run.end().await;
        assert_eq!(ended, Ended::Discarded);
        assert!(!log.iter().any(|body| matches!(body, Body::Exited(_))));
        rig.assert_clean();
    }
}

#[tokio::test]
async fn an_attempt_is_handed_back_with_its_output_and_without_an_end() {
    let rig = Rig::new(Containment::Subreaper);
    let mut run = rig.run(rig.shell("echo on; sleep 1000"));
    run.until_output("on").await;
    run.orders.send_if_modified(|orders| orders.give_up(GiveUp::HandBack));
    let (ended, log) = run.end().await;
    assert_eq!(ended, Ended::HandedBack);
    assert!(!log.iter().any(|body| matches!(body, Body::Exited(_))));
    assert_eq!(stdout(&log), "on\n");
    rig.assert_clean();
}

#[tokio::test]
async fn a_flood_waits_for_the_controller_and_loses_nothing() {
    let rig = Rig::new(Containment::Subreaper);
    let spool = Spool::new(rig.path("spool"), 64 * 1024, 256 * 1024);
    let run = rig.run_with(rig.shell("seq 1 400000; echo written > $DIR/written"), spool, false);
    // Nobody acknowledges: the agent gets as far as spool and pipe hold, and waits.
    eventually("a start", || !rig.marked().is_empty()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!rig.path("written").exists());
    run.open.send_replace(Door::Open);
    let (exit, log) = run.exit().await;
    assert_eq!(exit, Exit::Code(0));
    let expected: String = (1..=400_000).map(|number| format!("{number}\n")).collect();
    assert!(stdout(&log) == expected, "output differs");
    rig.assert_clean();
}

#[tokio::test]
async fn a_guard_that_is_killed_is_a_loss_and_leaves_nothing() {
    for grade in grades() {
        let rig = Rig::new(grade);
        let mut run = rig.run(rig.shell("(setsid sh -c 'sleep 1000 & sleep 1000' &); echo on; sleep 1000"));
        run.until_output("on").await;
        eventually("all of it", || rig.marked().len() >= 4).await;
        let guard: i32 = names(&rig.place.guards)[0].parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard), nix::sys::signal::Signal::SIGKILL).unwrap();
        let (exit, _) = run.exit().await;
        assert!(matches!(exit, Exit::Lost { .. }), "{exit:?}");
        rig.assert_clean();
    }
}

#[tokio::test]
async fn who_else_holds_a_pipe_does_not_keep_the_attempt() {
    let rig = Rig::new(Containment::Subreaper);
    let mut run = rig.run(rig.shell("echo $$; until test -e $DIR/go; do sleep 0.01; done; echo end"));
    run.until_output("\n").await;
    let agent = stdout(&run.log.borrow()).trim().to_owned();
    let foreign = fs::File::options().append(true).open(format!("/proc/{agent}/fd/1")).unwrap();
    fs::write(rig.path("go"), "").unwrap();
    let (exit, log) = run.exit().await;
    assert_eq!((exit, stdout(&log)), (Exit::Code(0), format!("{agent}\nend\n")));
    drop(foreign);
    rig.assert_clean();
}

/// Not a test: what agents run that want to say something byte by byte. It does what its variable says.
#[test]
fn client() {
    use std::io::{BufRead, BufReader, Write};

    let Ok(what) = std::env::var("CLIENT") else { return };
    let connect = || UnixStream::connect(std::env::var("ADO_SOCKET").unwrap()).unwrap();
    let mut socket = connect();
    let mut answers = BufReader::new(socket.try_clone().unwrap());
    let mut answer = || {
        let mut line = String::new();
        answers.read_line(&mut line).map(|_| line).unwrap_or_default()
    };
    match what.as_str() {
        "flood" => {
            for number in 0..5_000 {
                let line = format!("{{\"progress\":{{\"percent\":{},\"message\":\"{number}\"}}}}\n", number / 50);
                socket.write_all(line.as_bytes()).unwrap();
                assert_eq!(answer(), "{\"ok\":{}}\n");
            }
        }
        "notes" => {
            let accepted = (0..500).filter(|_| {
                socket.write_all(b"{\"log\":{\"message\":\"again\"}}\n").unwrap();
                let answer = answer();
                assert!(answer.starts_with("{\"ok\"") || answer.contains("5 a second are recorded"), "{answer}");
                answer.starts_with("{\"ok\"")
            });
            println!("accepted {}.", accepted.count());
        }
        "endless" => {
            let chunk = vec![b'x'; 1 << 20];
            let taken = (0..1024).take_while(|_| socket.write_all(&chunk).is_ok()).count();
            println!("taken {taken}. {}", answer());
        }
        "garbage" => {
            let mut number: u32 = 1;
            for _ in 0..2_000 {
                let mut line: Vec<u8> = (0..64)
                    .map(|_| {
                        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (number >> 24) as u8
                    })
                    .filter(|byte| *byte != b'\n')
                    .collect();
                line.push(b'\n');
                socket.write_all(&line).unwrap();
                assert!(answer().starts_with("{\"error\""));
            }
            println!("all refused.");
        }
        "crowd" => {
            for _ in 0..20 {
                let crowd: Vec<_> = (0..500).map(|_| connect()).collect();
                drop(crowd);
            }
            // Idle ones make way for those who have something to say.
            let _idle: Vec<_> = (0..40).map(|_| connect()).collect();
            let mut late = connect();
            late.write_all(b"{\"log\":{\"message\":\"heard\"}}\n").unwrap();
            let mut line = String::new();
            BufReader::new(late).read_line(&mut line).unwrap();
            println!("late: {line}");
        }
        other => panic!("{other}"),
    }
}

/// A command that runs [`client`].
fn as_client(what: &str) -> String {
    format!("CLIENT={what} \"$SELF\" --exact client --nocapture")
}

fn notes(log: &[Body]) -> Vec<&str> {
    log.iter().filter_map(|body| if let Body::Note(note) = body { Some(note.text.as_str()) } else { None }).collect()
}

#[tokio::test]
async fn what_a_task_says_comes_after_all_it_had_written() {
    for grade in grades() {
        let rig = Rig::new(grade);
        // A pipe holds 64 KiB. With a spool that is full from the first record on, most of it is still in there when the
        // task has spoken.
        let script = "head -c 60000 /dev/zero | tr '\\0' o; echo error >&2; ado task log spoken; echo > $DIR/spoken; \
                      ado task checkpoint --data '{\"page\": 7}' -o json; echo after";
        let run = rig.run_with(rig.shell(script), Spool::new(rig.path("spool"), 1, 1), false);
        eventually("it has spoken", || rig.path("spoken").exists()).await;
        run.open.send_replace(Door::Open);
        let (exit, log) = run.exit().await;
        assert_eq!(exit, Exit::Code(0));
        let spoken = log.iter().position(|body| matches!(body, Body::Note(_))).expect("the note");
        let point = log.iter().position(|body| matches!(body, Body::Checkpointed(_))).expect("the checkpoint");
        assert!(spoken < point);
        for at in [spoken, point] {
            let before = output(&log[..at], Stream::Stdout);
            assert!(before == [b'o'; 60_000], "{} bytes, and not one more or less", before.len());
            assert_eq!(output(&log[..at], Stream::Stderr), b"error\n");
        }
        let Body::Checkpointed(made) = &log[point] else { unreachable!() };
        assert_eq!(made.data, "{\"page\": 7}");
        let after = format!("{{\"checkpointId\":\"{}\",\"type\":\"checkpoint\"}}\nafter\n", made.id);
        assert_eq!(stdout(&log)[60_000..], after);
        rig.assert_clean();
    }
}

#[tokio::test]
async fn a_checkpoint_is_answered_once_it_is_durable_and_the_rest_at_once() {
    let rig = Rig::new(Containment::Subreaper);
    let script = "ado task progress 40 compiling && ado task log cold && echo > $DIR/said; \
                  ado task checkpoint && echo > $DIR/durable";
    let run = rig.run_with(rig.shell(script), Spool::new(rig.path("spool"), MEMORY_LIMIT, 1 << 20), false);
    eventually("no controller is needed for these", || rig.path("said").exists()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!rig.path("durable").exists());
    run.open.send_replace(Door::Open);
    let (exit, log) = run.exit().await;
    assert_eq!(exit, Exit::Code(0));
    assert!(rig.path("durable").exists());
    let progress: Vec<_> = log.iter().filter(|body| matches!(body, Body::Progress(_))).collect();
    let expected = Progress { percent: Some(40), message: Some("compiling".into()) };
    assert_eq!(progress, [&Body::from(expected)]);
    assert_eq!(notes(&log), ["cold"]);
    rig.assert_clean();
}

#[tokio::test]
async fn an_attempt_is_told_where_to_go_on_from() {
    let rig = Rig::new(Containment::Subreaper);
    let spool = || Spool::new(rig.path("spool"), MEMORY_LIMIT, 1 << 20);
    let script = "echo ${ADO_CHECKPOINT-anew}; test -S \"$ADO_SOCKET\" && stat -c %a \"${ADO_SOCKET%/*}\"";
    let (_, log) = rig.run_from(rig.shell(script), spool(), true, Some("{\"page\":7}".into())).exit().await;
    assert_eq!(stdout(&log), "{\"page\":7}\n700\n");
    let mut spec = rig.shell(script);
    spec.env.insert("ADO_CHECKPOINT".into(), "claimed".into());
    let (_, log) = rig.run_from(spec, spool(), true, None).exit().await;
    assert_eq!(stdout(&log), "anew\n700\n");
    let longest = format!("\"{}\"", "x".repeat(MAX_CHECKPOINT - 2));
    let count = rig.shell("printf %s \"$ADO_CHECKPOINT\" | wc -c");
    let (_, log) = rig.run_from(count, spool(), true, Some(longest)).exit().await;
    assert_eq!(stdout(&log).trim(), MAX_CHECKPOINT.to_string());
}

#[tokio::test]
async fn nobody_speaks_for_another_task() {
    let rig = Rig::new(Containment::Subreaper);
    let mut victim = rig.run(rig.shell("echo $ADO_SOCKET; until test -e $DIR/go; do sleep 0.01; done"));
    victim.until_output("\n").await;
    let socket = stdout(&victim.log.borrow()).trim().to_owned();
    let script =
        format!("export ADO_SOCKET={socket}; ado task log evil; echo $?; (setsid ado task checkpoint); echo $?");
    let (exit, log) = rig.run(rig.shell(&script)).exit().await;
    assert_eq!((exit, stdout(&log).as_str()), (Exit::Code(0), "125\n125\n"));
    let complaints = String::from_utf8(output(&log, Stream::Stderr)).unwrap();
    assert_eq!(complaints.matches("only processes of this task").count(), 2, "{complaints}");
    // Nor does one who is in no task, as the same user.
    let to = socket.clone();
    let answer = tokio::task::spawn_blocking(move || {
        use std::io::{BufRead, BufReader, Write};
        let mut outside = UnixStream::connect(to).unwrap();
        // Who is refused is not listened to: the end may come before anything could be said.
        let _ = outside.write_all(b"{\"log\":{\"message\":\"evil\"}}\n");
        let mut answer = String::new();
        BufReader::new(outside).read_line(&mut answer).map(|_| answer).unwrap()
    });
    let answer = answer.await.unwrap();
    assert!(answer.contains("only processes of this task"), "{answer}");
    fs::write(rig.path("go"), "").unwrap();
    let (_, log) = victim.exit().await;
    assert_eq!(notes(&log), [] as [&str; 0]);
    assert!(!log.iter().any(|body| matches!(body, Body::Checkpointed(_))));
    assert!(UnixStream::connect(&socket).is_err(), "it ends with its attempt");
    rig.assert_clean();
}

#[tokio::test]
async fn an_attempt_that_is_given_up_is_heard_no_more() {
    for how in [GiveUp::HandBack, GiveUp::Discard] {
        let rig = Rig::new(Containment::Subreaper);
        // Its output is not taken either, so what it says waits.
        let run = rig.run_with(
            rig.shell("head -c 60000 /dev/zero; ado task log late; echo > $DIR/said; ado task checkpoint; sleep 1000"),
            Spool::new(rig.path("spool"), 1, 1),
            false,
        );
        eventually("it has spoken", || rig.path("said").exists()).await;
        run.orders.send_if_modified(|orders| orders.give_up(how));
        eventually("it is killed", || rig.marked().is_empty()).await;
        run.open.send_replace(Door::Open);
        let (_, log) = run.end().await;
        assert_eq!(notes(&log), [] as [&str; 0], "{how:?}");
        assert!(!log.iter().any(|body| matches!(body, Body::Checkpointed(_))), "{how:?}");
        rig.assert_clean();
    }
}

#[tokio::test]
async fn what_was_said_last_is_kept() {
    let rig = Rig::new(Containment::Subreaper);
    let script = "ado task progress 10 one; ado task progress 90 two; ado task log last; exit 3";
    let (exit, log) = rig.run(rig.shell(script)).exit().await;
    assert_eq!(exit, Exit::Code(3));
    let last = log.iter().rev().find_map(|body| match body {
        Body::Progress(progress) => Some(progress),
        _ => None,
    });
    assert_eq!(last, Some(&Progress { percent: Some(90), message: Some("two".into()) }));
    assert_eq!(notes(&log), ["last"]);
}

#[tokio::test]
async fn floods_of_words_are_bounded() {
    let rig = Rig::new(Containment::Subreaper);
    let begun = tokio::time::Instant::now();
    let (exit, log) = rig.run(rig.shell(&as_client("flood"))).exit().await;
    assert_eq!(exit, Exit::Code(0), "{}", stdout(&log));
    let most = 2 + usize::try_from(begun.elapsed().as_millis() / 100).unwrap();
    let progress: Vec<_> = log.iter().filter(|body| matches!(body, Body::Progress(_))).collect();
    assert!((1..=most).contains(&progress.len()), "{} records of progress, {most} at most", progress.len());
    let newest = Progress { percent: Some(99), message: Some("4999".into()) };
    assert_eq!(*progress[progress.len() - 1], Body::from(newest));

    let begun = tokio::time::Instant::now();
    let (exit, log) = rig.run(rig.shell(&as_client("notes"))).exit().await;
    let most = 51 + usize::try_from(begun.elapsed().as_millis() / 200).unwrap();
    assert_eq!(exit, Exit::Code(0), "{}", stdout(&log));
    assert!((50..=most).contains(&notes(&log).len()), "{} notes, {most} at most", notes(&log).len());
    assert!(stdout(&log).contains(&format!("accepted {}.", notes(&log).len())), "what was accepted is there");
}

#[tokio::test]
async fn hostile_words_harm_nobody() {
    let rig = Rig::new(Containment::Subreaper);
    let run = |what: &str| {
        // Its output goes on meanwhile.
        let script = format!("seq 1 1000; {}; echo end $?", as_client(what));
        rig.run(rig.shell(&script))
    };
    for (what, expected) in [("endless", "too long"), ("garbage", "all refused."), ("crowd", "late: {\"ok\":{}}")] {
        let (exit, log) = run(what).exit().await;
        let text = stdout(&log);
        assert_eq!(exit, Exit::Code(0), "{what}: {text}");
        assert!(text.starts_with("1\n2\n") && text.contains("\n1000\n") && text.ends_with("end 0\n"), "{what}: {text}");
        assert!(text.contains(expected), "{what}: {text}");
        rig.assert_clean();
    }
    let (_, log) = run("endless").exit().await;
    let taken = stdout(&log).split_once("taken ").unwrap().1.split('.').next().unwrap().parse::<usize>().unwrap();
    assert!(taken < 8, "{taken} MiB of a line were taken");
}

/// A guard spoken to directly.
struct Direct {
    control: Option<UnixStream>,
    buffer: Vec<u8>,
    child: std::process::Child,
}

impl Direct {
    fn start(rig: &Rig, script: &str, lease: BootTime, time_limit_ms: Option<u64>) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let child = std::process::Command::new(&rig.place.executable)
            .arg("guard")
            .arg(&rig.place.guards)
            .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let env = rig.place.environment.clone().into_iter().chain(rig.shell("").env).collect::<BTreeMap<_, _>>();
        let start = Start {
            argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
            env,
            secrets: BTreeMap::new(),
            cwd: "/".into(),
            stdin: None,
            time_limit_ms,
            total_left_ms: None,
            lease,
            containment: rig.place.containment,
            limits: Resources::default(),
        };
        let mut direct = Self { control: Some(ours), buffer: Vec::new(), child };
        direct.tell(&ToGuard::Start(start));
        direct
    }

    fn tell(&mut self, message: &ToGuard) {
        use std::io::Write;
        self.control.as_mut().unwrap().write_all(&protocol::encode(message).unwrap()).unwrap();
    }

    fn hear(&mut self) -> FromGuard {
        use std::io::Read;
        loop {
            if let Some(message) = protocol::take(&mut self.buffer).unwrap() {
                return message;
            }
            let mut chunk = [0; 1024];
            let length = self.control.as_mut().unwrap().read(&mut chunk).unwrap();
            assert!(length > 0, "the guard ended");
            self.buffer.extend_from_slice(&chunk[..length]);
        }
    }

    fn started(&mut self) {
        let said = self.hear();
        assert!(matches!(said, FromGuard::Started { .. }), "{said:?}");
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.control = None;
        self.child.wait().unwrap();
    }
}

fn soon() -> BootTime {
    BootTime::now().after(Duration::from_millis(100))
}

fn later() -> BootTime {
    BootTime::now().after(PATIENCE)
}

#[tokio::test]
async fn the_lease_ends_without_the_worker() {
    for grade in grades() {
        let rig = Rig::new(grade);
        let size = || fs::metadata(rig.path("main")).map_or(0, |found| found.len());
        let mut guard = Direct::start(&rig, "while :; do echo x >> $DIR/main; done", soon(), None);
        guard.started();
        assert_eq!(guard.hear(), FromGuard::Frozen { reasons: [Reason::Lease].into(), mark: 0 });
        let before = size();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(size(), before);
        guard.tell(&ToGuard::Renew(later()));
        assert_eq!(guard.hear(), FromGuard::Thawed { mark: 0 });
        eventually("work again", || size() > before).await;
        drop(guard);
        rig.assert_clean();
    }
}

#[tokio::test]
async fn an_agent_does_not_begin_while_its_lease_is_over() {
    for grade in grades() {
        let rig = Rig::new(grade);
        let script = "echo x > $DIR/main; sleep 1000";
        let mut guard = Direct::start(&rig, script, BootTime::now(), None);
        guard.tell(&ToGuard::Renew(BootTime::now()));
        // Time for it to begin: then that would be heard first.
        tokio::time::sleep(Duration::from_millis(300)).await;
        guard.tell(&ToGuard::Kill);
        assert_eq!(guard.hear(), FromGuard::Exited(Exit::Cancelled));
        drop(guard);
        assert!(!rig.path("main").exists(), "it never ran");
        let mut guard = Direct::start(&rig, script, BootTime::now(), None);
        guard.tell(&ToGuard::Freeze { reason: Reason::User, mark: 1 });
        guard.tell(&ToGuard::Renew(later()));
        guard.started();
        assert_eq!(guard.hear(), FromGuard::Frozen { reasons: [Reason::User].into(), mark: 1 }, "nothing said is lost");
        drop(guard);
        rig.assert_clean();
    }
}

#[tokio::test]
async fn the_death_of_the_worker_is_the_end() {
    let storm = "trap '' TERM HUP; (setsid sh -c 'sleep 1000 & sleep 1000' &); sleep 1000";
    for grade in grades() {
        for frozen in [false, true] {
            let rig = Rig::new(grade);
            let mut guard = Direct::start(&rig, storm, later(), None);
            guard.started();
            eventually("all of it", || rig.marked().len() >= 4).await;
            if frozen {
                guard.tell(&ToGuard::Freeze { reason: Reason::User, mark: 1 });
                guard.hear();
            }
            drop(guard);
            rig.assert_clean();
        }
    }
}

#[tokio::test]
async fn a_machine_that_shuts_down_does_not_end_the_guard_before_its_worker() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    for grade in grades() {
        let rig = Rig::new(grade);
        let mut guard = Direct::start(&rig, "sleep 1000", later(), None);
        guard.started();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
            kill(Pid::from_raw(guard.child.id().try_into().unwrap()), signal).unwrap();
        }
        guard.tell(&ToGuard::Freeze { reason: Reason::User, mark: 1 });
        assert_eq!(guard.hear(), FromGuard::Frozen { reasons: [Reason::User].into(), mark: 1 });
        guard.tell(&ToGuard::Kill);
        assert_eq!(guard.hear(), FromGuard::Exited(Exit::Cancelled));
        drop(guard);
        rig.assert_clean();
    }
}

#[tokio::test]
async fn a_worker_that_died_before_the_start_starts_nothing() {
    let rig = Rig::new(Containment::Subreaper);
    let mut guard = Direct::start(&rig, "echo x > $DIR/main", later(), None);
    // Usually faster than the guard's first look; whenever it is not, the agent is killed.
    guard.control = None;
    guard.child.wait().unwrap();
    rig.assert_clean();
}

#[tokio::test]
async fn an_agent_that_will_not_stop_is_killed_after_the_grace() {
    for grade in grades() {
        let rig = Rig::new(grade);
        let script = "trap '' TERM; echo on > $DIR/on; while :; do sleep 1000; done";
        let mut guard = Direct::start(&rig, script, later(), None);
        guard.started();
        eventually("a trap", || rig.path("on").exists()).await;
        guard.tell(&ToGuard::Stop { grace_ms: 100 });
        assert_eq!(guard.hear(), FromGuard::Exited(Exit::Cancelled));
        drop(guard);
        rig.assert_clean();
    }
}

#[tokio::test]
async fn the_time_limit_ends_it() {
    for grade in grades() {
        let rig = Rig::new(grade);
        let mut guard = Direct::start(&rig, "sleep 1000", later(), Some(100));
        guard.started();
        assert_eq!(guard.hear(), FromGuard::Exited(Exit::TimedOut(Limit::Attempt)));
        drop(guard);
        rig.assert_clean();
    }
}

/// Takes more memory than it may, and no more than the machine has: what the kernel kills for want of that would look alike.
const HOG: &str = "dd if=/dev/zero of=/dev/null bs=256M count=1 status=none";

#[tokio::test]
async fn who_takes_more_memory_than_it_may_is_killed_with_all_it_started() {
    let limits = Resources { memory: Some(64 << 20), ..Resources::default() };
    let out = Exit::OutOfMemory { limit: 64 << 20 };
    for grade in limiting(Resource::Memory) {
        let rig = Rig::new(grade);
        // The agent itself; a child of one that would live on; one that let go of its parent.
        for script in [format!("exec {HOG}"), format!("{HOG}; sleep 1000"), format!("(setsid {HOG} &); sleep 1000")] {
            let spec = TaskSpec { resources: limits, ..rig.shell(&script) };
            let (exit, _) = rig.run(spec).exit().await;
            assert_eq!(exit, out, "{script}");
            rig.assert_clean();
        }
        // Who keeps to it is let alone, and another's limit is none of its own.
        let spec = TaskSpec { resources: limits, ..rig.shell("head -c 8000000 /dev/zero | tail | wc -c; exit 3") };
        let (exit, log) = rig.run(spec).exit().await;
        assert_eq!((exit, stdout(&log).trim()), (Exit::Code(3), "8000000"));
        let (exit, _) = rig.run(rig.shell("head -c 100000000 /dev/zero | tail >/dev/null")).exit().await;
        assert_eq!(exit, Exit::Code(0));
        rig.assert_clean();
    }
}

#[tokio::test]
async fn who_forks_for_ever_does_so_within_its_limit() {
    for grade in limiting(Resource::Pids) {
        let rig = Rig::new(grade);
        let resources = Resources { pids: Some(16), ..Resources::default() };
        let spec = TaskSpec { resources, ..rig.shell("while sleep 1000 & do echo one; done; exit 3") };
        let (exit, log) = rig.run(spec).exit().await;
        // The shell and fifteen more.
        assert_eq!(stdout(&log), "one\n".repeat(15));
        assert!(matches!(exit, Exit::Code(code) if code != 0), "{exit:?}");
        assert!(String::from_utf8_lossy(&output(&log, Stream::Stderr)).to_lowercase().contains("fork"), "{log:?}");
        rig.assert_clean();
        // Each has what it asked for, and not a share of it.
        let spec = TaskSpec { resources, ..rig.shell("bomb() { bomb | bomb & }; bomb; sleep 1000") };
        let mut bomb = rig.run(spec);
        bomb.until("begin", |log| matches!(log.first(), Some(Body::Started(_)))).await;
        let group = rig.groups().into_iter().find(|group| group.join("pids.max").exists()).unwrap();
        let number = |file| fs::read_to_string(group.join(file)).unwrap_or_default().trim().parse::<u64>().unwrap_or(0);
        let refused = || {
            let events = fs::read_to_string(group.join("pids.events")).unwrap_or_default();
            events.lines().any(|line| line.strip_prefix("max ").is_some_and(|times| times != "0"))
        };
        eventually("it is refused more", refused).await;
        assert_eq!(number("pids.max"), 16);
        assert!(number("pids.current") <= 16 && rig.marked().len() <= 17, "and the guard of it");
        bomb.want(Desired::Cancelled, true);
        assert_eq!(bomb.exit().await.0, Exit::Cancelled);
        assert!(!group.exists());
        rig.assert_clean();
    }
}

#[tokio::test]
async fn who_computes_for_ever_gets_its_share_of_a_processor() {
    for grade in limiting(Resource::Cpu) {
        let rig = Rig::new(grade);
        let resources = Resources { cpu_milli: Some(50), ..Resources::default() };
        let mut busy = rig.run(TaskSpec { resources, ..rig.shell("echo begun; while :; do :; done") });
        busy.until_output("begun").await;
        let is_limited = |group: &PathBuf| group.join("cpu.max").exists() || group.join("cpu.cfs_quota_us").exists();
        let group = rig.groups().into_iter().find(is_limited).unwrap();
        let number = |name: &str| {
            let text = fs::read_to_string(group.join("cpu.stat")).unwrap_or_default();
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        eventually("the kernel has looked often", || number("nr_periods ") >= 20).await;
        // It wants all of every period, and gets a twentieth.
        let (periods, throttled) = (number("nr_periods "), number("nr_throttled "));
        assert!(throttled * 2 > periods, "{throttled} of {periods}");
        busy.want(Desired::Cancelled, true);
        assert_eq!(busy.exit().await.0, Exit::Cancelled);
        assert!(!group.exists());
        rig.assert_clean();
    }
}

#[tokio::test]
async fn a_limited_agent_whose_guard_is_killed_leaves_no_group() {
    for grade in limiting(Resource::Memory) {
        let rig = Rig::new(grade);
        let resources = Resources { memory: Some(64 << 20), cpu_milli: Some(500), pids: Some(50) };
        let mut run = rig.run(TaskSpec { resources, ..rig.shell("(setsid sleep 1000 &); echo begun; sleep 1000") });
        run.until_output("begun").await;
        let groups = rig.groups();
        assert!(!groups.is_empty() && groups.iter().all(|group| group.exists()), "{groups:?}");
        let guard = names(&rig.place.guards)[0].parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard), nix::sys::signal::Signal::SIGKILL).unwrap();
        let (exit, _) = run.exit().await;
        assert!(matches!(exit, Exit::Lost { .. }), "{exit:?}");
        assert!(groups.iter().all(|group| !group.exists()), "{groups:?}");
        rig.assert_clean();
    }
}

#[tokio::test]
async fn freezing_holds_a_limited_agent_too() {
    for grade in limiting(Resource::Memory) {
        let rig = Rig::new(grade);
        let resources = Resources { memory: Some(64 << 20), cpu_milli: Some(500), pids: Some(50) };
        let mut run =
            rig.run(TaskSpec { resources, ..rig.shell("echo begun; until test -e $DIR/go; do :; done; exit 3") });
        run.until_output("begun").await;
        run.want(Desired::Paused, false);
        run.until("pause", |log| matches!(log.last(), Some(Body::Paused(_)))).await;
        fs::write(rig.path("go"), "").unwrap();
        run.want(Desired::Running, false);
        assert_eq!(run.exit().await.0, Exit::Code(3));
        rig.assert_clean();
    }
}

fn checkpoints(log: &[Body]) -> Vec<(usize, Checkpointed)> {
    let made = |(at, body): (usize, &Body)| match body {
        Body::Checkpointed(made) => Some((at, made.clone())),
        _ => None,
    };
    log.iter().enumerate().filter_map(made).collect()
}

#[tokio::test]
async fn a_folder_that_was_kept_is_there_again() {
    for grade in grades() {
        let rig = Rig::new(grade);
        rig.vault.failures.store(3, Ordering::Relaxed);
        let script = "mkdir d; echo kept >d/file; ln -s d/file link; echo before; \
                      ado task checkpoint --workspace --data 7 || exit; echo lost >d/file; echo after; exit 3";
        let (exit, log) = rig.run(rig.shell(script)).exit().await;
        assert_eq!(exit, Exit::Code(3));
        let made = checkpoints(&log);
        let [(at, first)] = &made[..] else { panic!("{log:?}") };
        let snapshot = first.snapshot.expect("its folder");
        assert_eq!((first.data.as_str(), snapshot.files, snapshot.bytes), ("7", 1, 5));
        assert!(snapshot.until.0 <= *at as u64);
        assert_eq!(output(&log[..snapshot.until.0 as usize], Stream::Stdout), b"before\n");
        rig.assert_clean();

        // The next one begins with it, and what it keeps then needs no flag.
        let script = "cat link; echo $ADO_CHECKPOINT; echo more >more; ado task checkpoint --data 8; exit 3";
        let (_, log) = rig.run_after(rig.shell(script), first).exit().await;
        assert_eq!(stdout(&log), "kept\n7\n");
        let (_, second) = &checkpoints(&log)[0];
        assert_eq!((second.data.as_str(), second.snapshot.map(|snapshot| snapshot.files)), ("8", Some(2)));
        let (exit, log) = rig.run_after(rig.shell("cat link more; echo $ADO_CHECKPOINT"), second).exit().await;
        assert_eq!((exit, stdout(&log)), (Exit::Code(0), "kept\nmore\n8\n".to_owned()));
        rig.assert_clean();
    }
}

/// An agent that never stands still by itself: what is kept of it is one moment all the same, of its files and its output.
#[tokio::test]
async fn a_folder_is_kept_as_it_was_at_one_moment() {
    for grade in grades() {
        let rig = Rig::new(grade);
        let script = "i=0; while :; do i=$((i + 1)); echo $i; echo $i >a; for n in 1 2 3 4 5 6 7 8; do echo $i >f$n; done; \
                      echo $i >z; done";
        let mut spec = rig.shell(script);
        spec.snapshot_every_ms = Some(1000);
        let mut run = rig.run(spec);
        run.until("two checkpoints", |log| checkpoints(log).len() >= 2).await;
        run.want(Desired::Cancelled, true);
        let (_, log) = run.exit().await;
        for (_, made) in checkpoints(&log).into_iter().take(2) {
            assert_eq!(made.data, "{}");
            let until = made.snapshot.expect("its folder").until.0 as usize;
            let said = String::from_utf8(output(&log[..until], Stream::Stdout)).unwrap();
            let last: u64 = said.lines().last().unwrap().parse().unwrap();
            let (exit, log) = rig.run_after(rig.shell("cat a f1 f2 f3 f4 f5 f6 f7 f8 z"), &made).exit().await;
            assert_eq!(exit, Exit::Code(0));
            // A file may just have been emptied to be written.
            let found: Vec<u64> = stdout(&log).lines().map(|line| line.parse().unwrap()).collect();
            assert!(found.len() >= 9, "{found:?}");
            assert!(found.is_sorted_by(|a, b| a >= b), "in the order of writing: {found:?}");
            assert!(found[0] <= last && last - found[found.len() - 1] <= 1, "{found:?}, and {last} was written");
        }
        rig.assert_clean();
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_kept_is_no_harm() {
    let mut rig = Rig::new(Containment::Subreaper);
    rig.place.archive =
        Archive::new(Limits { max_bytes: 100_000, max_files: 5, ..Limits::default() }, rig.path("snapshots"));
    let script = "head -c 200000 /dev/zero >large; ado task checkpoint --workspace; echo $?; rm large; \
                  touch 1 2 3 4 5 6; ado task checkpoint --workspace; echo $?; rm 1 2; \
                  ado task checkpoint --workspace; echo $?";
    let (exit, log) = rig.run(rig.shell(script)).exit().await;
    assert_eq!((exit, stdout(&log)), (Exit::Code(0), "125\n125\n0\n".to_owned()));
    let errors = String::from_utf8(output(&log, Stream::Stderr)).unwrap();
    assert!(errors.contains("more than 100000 bytes (worker.snapshots.maxBytes)"), "{errors}");
    assert!(errors.contains("more than 5 files (worker.snapshots.maxFiles)"), "{errors}");
    assert_eq!(checkpoints(&log).len(), 1);

    // By itself it says so in the log, once.
    let mut spec = rig.shell("head -c 200000 /dev/zero >large; sleep 3; echo done");
    spec.snapshot_every_ms = Some(1000);
    let (_, log) = rig.run(spec).exit().await;
    assert_eq!(stdout(&log), "done\n");
    assert_eq!(notes(&log), ["no checkpoint: it holds more than 100000 bytes (worker.snapshots.maxBytes)"]);

    // A folder that was not made for the task is nobody's to make anew.
    let mut spec = rig.shell("ado task checkpoint --workspace; echo $?; ado task checkpoint; echo $?");
    spec.cwd = Some(rig.dir.path().display().to_string());
    let (_, log) = rig.run(spec).exit().await;
    assert_eq!(stdout(&log), "125\n0\n");
    let errors = String::from_utf8(output(&log, Stream::Stderr)).unwrap();
    assert!(errors.contains("only a folder that was made for a task is kept"), "{errors}");
}

#[tokio::test]
async fn a_snapshot_that_is_gone_is_said_and_waits_for_nobody() {
    let rig = Rig::new(Containment::Subreaper);
    let (_, log) = rig.run(rig.shell("echo x >file; ado task checkpoint --workspace; exit 3")).exit().await;
    let (_, made) = checkpoints(&log).remove(0);
    rig.vault.blobs.lock().unwrap().remove(&made.snapshot.unwrap().manifest);
    let (exit, log) = rig.run_after(rig.shell("echo never"), &made).exit().await;
    let Exit::NotStarted { error, permanent: false } = exit else { panic!("{exit:?}") };
    assert!(error.contains("at the last checkpoint") && error.contains("is not there any more"), "{error}");
    assert_eq!(stdout(&log), "");
    rig.assert_clean();
}
