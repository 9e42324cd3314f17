//! One run: load, faults, and then the oracle.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ado::client::Client;
use ado_proto::record::{Body, Outcome, Record};
use ado_proto::request::Submit;
use ado_proto::spec::{Input, TaskSpec};
use ado_proto::{RequestId, TaskId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::{Connection, Row as _};
use tokio::time::Instant;

use crate::evidence::{Sources, database, notes};
use crate::faults::{Dice, Fault, Menu, Part, Planned, schedule};
use crate::mesh::{Mesh, Size};
use crate::oracle::{AGENT, View, judge, judge_submissions};
use crate::relay::{Way, Whose};
use crate::view::Viewer;

/// Between two looks at everything.
const TICK: Duration = Duration::from_millis(50);
/// Without any progress after the last fault for this long, a run has failed.
const STUCK_AFTER: Duration = Duration::from_secs(120);
/// For each try to submit.
const SUBMIT_FOR: Duration = Duration::from_secs(5);
/// Every so manieth task is also read with `logs --final`.
const FINAL_OF: usize = 15;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    pub(crate) every: Duration,
    pub(crate) size: Size,
    pub(crate) tasks: usize,
    pub(crate) viewers: usize,
}

/// What was accepted, as whoever submitted it was told.
#[derive(Default)]
struct Accepted {
    answers: Vec<Vec<TaskId>>,
    repeated: Vec<(Vec<TaskId>, Vec<TaskId>)>,
    tries: usize,
}

/// What is undone later.
enum Undo {
    StartController(usize),
    StartWorker(usize),
    Thaw(i32),
    ReviveRedis,
    LaunchPostgres,
    EmptyDisk,
}

struct Run {
    plan: Plan,
    mesh: Mesh,
    begun: Instant,
    accepted: Arc<Mutex<Accepted>>,
    viewers: Vec<Viewer>,
    views: BTreeMap<TaskId, Vec<View>>,
    viewed: usize,
    undo: Vec<(Instant, Undo)>,
    /// Tasks whose guard was stopped or killed.
    unguarded: BTreeSet<String>,
    done: BTreeMap<String, usize>,
    findings: Vec<String>,
    dice: Dice,
}

/// Runs it all. `None`: skip the test.
pub(crate) async fn run(plan: Plan) -> Option<()> {
    let mesh = Mesh::start(plan.size, Some("700m")).await?;
    let menu = Menu { disk: mesh.disk.is_some() };
    let schedule = schedule(plan.seed, plan.length, plan.every, menu);
    let listed: String = schedule.iter().map(|planned| format!("{planned}\n")).collect();
    std::fs::write(mesh.path("schedule"), format!("{plan:?}\n{listed}")).expect("a file");
    eprintln!("chaos: ADO_CHAOS_SEED={} {plan:?}", plan.seed);
    let mut run = Run {
        plan,
        mesh,
        begun: Instant::now(),
        accepted: Arc::default(),
        viewers: Vec::new(),
        views: BTreeMap::new(),
        viewed: 0,
        undo: Vec::new(),
        unguarded: BTreeSet::new(),
        done: BTreeMap::new(),
        findings: Vec::new(),
        dice: Dice::new(plan.seed ^ 0xadad),
    };
    for _ in 0..plan.size.workers {
        run.mesh.add_worker().await;
    }
    run.begun = Instant::now();
    let client = run.mesh.client(SUBMIT_FOR);
    let submitting = tokio::spawn(submit(client, run.specs(), run.accepted.clone(), plan.length * 7 / 10, plan.seed));
    run.suffer(&schedule).await;
    run.mesh.heal();
    let faults_ended = Instant::now();
    submitting.await.expect("everything is submitted in the end");
    let settled = run.settle().await;
    let (settled_after, took) = (faults_ended.elapsed(), run.begun.elapsed());
    let (report, findings) = run.judge(settled).await;
    let faults: Vec<_> = run.done.iter().map(|(what, count)| format!("{count} × {what}")).collect();
    eprintln!("chaos: faults: {}", faults.join(", "));
    eprintln!("chaos: {report}; settled {settled_after:.1?} after the last fault, {took:.1?} in all");
    if findings.is_empty() {
        run.mesh.stop().await;
        return Some(());
    }
    std::fs::write(run.mesh.path("findings"), findings.join("\n")).expect("a file");
    for finding in findings.iter().take(40) {
        eprintln!("chaos: FOUND {finding}");
    }
    panic!("seed {}: {} findings; schedule:\n{listed}", plan.seed, findings.len());
}

impl Run {
    /// Tasks of different lengths, some with a burst, some with checkpoints.
    fn specs(&mut self) -> Vec<TaskSpec> {
        let notes = self.mesh.path("notes").display().to_string();
        let marker = self.mesh.marker();
        let program = env!("CARGO_BIN_EXE_ado").to_owned();
        let spec = |_| {
            let lines = 3 + self.dice.roll(25);
            let burst = if self.dice.roll(5) == 0 { 1 + self.dice.roll(lines) } else { 0 };
            let keep = 2 + self.dice.roll(10);
            let wait = format!("0.0{}", 1 + self.dice.roll(9));
            let mut spec = TaskSpec::new("shell", Input::Text(AGENT.into()));
            let own = [("LINES", lines.to_string()), ("BURST", burst.to_string()), ("KEEP", keep.to_string())];
            let own = own.into_iter().chain([("WAIT", wait), ("NOTES", notes.clone()), ("ADO", program.clone())]);
            spec.env = own.map(|(name, value)| (name.to_owned(), value)).chain([marker.clone()]).collect();
            spec.max_retries = 50;
            spec.priority = i32::try_from(self.dice.roll(3)).expect("small");
            spec
        };
        (0..self.plan.tasks).map(spec).collect()
    }

    /// The faults, in their time.
    async fn suffer(&mut self, schedule: &[Planned]) {
        let mut due = schedule.iter();
        let mut next = due.next();
        while next.is_some() || self.begun.elapsed() < self.plan.length {
            while let Some(planned) = next.filter(|planned| planned.at <= self.begun.elapsed()) {
                let what = self.inflict(planned).await;
                let at = self.begun.elapsed().as_secs_f64();
                self.note(&format!("{at:7.1} s  {what}"));
                next = due.next();
            }
            self.tend();
            tokio::time::sleep(TICK).await;
        }
        // What was stopped for longer goes on now: nobody else would wake an agent or a viewer.
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.undo(undo);
        }
    }

    fn note(&self, line: &str) {
        let file = std::fs::File::options().create(true).append(true).open(self.mesh.path("logs/faults"));
        std::io::Write::write_all(&mut file.expect("a log"), format!("{line}\n").as_bytes()).expect("a log");
    }

    /// Undoes what is due, and looks after the viewers.
    fn tend(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.undo).into_iter().partition(|undo| undo.0 <= now);
        self.undo = later;
        for (_, undo) in due as Vec<_> {
            self.undo(undo);
        }
        let tasks: Vec<_> = self.accepted.lock().expect("nobody panics").answers.concat();
        while self.viewers.len() < self.plan.viewers && !tasks.is_empty() {
            let viewer = self.another(&tasks);
            self.viewers.push(viewer);
        }
        for place in 0..self.viewers.len() {
            if self.viewers[place].tend(&self.mesh) {
                let next = self.another(&tasks);
                let seen = std::mem::replace(&mut self.viewers[place], next);
                self.keep(seen);
            }
        }
    }

    fn another(&mut self, tasks: &[TaskId]) -> Viewer {
        self.viewed += 1;
        // Mostly one of the newest: it will be looked at while it runs.
        let back = self.dice.roll(tasks.len().min(40) as u64);
        let task = tasks[tasks.len() - 1 - usize::try_from(back).expect("small")];
        let from = if self.dice.roll(4) == 0 { self.dice.roll(5) } else { 0 };
        Viewer::of(&self.mesh, self.viewed, task, from)
    }

    fn keep(&mut self, mut viewer: Viewer) {
        let task = viewer.task;
        self.findings.extend(viewer.complaints.drain(..).map(|complaint| format!("{task}: {complaint}")));
        self.views.entry(task).or_default().push(viewer.view());
    }

    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::StartController(which) => self.mesh.controllers[which].daemon.start(),
            Undo::StartWorker(which) => self.mesh.workers[which].start(),
            // It may have died meanwhile.
            Undo::Thaw(pid) => drop(kill(Pid::from_raw(pid), Signal::SIGCONT)),
            Undo::ReviveRedis => self.mesh.redis.revive(),
            Undo::LaunchPostgres => self.launch_postgres(),
            Undo::EmptyDisk => {
                self.mesh.disk.as_ref().expect("it was filled").empty();
                self.launch_postgres();
            }
        }
    }

    fn launch_postgres(&mut self) {
        if !self.mesh.postgres.runs() {
            tokio::task::block_in_place(|| self.mesh.postgres.launch());
        }
    }

    fn later(&mut self, after: Duration, undo: Undo) {
        self.undo.push((Instant::now() + after, undo));
    }

    /// What was done, or why nothing was.
    async fn inflict(&mut self, planned: &Planned) -> String {
        let pick = |count: usize| usize::try_from(planned.pick).expect("64 bits") % count.max(1);
        let done = match planned.fault {
            Fault::Kill(part, away) => self.kill(part, pick, away),
            Fault::Freeze(part, length) => self.freeze(part, pick, length),
            Fault::FlushRedis => self.mesh.redis.flush().then(|| "flush Redis".to_owned()),
            Fault::KillRedis(away) => {
                self.mesh.redis.kill();
                self.later(away, Undo::ReviveRedis);
                Some("kill Redis".into())
            }
            Fault::FreezeRedis(length) => {
                self.mesh.redis.freeze();
                self.later(length, Undo::ReviveRedis);
                Some("freeze Redis".into())
            }
            Fault::CrashPostgres(away) if self.mesh.postgres.runs() => {
                self.mesh.postgres.crash();
                self.later(away, Undo::LaunchPostgres);
                Some("kill PostgreSQL".into())
            }
            Fault::RestartPostgres if self.mesh.postgres.runs() => {
                tokio::task::block_in_place(|| self.mesh.postgres.shut_down());
                self.launch_postgres();
                Some("restart PostgreSQL".into())
            }
            Fault::CrashPostgres(_) | Fault::RestartPostgres => None,
            Fault::TerminateBackends => {
                let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
                                 AND backend_type = 'client backend'";
                match database(&self.mesh).await {
                    Ok(mut database) => {
                        let _ = sqlx::raw_sql(terminate).execute(&mut database).await;
                        Some("terminate backends".into())
                    }
                    Err(_) => None,
                }
            }
            Fault::FillDisk(length) => {
                self.mesh.disk.as_ref().expect("only with a disk").fill();
                self.later(length, Undo::EmptyDisk);
                Some("fill the disk".into())
            }
            Fault::Cut { to_controller, all, length } => {
                let way = if to_controller { Way::ToController } else { Way::FromController };
                let whose = if all { Whose::All } else { Whose::Half };
                let which = pick(self.mesh.controllers.len());
                self.mesh.controllers[which].relay.cut(way, whose, length);
                Some(format!("cut {way:?} {whose:?}"))
            }
        };
        if let Some(done) = &done {
            *self.done.entry(done.clone()).or_default() += 1;
        }
        done.unwrap_or_else(|| format!("nothing to do for {:?}", planned.fault))
    }

    fn kill(&mut self, part: Part, pick: impl Fn(usize) -> usize, away: Duration) -> Option<String> {
        match part {
            Part::Controller => {
                let which = pick(self.mesh.controllers.len());
                self.mesh.controllers[which].daemon.kill();
                self.later(away, Undo::StartController(which));
            }
            Part::Worker => {
                let which = pick(self.mesh.workers.len());
                self.mesh.workers[which].kill();
                self.later(away, Undo::StartWorker(which));
            }
            Part::Viewer => {
                let which = pick(self.viewers.len());
                self.viewers.get_mut(which)?.kill();
            }
            Part::Guard | Part::Agent => kill(self.inside(part, pick)?, Signal::SIGKILL).ok()?,
        }
        Some(format!("kill {part:?}"))
    }

    fn freeze(&mut self, part: Part, pick: impl Fn(usize) -> usize, length: Duration) -> Option<String> {
        let pid = match part {
            Part::Controller => {
                let which = pick(self.mesh.controllers.len());
                Pid::from_raw(self.mesh.controllers[which].daemon.pid()?)
            }
            Part::Worker => {
                let which = pick(self.mesh.workers.len());
                Pid::from_raw(self.mesh.workers[which].pid()?)
            }
            Part::Viewer => {
                let which = pick(self.viewers.len());
                Pid::from_raw(self.viewers.get(which)?.pid()?)
            }
            Part::Guard | Part::Agent => self.inside(part, pick)?,
        };
        kill(pid, Signal::SIGSTOP).ok()?;
        self.later(length, Undo::Thaw(pid.as_raw()));
        Some(format!("freeze {part:?}"))
    }

    /// A guard, or the first process of its agent.
    fn inside(&mut self, part: Part, pick: impl Fn(usize) -> usize) -> Option<Pid> {
        let guards = self.mesh.all_guards();
        let (guard, task) = guards.get(pick(guards.len()))?;
        if part == Part::Guard {
            self.unguarded.insert(task.clone());
            return Some(Pid::from_raw(*guard));
        }
        let children = std::fs::read_to_string(format!("/proc/{guard}/task/{guard}/children")).ok()?;
        Some(Pid::from_raw(children.split_whitespace().next()?.parse().ok()?))
    }

    /// Waits until everything that was accepted is over; `false` when nothing moves any more.
    async fn settle(&mut self) -> bool {
        let (mut last, mut moved) = (None, Instant::now());
        loop {
            self.tend();
            let left = left(&self.mesh).await.ok();
            if left.is_some_and(|(open, _)| open == 0) {
                return true;
            }
            if left != last {
                (last, moved) = (left, Instant::now());
            }
            if moved.elapsed() > STUCK_AFTER {
                return false;
            }
            tokio::time::sleep(TICK * 4).await;
        }
    }

    /// Gathers all evidence and judges it: what to say of the run, and what is wrong.
    async fn judge(&mut self, settled: bool) -> (String, Vec<String>) {
        let mut findings = std::mem::take(&mut self.findings);
        if !settled {
            findings.push(format!("nothing moves any more: {:?} are not over", left(&self.mesh).await));
        }
        self.finish_viewing().await;
        findings.append(&mut self.findings);
        let mut sources = Sources::of(&self.mesh).await;
        let there = sources.tasks().await;
        let accepted = std::mem::take(&mut *self.accepted.lock().expect("nobody panics"));
        findings.extend(judge_submissions(&accepted.answers, &accepted.repeated, &there));
        let mut tally = Tally::default();
        for (place, task) in there.iter().enumerate() {
            let mut evidence = match sources.gather(&self.mesh, *task).await {
                Ok(evidence) => evidence,
                Err(error) => {
                    findings.push(format!("{task}: its log cannot be read: {error}"));
                    continue;
                }
            };
            evidence.views = self.views.remove(task).unwrap_or_default();
            evidence.unguarded = self.unguarded.contains(&task.to_string());
            if place % FINAL_OF == 0 {
                evidence.survived = Some(self.survived(*task).await);
            }
            tally.count(&evidence.log);
            tally.views += evidence.views.len();
            let found = judge(&evidence);
            if !found.is_empty() {
                let mut text = notes(&self.mesh, *task) + "\n";
                for record in &evidence.log {
                    writeln!(text, "{record:?}").expect("text");
                }
                std::fs::write(self.mesh.path(&format!("{task}.evidence")), text).expect("a file");
            }
            findings.extend(found.into_iter().map(|found| format!("{task}: {found}")));
        }
        sources.close().await;
        let submissions = accepted.answers.len();
        let report = format!(
            "{} tasks in {submissions} submissions ({} tries, {} said twice on purpose): {tally:?}",
            there.len(),
            accepted.tries,
            accepted.repeated.len()
        );
        (report, findings)
    }

    /// Lets every viewer see the end of what it looks at.
    async fn finish_viewing(&mut self) {
        let begun = Instant::now();
        for mut viewer in std::mem::take(&mut self.viewers) {
            while !viewer.tend(&self.mesh) {
                if begun.elapsed() > STUCK_AFTER {
                    self.findings.push(format!("{}: a viewer does not see the end", viewer.task));
                    break;
                }
                tokio::time::sleep(TICK).await;
            }
            self.keep(viewer);
        }
    }

    async fn survived(&self, task: TaskId) -> Vec<u8> {
        self.mesh.ado(&["logs", &task.to_string(), "--final", "--stream", "stdout"]).await.stdout
    }
}

/// Numbers of a run.
#[derive(Debug, Default)]
struct Tally {
    completed: usize,
    failed: usize,
    records: usize,
    epochs: usize,
    lost: usize,
    views: usize,
}

impl Tally {
    fn count(&mut self, log: &[Record]) {
        self.records += log.len();
        for record in log {
            match &record.body {
                Body::Assigned(_) => self.epochs += 1,
                Body::WorkerLost(_) => self.lost += 1,
                Body::Ended(ended) if ended.outcome == Outcome::Completed => self.completed += 1,
                Body::Ended(_) => self.failed += 1,
                _ => {}
            }
        }
    }
}

/// Submits in small groups over this time; what fails is repeated under the same key until it is accepted, and some of what
/// was accepted is said again.
async fn submit(client: Client, specs: Vec<TaskSpec>, accepted: Arc<Mutex<Accepted>>, within: Duration, seed: u64) {
    let mut dice = Dice::new(seed ^ 0x5b5b);
    let begun = Instant::now();
    let total = specs.len();
    let mut specs = specs.into_iter();
    let mut sent = 0;
    while sent < total {
        let group: Vec<_> = specs.by_ref().take(1 + usize::try_from(dice.roll(20)).expect("small")).collect();
        tokio::time::sleep_until(begun + within.mul_f64(sent as f64 / total as f64)).await;
        sent += group.len();
        let (id, request) = (client.request_id(), Submit { name: None, specs: group, copies: 1 });
        let first = insist(&client, &request, id, &accepted).await;
        let again = if dice.roll(4) == 0 { Some(insist(&client, &request, id, &accepted).await) } else { None };
        let mut accepted = accepted.lock().expect("nobody panics");
        accepted.repeated.extend(again.map(|again| (first.clone(), again)));
        accepted.answers.push(first);
    }
}

async fn insist(client: &Client, request: &Submit, id: RequestId, accepted: &Mutex<Accepted>) -> Vec<TaskId> {
    loop {
        accepted.lock().expect("nobody panics").tries += 1;
        match client.submit(request, id).await {
            Ok(submitted) => return submitted.tasks,
            Err(error) => assert!(error.is_transient(), "a submission is refused for good: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// How many tasks are not over, and how much there is of everything: it changes while anything moves.
async fn left(mesh: &Mesh) -> sqlx::Result<(i64, i64)> {
    let mut database = database(mesh).await?;
    let count = "SELECT count(*) FILTER (WHERE ended_at IS NULL), coalesce(sum(next_offset), 0)::bigint FROM ado.task";
    let row = sqlx::query(count).fetch_one(&mut database).await?;
    database.close().await?;
    Ok((row.get(0), row.get(1)))
}
