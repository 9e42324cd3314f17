//! A controller and one worker `box` of their own, and a user who has joined them.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ado::client::{Client, Config};
use ado::env::Env;
use ado::tasks::Tasks;
use ado_certs::Identity;
use ado_proto::request::Submit;
use ado_proto::spec::{Input, TaskSpec};

use crate::support::{Ran, Running, Service, TestEnv, on_terminal};

/// Ends with the test.
pub(crate) struct Mesh {
    worker: Option<Service>,
    _controller: Service,
    address: String,
    // After the services: it is their home.
    env: TestEnv,
}

impl Mesh {
    /// Of a worker with four slots.
    pub(crate) fn start() -> Self {
        let env = TestEnv::new();
        let listen = ["controller", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "-o", "json"];
        let mut controller = Service::start(&env, listen.iter().chain(&["--log-level", "error"]));
        let said = controller.json();
        env.ado(["join", said["join"].as_str().expect("a join string")]).assert_code(0);
        let made = env.ado(["--remote", "token", "create", "--role", "worker"]);
        let worker = ["--name", "box", "--slots", "4", "--label", "gpu=yes", "--log-level", "error"];
        let worker = Service::start(&env, ["worker", "--join", made.stdout().trim()].iter().chain(&worker));
        let address = said["quic"][0].as_str().expect("an address").to_owned();
        let mesh = Self { worker: Some(worker), _controller: controller, address, env };
        // A task that has run tells that the worker is there.
        mesh.ado(["run", "--name", "first", "true"]).assert_code(0);
        mesh
    }

    /// The user's home and directory.
    pub(crate) fn env(&self) -> &TestEnv {
        &self.env
    }

    /// A command that talks to this mesh.
    pub(crate) fn command(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = self.env.command(args);
        command.env("ADO_CONTEXT", "remote");
        command
    }

    /// Runs one to its end.
    pub(crate) fn ado(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Ran {
        Ran::of(&mut self.command(args))
    }

    /// Starts one.
    pub(crate) fn start_command(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Running {
        Running::start(self.command(args))
    }

    /// Runs one on a terminal: what is on the screen in the end, and the exit code.
    pub(crate) fn in_terminal(&self, args: &[&str], rows: u16, cols: u16) -> (String, Option<i32>) {
        self.env.in_terminal(std::iter::once(&"--remote").chain(args), rows, cols)
    }

    /// Runs one on a terminal: every byte it wrote, and the exit code.
    pub(crate) fn bytes_in_terminal(
        &self,
        args: &[&str],
        env: &[(&str, &str)],
        rows: u16,
        cols: u16,
    ) -> (Vec<u8>, Option<i32>) {
        let mut command = self.command(args);
        on_terminal(command.env("TERM", "xterm-256color").envs(env.iter().copied()), rows, cols)
    }

    /// Submits a task and returns its id.
    pub(crate) fn submit(&self, args: &[&str]) -> String {
        let ran = self.ado(["run", "--detach"].iter().chain(args));
        ran.assert_code(0);
        ran.stdout().trim().to_owned()
    }

    /// Submits a task for every command line as one group. Returns the group's short id.
    pub(crate) fn submit_group(&self, pool: &str, lines: &[&str]) -> String {
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        let (address, home) = (self.address.clone(), self.env.home().join("contexts/remote/identity"));
        let specs = lines.iter().map(|line| {
            let spec = TaskSpec::new("shell", Input::Text((*line).to_owned()));
            TaskSpec { pool: pool.to_owned(), ..spec }
        });
        let submit = Submit { name: None, specs: specs.collect(), copies: 1 };
        let submitted = runtime.block_on(async {
            let tasks = Tasks::new();
            let config = Config {
                addresses: Arc::new(move || vec![address.clone()]),
                identity: Identity::load(&home).expect("it has joined"),
                namespace: None,
                reconnect_interval: Duration::from_millis(200),
                timeout: Duration::from_secs(60),
                websocket: None,
            };
            let client = Client::connect(config, Env::system(), &tasks).expect("a socket");
            let submitted = client.submit(&submit, client.request_id()).await.expect("it is taken");
            client.close().await;
            tasks.stop(Duration::from_secs(5)).await;
            submitted
        });
        submitted.group.expect("more than one").short()
    }

    /// Waits for the end of the worker, which somebody has drained.
    pub(crate) fn worker_ends(&mut self) {
        self.worker.take().expect("it runs").ends();
    }

    /// Starts the worker again.
    pub(crate) fn start_worker(&mut self) {
        let worker = ["worker", "--name", "box", "--slots", "4", "--label", "gpu=yes", "--log-level", "error"];
        self.worker = Some(Service::start(&self.env, worker));
    }

    /// Ends the worker as a power cut would.
    pub(crate) fn kill_worker(&mut self) {
        self.worker.take().expect("it runs").kill();
    }

    /// Stops the worker; what it held goes back.
    pub(crate) fn stop_worker(&mut self) {
        self.worker.take().expect("it runs").stop();
    }
}
