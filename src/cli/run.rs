//! `ado run`: submit a task, and watch it.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use ado_proto::request::{Submit, Submitted};
use ado_proto::spec::{Input, TaskSpec};
use ado_proto::{RequestId, TaskId};
use serde_json::json;

use super::Global;
use super::error::{Error, Kind};
use super::output::{Format, print};
use super::painter::{Lines, Look};
use super::session::{App, Session};
use super::signals::Signals;
use super::values;
use super::watch::{OnInterrupt, Watch};
use crate::config::{Config, Flags};

/// Run a task and watch its output
///
/// TEXT is a prompt for an AI agent, or a command line for the agent `shell` (run by /bin/sh -c). After `--` comes a
/// program with its arguments, run as they are. With `--output json` every record is one line of JSON.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["text", "argv"]))]
pub(crate) struct Args {
    /// What the agent is asked to do
    text: Option<String>,
    /// Program and arguments
    #[arg(last = true, value_name = "PROGRAM")]
    argv: Vec<String>,
    /// Who does it: shell, noop (does nothing); default: shell
    #[arg(long, short)]
    agent: Option<String>,
    /// Set a variable of its environment (public: shown to whoever may see the task)
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = values::pair)]
    env: Vec<(String, String)>,
    /// Run it in this directory of the worker; default: here on this machine, a fresh directory elsewhere
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Kill it after this long (30s, 10m, 1h)
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    time_limit: Option<Duration>,
    /// Try again this often when it fails
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// Run it earlier (higher) or later (lower): one step is worth a minute of waiting
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value_t)]
    priority: i32,
    /// Run it on a worker of this pool
    #[arg(long, value_name = "NAME", default_value = "default")]
    pool: String,
    /// Run it on a worker with this label
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::pair)]
    label: Vec<(String, String)>,
    /// Call it by this name
    #[arg(long)]
    name: Option<String>,
    /// Do not watch: print the task's id and leave
    #[arg(long, short)]
    detach: bool,
    /// Submit once, however often this is repeated with the same key: a UUIDv7, good for 24 hours
    #[arg(long, value_name = "UUID")]
    idempotency_key: Option<RequestId>,
    /// Write bytes as they are, even to a terminal
    #[arg(long)]
    raw: bool,
    /// What Ctrl-C does
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    on_interrupt: OnInterrupt,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let session = app.session().await?;
    let fresh = session.client.request_id();
    let key = args.idempotency_key.unwrap_or(fresh);
    if key.0.get_version_num() != 7 {
        return Err(Error::usage(format!(
            "`{key}` is no UUIDv7: nobody could tell how old it is, and repeat it safely"
        ))
        .hint(format!("use a new one: --idempotency-key {fresh}")));
    }
    let spec = spec(&args, &app.config, session.is_local())?;
    let request = Submit { name: args.name.clone(), specs: vec![spec], copies: 1 };
    // Until here Ctrl-C ends the process as it always does: nothing is lost yet.
    let mut signals = Signals::catch()?;
    let submit = session.client.submit(&request, key);
    let submitted = tokio::select! {
        biased;
        _ = signals.next() => return Err(Error::new(Kind::Interrupted, "stopped before the task was accepted").hint(session.command("list"))),
        submitted = submit => submitted.map_err(|error| repeatable(error, key))?,
    };
    let [task] = submitted.tasks[..] else {
        return Err(Error::new(Kind::Network, "the controller answered with another number of tasks than one"));
    };
    // This machine's own worker may only just have been started.
    let sure = session.is_local() && args.pool == "default" && args.label.is_empty();
    let people = app.global.output == Format::Text && !app.global.quiet;
    if submitted.eligible_workers == 0 && !sure && people {
        eprintln!("{}: no worker can take it now; it waits for one", task.short());
    }
    if args.detach {
        print(app.global.output, &detached(task, &submitted), || task.short())?;
        session.close().await;
        return Ok(0);
    }
    let finish = watch(&app, &args, &session, task).run(&mut signals).await?;
    session.close().await;
    Ok(finish.code())
}

fn watch<'a>(app: &App, args: &Args, session: &'a Session, task: TaskId) -> Watch<'a> {
    let look = look(&app.global, args.raw);
    Watch { on_interrupt: args.on_interrupt, ..Watch::new(session, task, look) }
}

/// How a watching command shows a task by default.
pub(crate) fn look(global: &Global, raw: bool) -> Look {
    Look {
        format: global.output,
        stdout_terminal: std::io::stdout().is_terminal(),
        stderr_terminal: std::io::stderr().is_terminal(),
        raw,
        lines: if global.quiet { Lines::None } else { Lines::Fitting },
        stream: None,
        epoch: None,
    }
}

fn detached(task: TaskId, submitted: &Submitted) -> serde_json::Value {
    json!({ "taskId": task, "shortId": task.short(), "eligibleWorkers": submitted.eligible_workers })
}

/// When nobody knows whether the task was accepted, the same key finds out without running it twice.
fn repeatable(error: crate::client::Error, key: RequestId) -> Error {
    let unknown = error.is_transient();
    let error = Error::from(error);
    if unknown { error.hint(format!("repeat the command with --idempotency-key {key}: it runs once")) } else { error }
}

fn spec(args: &Args, config: &Config, local: bool) -> Result<TaskSpec, Error> {
    let input = match &args.text {
        Some(text) => Input::Text(text.clone()),
        None => Input::Argv(args.argv.clone()),
    };
    let agent = args.agent.clone().unwrap_or_else(|| config.task.agent.clone());
    let time_limit = args.time_limit.or(config.task.time_limit);
    let milliseconds = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    Ok(TaskSpec {
        input,
        env: args.env.iter().cloned().collect(),
        cwd: cwd(args.cwd.as_deref(), local)?,
        time_limit_ms: time_limit.map(milliseconds),
        max_retries: args.retries.unwrap_or_else(|| config.max_retries(&agent)),
        priority: args.priority,
        pool: args.pool.clone(),
        labels: args.label.iter().cloned().collect::<BTreeMap<_, _>>(),
        agent,
    })
}

/// The local worker sees the caller's directories; others do not.
fn cwd(given: Option<&str>, local: bool) -> Result<Option<String>, Error> {
    let Some(path) = given.or(local.then_some(".")) else { return Ok(None) };
    if !local {
        return Ok(Some(path.into()));
    }
    let absolute = std::path::absolute(path).and_then(std::fs::canonicalize);
    let absolute = absolute.map_err(|error| Error::usage(format!("cannot run in `{path}`")).because(error))?;
    let text = absolute.to_str().ok_or_else(|| Error::usage(format!("`{}` is not UTF-8", absolute.display())))?;
    Ok(Some(text.into()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Result<Args, clap::Error> {
        Line::try_parse_from(std::iter::once(&"run").chain(line)).map(|line| line.args)
    }

    fn config(env: &[(&str, &str)]) -> Config {
        let env = env.iter().chain(&[("HOME", "/h")]).map(|(name, value)| ((*name).into(), (*value).into())).collect();
        crate::config::resolve(&Flags::default(), &env, None).unwrap()
    }

    #[test]
    fn text_or_a_program_but_not_both() {
        let spec = |line: &[&str]| spec(&args(line).unwrap(), &config(&[]), false).unwrap();
        assert_eq!(spec(&["echo hi"]).input, Input::Text("echo hi".into()));
        assert_eq!(spec(&["--", "echo", "-n", "hi"]).input, Input::Argv(["echo", "-n", "hi"].map(Into::into).into()));
        assert!(args(&[]).is_err() && args(&["a", "b"]).is_err() && args(&["a", "--", "b"]).is_err());
    }

    #[test]
    fn flags_win_over_the_configuration() {
        let line = ["x", "-a", "noop", "--time-limit", "1m", "-e", "A=1", "-e", "B=2=3", "--label", "gpu=yes"];
        let settings = config(&[("ADO_TIME_LIMIT", "5000"), ("ADO_RETRIES", "2")]);
        let given = spec(&args(&line).unwrap(), &settings, false).unwrap();
        assert_eq!((given.agent.as_str(), given.time_limit_ms, given.max_retries), ("noop", Some(60_000), 2));
        assert_eq!(given.env, BTreeMap::from([("A".into(), "1".into()), ("B".into(), "2=3".into())]));
        assert_eq!(given.labels, BTreeMap::from([("gpu".into(), "yes".into())]));
        let defaults = spec(&args(&["x"]).unwrap(), &settings, false).unwrap();
        assert_eq!((defaults.agent.as_str(), defaults.time_limit_ms), ("shell", Some(5_000)));
    }

    #[test]
    fn only_the_local_worker_runs_where_the_caller_is() {
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert_eq!(cwd(None, true).unwrap().as_deref(), here.to_str());
        assert_eq!(cwd(None, false).unwrap(), None);
        assert_eq!(cwd(Some("work"), false).unwrap().as_deref(), Some("work"));
        let missing = cwd(Some("no/such/dir"), true).unwrap_err().render(Format::Text);
        assert!(missing.starts_with("error: cannot run in `no/such/dir`: "), "{missing}");
    }
}
