//! A controller in a temporary folder, and peers for it.

use std::sync::Arc;
use std::time::Duration;

use ado::controller::{self, Config, LocalIdentities, Timing};
use ado::env::Env;
use ado::net::{Call, Channel, Error, Link, LinkConfig};
use ado::tasks::Tasks;
use ado_certs::{ClientTls, Identity, JoinString, KeyRequest, MasterKey};
use ado_proto::record::{Body, Desired, Record};
use ado_proto::request::{
    AuditLine, CreateToken, CreatedToken, Enrol, ErrorCode, Follow, ListAudit, Load, OutputAccepted, Request,
    SetDesired, StartAt, Submit, TaskOutput, WorkerSession,
};
use ado_proto::session::{
    Assignment, End, FollowItem, FromAttempt, FromWorker, Heartbeat, Records, ToAttempt, ToWorker,
};
use ado_proto::spec::{Containment, Input, TaskSpec};
use ado_proto::{Audience, Epoch, Incarnation, Namespace, Offset, Origin, RequestId, Role, Seq, TaskId, Timestamp};

/// Short, so that a lost worker is noticed within a test.
pub const TIMING: Timing = Timing { heartbeat: Duration::from_millis(100), lost_after: Duration::from_millis(1200) };

pub struct Mesh {
    pub dir: tempfile::TempDir,
    pub controller: controller::Handle,
    pub env: Env,
    pub tasks: Tasks,
}

impl Mesh {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let env = Env::system();
        let controller = controller::start(config(&dir), env.clone()).await.expect("the controller starts");
        Self { dir, controller, env, tasks: Tasks::new() }
    }

    /// A controller with these numbers of retries and breakers.
    pub async fn with_policy(policy: ado::task::Policy) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let env = Env::system();
        let config = Config { policy, ..config(&dir) };
        let controller = controller::start(config, env.clone()).await.expect("the controller starts");
        Self { dir, controller, env, tasks: Tasks::new() }
    }

    /// A controller that keeps blobs nobody needs for no longer than this.
    pub async fn with_grace(blobs_grace: Duration) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let env = Env::system();
        let config = Config { blobs_grace, ..config(&dir) };
        let controller = controller::start(config, env.clone()).await.expect("the controller starts");
        Self { dir, controller, env, tasks: Tasks::new() }
    }

    /// A controller on these parts, with the usual numbers of liveness.
    pub async fn on(parts: controller::Parts) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let env = Env::system();
        let config = Config { timing: Timing::default(), ..config(&dir) };
        let controller = controller::start_with(config, parts, env.clone()).await.expect("the controller starts");
        Self { dir, controller, env, tasks: Tasks::new() }
    }

    /// The same controller again, on its data.
    pub async fn restart(self) -> Self {
        self.restart_after(Duration::ZERO).await
    }

    /// The same, and meanwhile there is none.
    pub async fn restart_after(self, away: Duration) -> Self {
        let listen = self.controller.addresses();
        self.controller.stop().await;
        tokio::time::sleep(away).await;
        let mut config = config(&self.dir);
        config.listen = listen;
        let controller = controller::start(config, self.env.clone()).await.expect("the controller starts again");
        Self { controller, ..self }
    }

    pub fn link(&self, tls: ClientTls) -> Link {
        let addresses: Vec<_> = self.controller.addresses().iter().map(ToString::to_string).collect();
        let config = LinkConfig {
            addresses: Arc::new(move || addresses.clone()),
            tls,
            reconnect_interval: Duration::from_millis(200),
            keep_alive: Duration::from_millis(500),
            idle_timeout: Duration::from_secs(30),
            websocket: None,
            sockets: None,
        };
        Link::start(config, self.env.clone(), &self.tasks).expect("a link starts")
    }

    pub fn admin(&self) -> Link {
        let identity = Identity::load(&self.dir.path().join("admin")).expect("the controller wrote an identity");
        self.link(ClientTls::mesh(identity).expect("a TLS configuration"))
    }

    pub async fn token(&self, role: Role, namespace: &str, uses: Option<u32>, ttl: Duration) -> CreatedToken {
        let request = CreateToken {
            role,
            namespace: Namespace(namespace.into()),
            name: None,
            uses,
            ttl_ms: u64::try_from(ttl.as_millis()).expect("a short time"),
            bounds: Default::default(),
        };
        self.admin().call(&request, call()).await.expect("an administrator makes tokens")
    }

    /// Enrols with a join string.
    pub async fn enrol(&self, join: &str, name: &str) -> Result<Identity, Error> {
        let join: JoinString = join.parse().expect("the controller makes join strings");
        let link = self.link(ClientTls::join(join.pin).expect("a TLS configuration"));
        let key = KeyRequest::new().expect("a key");
        let request = Enrol { secret: join.secret, csr: key.csr_der().to_vec(), name: name.into() };
        let enrolled = link.call(&request, call()).await?;
        let chain = enrolled.chain.into_iter().map(Into::into).collect();
        Ok(key.into_identity(chain).expect("the chain fits the key"))
    }

    /// A member of a role in a namespace.
    pub async fn member(&self, role: Role, namespace: &str, name: &str) -> (Link, Identity) {
        let token = self.token(role, namespace, Some(1), Duration::from_secs(60)).await;
        let identity = self.enrol(&token.join, name).await.expect("the token is good");
        (self.link(ClientTls::mesh(identity.clone()).expect("a TLS configuration")), identity)
    }

    pub async fn worker(&self, slots: u32) -> Worker {
        let (link, identity) = self.member(Role::Worker, "default", "worker").await;
        Worker::join(self, link, identity, slots).await
    }

    pub async fn submit(&self, link: &Link, spec: TaskSpec) -> TaskId {
        let request = Submit { name: None, specs: vec![spec], copies: 1 };
        let id = Some(RequestId(self.env.uuid()));
        link.call(&request, Call { id, ..call() }).await.expect("a task is taken").tasks[0]
    }

    pub async fn cancel(&self, task: TaskId) {
        let request = SetDesired { reference: task.to_string(), desired: Desired::Cancelled, force: false };
        ask(&self.admin(), request).await.expect("it is there");
    }

    /// Who asked what, and how it went, in order.
    pub async fn audit(&self) -> Vec<String> {
        let line = |line: AuditLine| format!("{} {}: {}", line.principal, line.action, line.result);
        self.audit_lines().await.into_iter().map(line).collect()
    }

    /// The audit log, in order.
    pub async fn audit_lines(&self) -> Vec<AuditLine> {
        let path = self.dir.path().join("controller/store.sqlite3");
        let store = ado::store::Sqlite::open(&path, self.env.clone()).await.expect("the controller's store");
        let all = ListAudit { limit: 10_000, ..ListAudit::default() };
        let mut lines = ado::store::Store::audit(&store, &Audience::Everywhere, &all).await.expect("an audit log");
        lines.reverse();
        lines
    }

    /// What was refused, of what, why, and how often.
    pub async fn refusals(&self) -> Vec<String> {
        let lines = self.audit_lines().await.into_iter().filter(|line| line.result != "ok");
        lines
            .map(|line| format!("{} {} {}: {} x{}", line.principal, line.action, line.target, line.result, line.count))
            .collect()
    }
}

fn config(dir: &tempfile::TempDir) -> Config {
    Config {
        dir: dir.path().join("controller"),
        listen: vec![(std::net::Ipv4Addr::LOCALHOST, 0).into()],
        websocket: true,
        http: Some((std::net::Ipv4Addr::LOCALHOST, 0).into()),
        advertise: Vec::new(),
        timing: TIMING,
        policy: ado::task::Policy::default(),
        blobs: None,
        blobs_grace: Duration::from_secs(3600),
        redis: None,
        database: None,
        name: "played".into(),
        // Controllers that share a store in a test have one mesh.
        master_key: Some(MasterKey::from_setting(&"a5".repeat(32)).expect("a key")),
        retention: controller::Retention::default(),
        local: Some(LocalIdentities { admin: dir.path().join("admin"), worker: dir.path().join("worker") }),
    }
}

pub fn call() -> Call {
    Call { timeout: Some(Duration::from_secs(20)), ..Call::default() }
}

pub fn spec() -> TaskSpec {
    TaskSpec::new("shell", Input::Text("true".into()))
}

/// A worker played by a test: nothing happens that the test does not do.
pub struct Worker {
    pub link: Link,
    pub identity: Identity,
    pub incarnation: Incarnation,
    pub channel: Channel,
    /// What its heartbeats say of its machine.
    pub load: Load,
    /// What they say of its wish to work.
    pub draining: bool,
    beats: u64,
}

impl Worker {
    pub async fn join(mesh: &Mesh, link: Link, identity: Identity, slots: u32) -> Self {
        let incarnation = Incarnation(mesh.env.uuid());
        let session = session(incarnation, slots);
        let (_, channel) = link.open(&session, call()).await.expect("the worker is accepted");
        Self::on(link, identity, incarnation, channel)
    }

    /// One whose session was accepted.
    pub fn on(link: Link, identity: Identity, incarnation: Incarnation, channel: Channel) -> Self {
        Self { link, identity, incarnation, channel, load: Load::default(), draining: false, beats: 0 }
    }

    /// The worker's process died and came back.
    pub async fn reincarnate(self, mesh: &Mesh) -> Self {
        let Self { link, identity, channel, .. } = self;
        drop(channel);
        Self::join(mesh, link, identity, 4).await
    }

    pub async fn report(&mut self, holds: &[(TaskId, Epoch)]) {
        self.beats += 1;
        let heartbeat = FromWorker::from(Heartbeat {
            number: self.beats,
            holds: holds.to_vec(),
            load: self.load,
            draining: self.draining,
        });
        self.channel.tx.send_message(&heartbeat).await.expect("the session lives");
    }

    /// One heartbeat and its answer. Other messages that come first are dropped.
    pub async fn beat(&mut self, holds: &[(TaskId, Epoch)]) -> ado_proto::session::HeartbeatAnswer {
        self.report(holds).await;
        loop {
            if let ToWorker::HeartbeatAnswer(answer) = self.next().await {
                return answer;
            }
        }
    }

    pub async fn next(&mut self) -> ToWorker {
        let next = self.channel.rx.next_message();
        let message = tokio::time::timeout(Duration::from_secs(20), next).await.expect("a message comes");
        message.expect("the session lives").expect("the session goes on")
    }

    /// The next assignment; reports that it lives, and holds nothing, while it waits.
    pub async fn assignment(&mut self) -> Assignment {
        self.next_assignment(&[]).await
    }

    /// The next assignment; reports what it holds while it waits.
    pub async fn next_assignment(&mut self, holds: &[(TaskId, Epoch)]) -> Assignment {
        for _ in 0..200 {
            match tokio::time::timeout(TIMING.heartbeat, self.channel.rx.next_message()).await {
                Ok(message) => {
                    if let Some(ToWorker::Assign(assignment)) = message.expect("the session lives") {
                        return assignment;
                    }
                }
                Err(_) => self.report(holds).await,
            }
        }
        panic!("no assignment comes");
    }

    pub async fn output(&self, task: TaskId, epoch: Epoch) -> Result<Attempt, Error> {
        let request = TaskOutput { task, epoch, incarnation: self.incarnation };
        let (accepted, channel) = self.link.open(&request, call()).await?;
        Ok(Attempt { epoch, accepted, channel })
    }

    /// Takes an assignment and runs it to its end with this output.
    pub async fn run(&mut self, bodies: Vec<Body>) -> Assignment {
        let assignment = self.assignment().await;
        self.beat(&[(assignment.task, assignment.epoch)]).await;
        let mut attempt = self.output(assignment.task, assignment.epoch).await.expect("the epoch is current");
        let count = bodies.len() as u64;
        attempt.send(0, bodies).await;
        assert_eq!(attempt.acknowledged().await, Seq(count));
        assignment
    }
}

pub fn session(incarnation: Incarnation, slots: u32) -> WorkerSession {
    WorkerSession {
        incarnation,
        name: "played".into(),
        pool: "default".into(),
        slots,
        agents: vec!["shell".into(), "noop".into()],
        labels: Default::default(),
        containment: Containment::Subreaper,
        build: "test".into(),
        resources: Default::default(),
    }
}

/// An attempt's stream of records.
pub struct Attempt {
    pub epoch: Epoch,
    pub accepted: OutputAccepted,
    pub channel: Channel,
}

impl Attempt {
    pub async fn send(&mut self, first: u64, bodies: Vec<Body>) {
        let record = |(index, body)| Record {
            offset: Offset(0),
            origin: Origin::Worker { epoch: self.epoch, seq: Seq(first + index as u64) },
            time: Timestamp(0),
            body,
        };
        let records: Vec<_> = bodies.into_iter().enumerate().map(record).collect();
        let message = FromAttempt::from(Records::new(&records));
        self.channel.tx.send_message(&message).await.expect("the stream lives");
    }

    pub async fn answer(&mut self) -> Option<ToAttempt> {
        self.channel.rx.next_message().await.expect("the stream lives")
    }

    pub async fn acknowledged(&mut self) -> Seq {
        match self.answer().await {
            Some(ToAttempt::Acknowledged(acknowledged)) => acknowledged.next_seq,
            other => panic!("not acknowledged: {other:?}"),
        }
    }
}

pub async fn follow(link: &Link, task: TaskId, from: StartAt) -> (u32, Channel) {
    let request = Follow { task, from, follow: true, without_output: false, generation: None };
    let (following, channel) = link.open(&request, call()).await.expect("the task can be followed");
    (following.skip, channel)
}

/// Follows without the output.
pub async fn follow_quietly(link: &Link, task: TaskId, from: u64) -> Channel {
    let from = StartAt::Offset(Offset(from));
    let request = Follow { task, from, follow: true, without_output: true, generation: None };
    link.open(&request, call()).await.expect("the task can be followed").1
}

/// Reads a log to its end.
pub async fn read(channel: &mut Channel) -> (Vec<Record>, End) {
    let mut records = Vec::new();
    loop {
        match next(channel).await {
            FollowItem::Records(more) => records.extend(more.decode().expect("records")),
            FollowItem::End(end) => return (records, end),
            FollowItem::Idle(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

pub async fn next(channel: &mut Channel) -> FollowItem {
    let next = channel.rx.next_message();
    let item = tokio::time::timeout(Duration::from_secs(30), next).await.expect("something comes");
    item.expect("the stream lives").expect("the log has an end")
}

/// The records of a whole log. Its offsets are dense from 0.
pub async fn log(link: &Link, task: TaskId) -> Vec<Record> {
    let (_, mut channel) = follow(link, task, StartAt::Offset(Offset(0))).await;
    let (records, end) = read(&mut channel).await;
    let offsets: Vec<_> = records.iter().map(|record| record.offset.0).collect();
    assert_eq!(offsets, (0..end.next.0).collect::<Vec<_>>(), "dense offsets");
    records
}

/// Names of the records of a log, for comparing.
pub fn kinds(records: &[Record]) -> Vec<&'static str> {
    let name = |record: &Record| {
        let kind = record.body.kind();
        Body::KNOWN.iter().find(|known| (known.0, known.1) == kind).map_or("unknown", |known| known.2)
    };
    records.iter().map(name).collect()
}

pub fn refusal<T>(result: Result<T, Error>, code: ErrorCode) -> String {
    match result {
        Err(Error::Refused(reply)) if reply.is(code) => reply.message,
        Err(other) => panic!("not refused as {code:?}: {other:?}"),
        Ok(_) => panic!("not refused"),
    }
}

pub async fn ask<R: Request>(link: &Link, request: R) -> Result<R::Response, Error> {
    link.call(&request, call()).await
}
