//! Why a task is where it is, and what to do: one sentence for every state that lasts. Pure.

use std::time::Duration;

use ado_proto::Timestamp;
use ado_proto::record::{Desired, Outcome};
use ado_proto::spec::{Exit, Limit};

use crate::scheduler::{self, Candidate, Demand};
use crate::store::Row;
use crate::task::{Open, Settled, State, Task};

/// `None`: all is as it should be.
pub(super) fn reason(row: &Row, fleet: &[Candidate], away: Option<&Open>, now: Timestamp) -> Option<String> {
    let task = &row.task;
    match &task.state {
        State::Queued { not_before } => Some(queued(task, *not_before, fleet, away, now)),
        State::Starting | State::Running | State::Paused => held(row, fleet, now),
        State::Ended { outcome: Outcome::Completed, .. } => None,
        State::Ended { outcome: Outcome::Cancelled, .. } => Some(format!("cancelled{}", asked(task, now))),
        State::Ended { outcome: Outcome::Failed, exit, error } => Some(match row.settled {
            Some(Settled::Retried(again)) => {
                format!("{}, and done again as {}", error.as_deref().unwrap_or("it failed"), again.short())
            }
            _ => failed(task, exit.as_ref(), error.as_deref()),
        }),
        // These do not last: the next record comes in the same commit.
        State::Exited(_) | State::Lost => None,
    }
}

fn queued(task: &Task, not_before: Timestamp, fleet: &[Candidate], away: Option<&Open>, now: Timestamp) -> String {
    let short = task.id.short();
    match task.desired {
        Desired::Paused => {
            let before = if task.epoch.0 == 0 { "before it started" } else { "between two attempts" };
            format!("paused{} {before}: `ado resume {short}` lets it run", asked(task, now))
        }
        _ if not_before > now => {
            let wait = brief(not_before.since(now));
            format!("tried again in {wait}, after {}: `ado logs {short}` shows what happened", so_far(task))
        }
        _ => match away {
            Some(Open { why, probe_at, .. }) if *probe_at > now => {
                let (agent, wait) = (&task.spec.agent, brief(probe_at.since(now)));
                format!(
                    "what {agent} needs is not available ({why}): a task tries it in {wait}, and none loses an attempt"
                )
            }
            _ => scheduler::why_waiting(fleet, &Demand::of(&task.namespace, &task.spec)),
        },
    }
}

fn held(row: &Row, fleet: &[Candidate], now: Timestamp) -> Option<String> {
    let task = &row.task;
    let short = task.id.short();
    let worker = task.worker.as_ref().map_or("its worker", |holder| holder.name.as_str());
    let candidate = row.lease.as_ref().and_then(|lease| fleet.iter().find(|worker| worker.id == lease.worker));
    let left = row.lease.as_ref().map_or(Duration::ZERO, |lease| lease.expires_at.since(now));
    let then = if task.desired == Desired::Cancelled { "it counts as cancelled" } else { "it is tried elsewhere" };
    let trouble = match candidate {
        None if left.is_zero() => Some(format!("{worker} is not connected and its lease is over: {then} in a moment")),
        None => Some(format!(
            "{worker} is not connected: it goes on if that comes back within {}, after that {then}",
            brief(left)
        )),
        Some(worker) if worker.silent => {
            Some(format!("{} has not reported lately: if that lasts, {then}", worker.name))
        }
        Some(_) => None,
    };
    if trouble.is_some() {
        return trouble;
    }
    Some(match (&task.state, task.desired) {
        (_, Desired::Cancelled) if task.force => format!("{worker} is killing it, cancelled{}", asked(task, now)),
        (_, Desired::Cancelled) => {
            format!(
                "{worker} is stopping it, cancelled{}: `ado cancel --force {short}` kills it at once",
                asked(task, now)
            )
        }
        (State::Paused, Desired::Paused) => {
            format!("paused{}, and keeps its slot on {worker}: `ado resume {short}` continues it", asked(task, now))
        }
        (State::Paused, Desired::Running) => format!("{worker} is about to continue it, resumed{}", asked(task, now)),
        (_, Desired::Paused) => format!("{worker} is about to freeze it, paused{}", asked(task, now)),
        (State::Starting, Desired::Running) => format!("{worker} is starting it"),
        _ => return None,
    })
}

fn failed(task: &Task, exit: Option<&Exit>, error: Option<&str>) -> String {
    let short = task.id.short();
    let error = error.unwrap_or("it failed");
    let attempts = task.failures.saturating_add(1);
    let often = if attempts > 1 { format!(", {attempts} times") } else { String::new() };
    let once = if task.spec.max_retries == 0 { "; `--retries N` tries a failed task again" } else { "" };
    match exit {
        Some(Exit::Code(_) | Exit::Signal(_) | Exit::Cancelled | Exit::Failed { .. }) => {
            format!("{error}{often}: `ado logs {short}` shows what it wrote{once}")
        }
        Some(Exit::TimedOut(limit)) => {
            let flag = match limit {
                Limit::Attempt => "a longer `--time-limit`",
                Limit::SetUp => "a longer `--setup-limit`",
                Limit::Silence => "a longer `--silence-limit`",
                Limit::Total => "a longer `--total-limit`",
            };
            format!("{error}{often}: submit it with {flag}, or see where it was with `ado logs {short}`")
        }
        Some(Exit::Hopeless { .. }) => {
            format!("{error}: it says that no retry could mend that; `ado logs {short}` shows more")
        }
        Some(Exit::Unavailable { .. }) => format!("{error}: submit it again when it is back"),
        Some(Exit::OutOfMemory { .. }) => {
            format!("{error}{often}: submit it with a larger `--memory`; `ado logs {short}` shows how far it got{once}")
        }
        Some(Exit::NotStarted { permanent: true, .. }) => {
            let worker = task.worker.as_ref().map_or("the worker", |holder| holder.name.as_str());
            format!("{error}: no retry could mend that; look whether {worker} has the program and the directory")
        }
        Some(Exit::NotStarted { .. } | Exit::Lost { .. }) => {
            let worker = task.worker.as_ref().map_or("the worker", |holder| holder.name.as_str());
            format!("{error}{often}: look at the machine of {worker}, and submit it again")
        }
        None => format!(
            "{error}: it may need more memory than they have; `ado logs {short}` shows how far it got, and `--label` \
             or `--pool` can send it to larger workers"
        ),
    }
}

/// ` by user/ann, 3 min ago`; nothing when nobody is known to have asked.
fn asked(task: &Task, now: Timestamp) -> String {
    task.asked.as_ref().map_or_else(String::new, |asked| format!(" by {} {} ago", asked.by, brief(now.since(asked.at))))
}

/// What has gone wrong so far.
fn so_far(task: &Task) -> String {
    let lost = task.charged_losses.saturating_add(task.uncharged_losses);
    let count =
        |count: u32, what: &str| (count > 0).then(|| format!("{count} {what}{}", if count == 1 { "" } else { "s" }));
    let parts: Vec<_> =
        [count(task.failures, "failed attempt"), count(lost, "lost worker")].into_iter().flatten().collect();
    if parts.is_empty() { "a failure".into() } else { parts.join(" and ") }
}

/// A duration in its largest whole unit, rounded up below a minute.
fn brief(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{} s", duration.as_millis().div_ceil(1000)),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ado_proto::record::{Body, Exited, Loss, Paused, Started, Submitted};
    use ado_proto::spec::{Containment, Input, TaskSpec};
    use ado_proto::{Incarnation, Namespace, TaskId, WorkerId};
    use uuid::Uuid;

    use super::*;
    use crate::store::Lease;
    use crate::task::{self, Command, Holder, Policy};

    const BOX: WorkerId = WorkerId(Uuid::from_u128(2));

    /// A task, what happens to it a second apart each, and the sentence 3 seconds after the last.
    struct Story {
        row: Row,
        now: Timestamp,
        fleet: Vec<Candidate>,
        away: Option<Open>,
    }

    fn story(spec: TaskSpec) -> Story {
        let submitted =
            Submitted { namespace: Namespace::default(), owner: "user/ann".into(), name: None, group: None, spec };
        let now = Timestamp(1_000_000);
        let task = task::submit(TaskId(Uuid::from_u128(7)), submitted, now).task;
        let worker = Candidate {
            id: BOX,
            name: "box-1".into(),
            namespace: Namespace::default(),
            pool: "default".into(),
            agents: vec!["shell".into()],
            labels: BTreeMap::new(),
            slots: 2,
            busy: 0,
            resources: ado_proto::spec::Resources::default(),
            taken: scheduler::Taken::default(),
            draining: false,
            cordon: None,
            silent: false,
            tripped: None,
        };
        Story { row: Row::new(task, None), now, fleet: vec![worker], away: None }
    }

    fn spec() -> TaskSpec {
        TaskSpec::new("shell", Input::Text("true".into()))
    }

    fn retried(max_retries: u32) -> TaskSpec {
        TaskSpec { max_retries, ..spec() }
    }

    impl Story {
        fn then(mut self, command: Command) -> Self {
            self.now = self.now.after(Duration::from_secs(1));
            self.row.task = task::decide(&self.row.task, command, self.now, &Policy::default(), 0.99).unwrap().task;
            let expires_at = self.now.after(Duration::from_secs(15));
            let lease =
                Lease { worker: BOX, incarnation: Incarnation(Uuid::from_u128(1)), is_known: false, expires_at };
            self.row.lease = self.row.task.is_held().then_some(lease);
            self
        }

        fn claimed(self) -> Self {
            self.then(Command::Claim { worker: Holder { id: BOX, name: "box-1".into() } })
        }

        fn reports(self, body: impl Into<Body>) -> Self {
            let (epoch, first) = (self.row.task.epoch, self.row.task.next_seq);
            self.then(Command::Append { epoch, first, bodies: vec![body.into()] })
        }

        fn running(self) -> Self {
            self.claimed().reports(Started { pid: 1, containment: Containment::Group })
        }

        fn exits(self, exit: Exit) -> Self {
            self.reports(Exited { exit })
        }

        fn wanted(self, desired: Desired, force: bool) -> Self {
            self.then(Command::Desire { desired, by: "user/bob".into(), force })
        }

        fn loses(self, charged: bool) -> Self {
            let epoch = self.row.task.epoch;
            self.then(Command::Lose { epoch, why: Loss::Silent, charged })
        }

        fn later(mut self, seconds: u64) -> Self {
            self.now = self.now.after(Duration::from_secs(seconds));
            self
        }

        fn fleet(mut self, change: impl FnOnce(&mut Vec<Candidate>)) -> Self {
            change(&mut self.fleet);
            self
        }

        fn says(self, expected: &str) {
            let now = self.now.after(Duration::from_secs(3));
            let said = reason(&self.row, &self.fleet, self.away.as_ref(), now).unwrap_or_default();
            assert_eq!(said, expected, "{:?}", self.row.task.state);
        }
    }

    #[test]
    fn queued() {
        story(spec()).says("it is about to be placed");
        story(spec()).fleet(Vec::clear).says(
            "no worker is connected: start one with `ado worker`, or get a join string with \
             `ado token create --role worker`",
        );
        story(spec()).fleet(|fleet| fleet[0].busy = 2).says(
            "all 2 slots of the only fitting worker are busy: it starts when one is free; `ado worker` adds more",
        );
        story(spec())
            .fleet(|fleet| fleet[0].draining = true)
            .says("every worker that could run it is shutting down: start another with `ado worker`");
        story(spec()).fleet(|fleet| fleet[0].silent = true).says(
            "no worker that could run it has reported lately: it starts when one does, or start another with `ado worker`",
        );
        let mut away = story(TaskSpec { agent: "claude-code".into(), ..spec() });
        let probe_at = away.now.after(Duration::from_secs(48));
        away.away = Some(Open { why: "401 unauthorized".into(), since: away.now, probe_at });
        away.says(
            "what claude-code needs is not available (401 unauthorized): a task tries it in 45 s, and none loses an attempt",
        );
        story(TaskSpec { pool: "gpu".into(), ..spec() }).says(
            "the only connected worker cannot run it: box-1 is of pool default, not gpu; start one with \
             `ado worker --pool gpu`, or submit with `--pool default`",
        );
    }

    #[test]
    fn queued_again() {
        let failing = |story: Story| story.running().exits(Exit::Code(3));
        // 0.99 s, and then 1.98 s: three seconds later both are over.
        failing(story(retried(9))).says("it is about to be placed");
        let mut third = story(retried(9));
        for _ in 0..3 {
            third = failing(third).later(5);
        }
        let Story { row, fleet, .. } = third;
        let now = Timestamp(match row.task.state {
            State::Queued { not_before } => not_before.0 - 4_500_000,
            ref state => panic!("{state:?}"),
        });
        assert_eq!(
            reason(&row, &fleet, None, now).unwrap(),
            "tried again in 5 s, after 3 failed attempts: `ado logs task-0000000007` shows what happened"
        );
        let losses = story(spec()).running().loses(false).running().loses(false);
        assert_eq!(so_far(&losses.row.task), "2 lost workers");
        assert_eq!(
            so_far(&failing(story(retried(9))).later(9).running().loses(true).row.task),
            "1 failed attempt and 1 lost worker"
        );
    }

    #[test]
    fn paused_and_resumed() {
        use Desired::{Paused as Pause, Running};
        story(spec())
            .wanted(Pause, false)
            .says("paused by user/bob 3 s ago before it started: `ado resume task-0000000007` lets it run");
        story(retried(1))
            .running()
            .wanted(Pause, false)
            .exits(Exit::Code(1))
            .says("paused by user/bob 4 s ago between two attempts: `ado resume task-0000000007` lets it run");
        let paused = || story(spec()).running().wanted(Pause, false).reports(Paused { generation: 1 });
        paused().later(600).leased().says(
            "paused by user/bob 10 min ago, and keeps its slot on box-1: `ado resume task-0000000007` continues it",
        );
        story(spec()).running().wanted(Pause, false).says("box-1 is about to freeze it, paused by user/bob 3 s ago");
        paused().wanted(Running, false).says("box-1 is about to continue it, resumed by user/bob 3 s ago");
    }

    impl Story {
        /// Its worker has gone on reporting.
        fn leased(mut self) -> Self {
            if let Some(lease) = &mut self.row.lease {
                lease.expires_at = self.now.after(Duration::from_secs(15));
            }
            self
        }
    }

    #[test]
    fn held() {
        story(spec()).claimed().says("box-1 is starting it");
        story(spec()).running().says("");
        let gone = |story: Story| story.fleet(Vec::clear);
        gone(story(spec()).running()).says(
            "box-1 is not connected: it goes on if that comes back within 12 s, after that it is tried elsewhere",
        );
        gone(story(spec()).running())
            .later(20)
            .says("box-1 is not connected and its lease is over: it is tried elsewhere in a moment");
        gone(story(spec()).running().wanted(Desired::Cancelled, false)).says(
            "box-1 is not connected: it goes on if that comes back within 12 s, after that it counts as cancelled",
        );
        story(spec())
            .running()
            .fleet(|fleet| fleet[0].silent = true)
            .says("box-1 has not reported lately: if that lasts, it is tried elsewhere");
    }

    #[test]
    fn cancelled() {
        story(spec()).wanted(Desired::Cancelled, false).says("cancelled by user/bob 3 s ago");
        let cancelled = || story(spec()).running().wanted(Desired::Cancelled, false);
        cancelled().says(
            "box-1 is stopping it, cancelled by user/bob 3 s ago: `ado cancel --force task-0000000007` kills it at once",
        );
        cancelled().wanted(Desired::Cancelled, true).says("box-1 is killing it, cancelled by user/bob 3 s ago");
        cancelled().exits(Exit::Cancelled).later(7200).says("cancelled by user/bob 2 h ago");
    }

    #[test]
    fn over() {
        let over = |spec, exit| story(spec).running().exits(exit);
        over(spec(), Exit::Code(0)).says("");
        over(spec(), Exit::Code(3)).says(
            "exited with code 3: `ado logs task-0000000007` shows what it wrote; `--retries N` tries a failed task again",
        );
        over(retried(1), Exit::Code(3))
            .later(60)
            .running()
            .exits(Exit::Signal(9))
            .says("killed by signal 9, 2 times: `ado logs task-0000000007` shows what it wrote");
        over(spec(), Exit::OutOfMemory { limit: 256 << 20 }).says(
            "killed: it used more than its 256 MiB of memory: submit it with a larger `--memory`; `ado logs task-0000000007` \
             shows how far it got; `--retries N` tries a failed task again",
        );
        over(TaskSpec { time_limit_ms: Some(90_000), ..spec() }, Exit::TimedOut(Limit::Attempt)).says(
            "timed out: ran for 90s: submit it with a longer `--time-limit`, or see where it was with \
             `ado logs task-0000000007`",
        );
        over(retried(3), Exit::NotStarted { error: "no such file".into(), permanent: true }).says(
            "could not be started: no such file: no retry could mend that; look whether box-1 has the program and the \
             directory",
        );
        let mut lost = story(spec());
        for _ in 0..3 {
            lost = lost.running().loses(true).later(60);
        }
        lost.says(
            "3 workers died while running only this task: it may need more memory than they have; \
             `ado logs task-0000000007` shows how far it got, and `--label` or `--pool` can send it to larger workers",
        );
        let mut held_badly = story(spec());
        for _ in 0..3 {
            held_badly = held_badly.running().exits(Exit::Lost { error: "the guard died".into() }).later(600);
        }
        held_badly.says(
            "its worker lost hold of it: the guard died, 3 times: look at the machine of box-1, and submit it again",
        );
    }

    #[test]
    fn durations_are_brief() {
        for (millis, expected) in [
            (0, "0 s"),
            (1, "1 s"),
            (59_000, "59 s"),
            (60_000, "1 min"),
            (3_599_000, "59 min"),
            (3_600_000, "1 h"),
            (172_800_000, "2 days"),
        ] {
            assert_eq!(brief(Duration::from_millis(millis)), expected);
        }
    }
}
