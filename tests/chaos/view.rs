//! A viewer that is killed and started again where it was.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use ado_proto::TaskId;
use base64::Engine as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::time::Instant;

use crate::mesh::{Mesh, whole_lines};
use crate::oracle::{Seen, View};

/// Between a viewer's giving up and its next life.
const PAUSE: Duration = Duration::from_millis(300);

pub(crate) struct Viewer {
    pub(crate) task: TaskId,
    command: &'static str,
    from: u64,
    seen: Vec<Seen>,
    over: bool,
    child: Option<Child>,
    out: PathBuf,
    rest_until: Instant,
    /// What it complained of when it gave up by itself.
    pub(crate) complaints: Vec<String>,
}

impl Viewer {
    /// Looks at a task from an offset on.
    pub(crate) fn of(mesh: &Mesh, number: usize, task: TaskId, from: u64) -> Self {
        let command = if number.is_multiple_of(2) { "logs" } else { "attach" };
        let out = mesh.path(&format!("logs/v{number}"));
        let rest_until = Instant::now();
        Self {
            task,
            command,
            from,
            seen: Vec::new(),
            over: false,
            child: None,
            out,
            rest_until,
            complaints: Vec::new(),
        }
    }

    /// Starts it if it does not run; takes what it saw when it has ended. Whether it has seen the end.
    pub(crate) fn tend(&mut self, mesh: &Mesh) -> bool {
        if let Some(child) = &mut self.child {
            match child.try_wait().expect("it is ours") {
                None => return false,
                Some(_) => self.take(true),
            }
        }
        if !self.over && self.rest_until <= Instant::now() {
            let next = self.seen.last().map_or(self.from, |seen| seen.offset + 1);
            let (task, from) = (self.task.to_string(), next.to_string());
            let mut command = mesh.command(&[self.command, &task, "--from", &from, "-o", "json"]);
            if self.command == "logs" {
                command.arg("--follow");
            }
            let file = |end: &str| std::fs::File::create(self.out.with_extension(end)).expect("a file");
            let child = command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err")).spawn();
            self.child = Some(child.expect("ado starts"));
        }
        self.over
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        Some(i32::try_from(self.child.as_ref()?.id()).expect("a pid"))
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            self.take(false);
        }
    }

    /// Of a life that is over. Its last line may be cut off: that was not seen.
    fn take(&mut self, by_itself: bool) {
        self.child = None;
        let before = self.seen.len();
        for line in whole_lines(&self.out.with_extension("out")) {
            let record: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let Some(offset) = record["offset"].as_u64() else {
                self.complaints.push(format!("an unexpected line: {line}"));
                continue;
            };
            let base64 = |text| base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
            let data = match (&record["type"], &record["data"], &record["dataBase64"]) {
                (Value::String(kind), Value::String(text), _) if kind == "output" => Some(text.clone().into_bytes()),
                (Value::String(kind), _, Value::String(text)) if kind == "output" => Some(base64(text)),
                _ => None,
            };
            self.seen.push(Seen { offset, data });
            self.over |= ["completed", "failed", "cancelled"].iter().any(|end| record["type"] == *end);
        }
        if by_itself && !self.over {
            let stderr = std::fs::read_to_string(self.out.with_extension("err")).unwrap_or_default();
            // It found no store when it began, and said so clearly. One that watches waits.
            let refused = self.seen.len() == before && stderr.contains("\"kind\":\"unavailable\"");
            if !refused {
                self.complaints.push(format!("a viewer gave up: {}", stderr.trim()));
            }
            self.rest_until = Instant::now() + PAUSE;
        }
    }

    pub(crate) fn view(self) -> View {
        let mut this = self;
        View { from: this.from, seen: std::mem::take(&mut this.seen) }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A stopped process takes a SIGKILL too.
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}
