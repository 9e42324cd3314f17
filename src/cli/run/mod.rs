//! `ado run`: submit a task, or a group of them, and watch.

mod each;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use ado_proto::request::{Submit, Submitted};
use ado_proto::spec::{Input, Quota, Resources, Rules, TaskSpec};
use ado_proto::{GroupId, RequestId};
use serde_json::json;
use tokio::time::Instant;

use super::Global;
use super::error::{Error, Kind};
use super::output::{Format, print};
use super::session::App;
use super::signals::Signals;
use super::values;
use super::watch::{MOST_TASKS, OnInterrupt, Watch, Watched, look};
use crate::client::{self, Client};
use crate::config::{ByteSize, Config, Flags, MilliCpu};

/// Run a task, or a group of them, and watch the output
///
/// TEXT is a prompt for an AI agent, or a command line for the agent `shell` (run by /bin/sh -c). After `--` comes a
/// program with its arguments, run as they are. With `--output json` every record is one line of JSON.
///
/// Several tasks (`--workers`, `--each`) are a group: each is told its index, from 0, in ADO_GROUP_INDEX and their number
/// in ADO_GROUP_COUNT; every line of output begins with its index; the exit code is the first by index that is not 0.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["text", "argv", "each"]))]
pub(crate) struct Args {
    /// What the agent is asked to do
    text: Option<String>,
    /// Program and arguments
    #[arg(last = true, value_name = "PROGRAM")]
    argv: Vec<String>,
    /// Run it this many times at once, on as many workers as there are
    #[arg(long, short, value_name = "N", value_parser = copies, default_value_t = 1)]
    workers: u32,
    /// Run a task for each line of FILE (`-`: stdin) that is not empty: the line is its TEXT
    #[arg(long, value_name = "FILE")]
    each: Option<PathBuf>,
    /// Who does it: claude-code, gemini-cli, cursor-cli, shell, noop (does nothing); default: shell
    #[arg(long, short)]
    agent: Option<String>,
    /// Have an AI agent use this model
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Let an AI agent use a tool without asking: TOOL or TOOL(PATTERN), as in 'shell(cargo test*)'
    #[arg(long, value_name = "RULE", value_parser = values::rule)]
    allow: Vec<String>,
    /// Do not let it use a tool, whatever allows that
    #[arg(long, value_name = "RULE", value_parser = values::rule)]
    deny: Vec<String>,
    /// When it asks somebody, wait this long for an answer; after that it is denied
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    answer_limit: Option<Duration>,
    /// End an AI agent's attempt after this many answers of its model
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_turns: Option<u32>,
    /// End an AI agent's attempt when it has cost this many dollars
    #[arg(long, value_name = "DOLLARS", value_parser = values::micros)]
    max_cost: Option<u64>,
    /// End an AI agent's attempt when its model has read and written this many tokens
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_tokens: Option<u64>,
    /// Set a variable of its environment (public: shown to whoever may see the task)
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = values::pair)]
    env: Vec<(String, String)>,
    /// Give it a secret (`ado secret set`), in the variable NAME in capitals or in this one
    #[arg(long, value_name = "NAME[=VARIABLE]", value_parser = values::secret)]
    secret: Vec<(String, String)>,
    /// Run it in this directory of the worker; default: here on this machine, a fresh directory elsewhere
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// Kill it after this long (30s, 10m, 1h)
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    time_limit: Option<Duration>,
    /// Give a worker this long to get it to run
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    setup_limit: Option<Duration>,
    /// Kill it when it has said nothing for this long: no output, no progress
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    silence_limit: Option<Duration>,
    /// End it this long after its submission, whatever it does and however often it was tried
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    total_limit: Option<Duration>,
    /// Let it use this much processor time at most, in processors (2, 0.5, 500m)
    #[arg(long, value_name = "CPUS")]
    cpu: Option<MilliCpu>,
    /// Let it use this much memory at most (512Mi, 4Gi); it is killed when it needs more
    #[arg(long, value_name = "BYTES")]
    memory: Option<ByteSize>,
    /// Let it have this many processes and threads at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pids: Option<u32>,
    /// Try again this often when it fails
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// Keep all that is in its folder as a checkpoint from time to time: when it is tried again, wherever that is, it begins
    /// with that. It then gets a fresh directory on this machine, too
    #[arg(long, conflicts_with = "cwd")]
    checkpoint_workspace: bool,
    /// How often; default: `distributed.failover.checkpointInterval`, 30s
    #[arg(long, value_name = "DURATION", value_parser = values::duration, requires = "checkpoint_workspace")]
    checkpoint_interval: Option<Duration>,
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
    /// Do not watch: print the id of the task or the group and leave
    #[arg(long, short)]
    detach: bool,
    /// Submit once, however often this is repeated with the same key: a UUIDv7, good for 24 hours
    #[arg(long, value_name = "UUID")]
    idempotency_key: Option<RequestId>,
    /// Keep trying to submit for this long while the mesh, or its store, does not answer
    #[arg(long, value_name = "DURATION", value_parser = values::duration, default_value = "0s", hide_default_value = true)]
    retry_for: Duration,
    /// Write bytes as they are, even to a terminal
    #[arg(long)]
    raw: bool,
    /// What Ctrl-C does; default: ask on a terminal, detach elsewhere
    #[arg(long, value_enum, value_name = "WHAT")]
    on_interrupt: Option<OnInterrupt>,
}

/// Between two tries to submit: a try itself waits for whatever may be coming back.
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let on_interrupt = OnInterrupt::resolve(args.on_interrupt, global.output)?;
    let inputs = inputs(&args)?;
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
    let specs: Vec<_> = inputs.into_iter().map(|input| TaskSpec { input, ..spec.clone() }).collect();
    let expected = specs.len() * args.workers as usize;
    let request = Submit { name: args.name.clone(), specs, copies: args.workers };
    // Until here Ctrl-C ends the process as it always does: nothing is lost yet.
    let mut signals = Signals::catch()?;
    let people = app.global.output == Format::Text && !app.global.quiet;
    let submit = submit(&session.client, &request, key, args.retry_for, people);
    let submitted = tokio::select! {
        biased;
        _ = signals.next() => return Err(Error::new(Kind::Interrupted, "stopped before the task was accepted").hint(session.command("list"))),
        submitted = submit => submitted.map_err(|error| repeatable(error, key))?,
    };
    if submitted.tasks.len() != expected || submitted.tasks.is_empty() {
        return Err(Error::new(Kind::Network, format!("the controller made another number of tasks than {expected}")));
    }
    let name = submitted.group.map_or_else(|| submitted.tasks[0].short(), GroupId::short);
    // This machine's own worker may only just have been started.
    let sure = session.is_local()
        && args.pool == "default"
        && args.label.is_empty()
        && resources(&args) == Resources::default();
    if submitted.eligible_workers == 0 && !sure && people {
        let (them, wait) = if submitted.group.is_some() { ("its tasks", "they wait") } else { ("it", "it waits") };
        eprintln!("{name}: no worker can take {them} now; {wait} for one");
    }
    if args.detach {
        print(app.global.output, &detached(&submitted), || name)?;
        session.close().await;
        return Ok(0);
    }
    let look = look(&app.global, args.raw);
    let tasks = submitted.tasks.iter().map(|task| Watched::new(*task, look)).collect();
    let (env, group) = (app.env.clone(), submitted.group);
    let watch = Watch { session: &session, env, group, tasks, follow: true, look, on_interrupt };
    let finish = watch.run(&mut signals).await?;
    session.close().await;
    Ok(finish.code())
}

/// Submits; while that fails in a way that may pass, again and again for this long. Under one key it happens once.
async fn submit(
    client: &Client,
    request: &Submit,
    key: RequestId,
    retry_for: Duration,
    people: bool,
) -> Result<Submitted, client::Error> {
    let until = Instant::now() + retry_for;
    let mut told = !people;
    loop {
        match client.submit(request, key).await {
            Err(error) if error.is_transient() && Instant::now() + BETWEEN_TRIES < until => {
                if !std::mem::replace(&mut told, true) {
                    eprint!(
                        "trying for {}: {}",
                        values::show_duration(retry_for),
                        Error::from(error).render(Format::Text)
                    );
                }
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            answered => return answered,
        }
    }
}

/// What is asked of each task.
fn inputs(args: &Args) -> Result<Vec<Input>, Error> {
    match (&args.each, &args.text) {
        (Some(_), _) if args.workers > 1 => {
            let why = "--each makes a task of every line: --workers would run each line again and again";
            Err(Error::usage(why).hint("leave out --workers: the tasks run on as many workers as there are"))
        }
        (Some(file), _) => Ok(each::read(file)?.into_iter().map(Input::Text).collect()),
        (None, Some(text)) => Ok(vec![Input::Text(text.clone())]),
        (None, None) => Ok(vec![Input::Argv(args.argv.clone())]),
    }
}

/// How many copies of a task.
fn copies(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(copies) if copies >= 1 && copies as usize <= MOST_TASKS => Ok(copies),
        Ok(0) => Err("a group has at least one task".into()),
        Ok(_) => Err(format!("a group has at most {MOST_TASKS} tasks")),
        Err(_) => Err(format!("`{text}` is no number from 1 to {MOST_TASKS}")),
    }
}

fn detached(submitted: &Submitted) -> serde_json::Value {
    match submitted.group {
        Some(group) => json!({
            "groupId": group,
            "shortId": group.short(),
            "eligibleWorkers": submitted.eligible_workers,
            "tasks": submitted.tasks.iter().map(|task| json!({ "taskId": task, "shortId": task.short() })).collect::<Vec<_>>(),
        }),
        None => json!({
            "taskId": submitted.tasks[0],
            "shortId": submitted.tasks[0].short(),
            "eligibleWorkers": submitted.eligible_workers,
        }),
    }
}

/// When nobody knows whether the task was accepted, the same key finds out without running it twice.
fn repeatable(error: client::Error, key: RequestId) -> Error {
    let unknown = error.is_transient();
    let error = Error::from(error);
    if !unknown {
        return error;
    }
    error
        .hint(format!("repeat the command with --idempotency-key {key}: it runs once"))
        .hint("or let it wait by itself: --retry-for 60s")
}

/// All but what is asked.
fn spec(args: &Args, config: &Config, local: bool) -> Result<TaskSpec, Error> {
    let agent = args.agent.clone().unwrap_or_else(|| config.task.agent.clone());
    let milliseconds = |given: Option<Duration>, default: Option<Duration>| {
        given.or(default).map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX))
    };
    Ok(TaskSpec {
        input: Input::Text(String::new()),
        env: args.env.iter().cloned().collect(),
        cwd: cwd(args.cwd.as_deref(), local && !args.checkpoint_workspace)?,
        time_limit_ms: milliseconds(args.time_limit, config.task.time_limit),
        setup_limit_ms: milliseconds(args.setup_limit, config.task.setup_limit),
        silence_limit_ms: milliseconds(args.silence_limit, config.task.silence_limit),
        total_limit_ms: milliseconds(args.total_limit, config.task.total_limit),
        max_retries: args.retries.unwrap_or_else(|| config.max_retries(&agent)),
        priority: args.priority,
        pool: args.pool.clone(),
        labels: args.label.iter().cloned().collect::<BTreeMap<_, _>>(),
        secrets: args.secret.iter().cloned().collect(),
        resources: resources(args),
        snapshot_every_ms: milliseconds(args.checkpoint_interval, Some(config.failover.checkpoint_interval))
            .filter(|_| args.checkpoint_workspace),
        model: args.model.clone(),
        rules: Rules { deny: args.deny.clone(), allow: args.allow.clone() },
        answer_limit_ms: milliseconds(args.answer_limit, None),
        quota: Quota { turns: args.max_turns, cost_micros: args.max_cost, tokens: args.max_tokens },
        agent,
    })
}

fn resources(args: &Args) -> Resources {
    Resources { cpu_milli: args.cpu.map(|cpus| cpus.0), memory: args.memory.map(|bytes| bytes.0), pids: args.pids }
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
    use ado_proto::spec::Limit;
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
        let asked = |line: &[&str]| inputs(&args(line).unwrap()).unwrap();
        assert_eq!(asked(&["echo hi"]), [Input::Text("echo hi".into())]);
        assert_eq!(asked(&["--", "echo", "-n", "hi"]), [Input::Argv(["echo", "-n", "hi"].map(Into::into).into())]);
        assert!(args(&[]).is_err() && args(&["a", "b"]).is_err() && args(&["a", "--", "b"]).is_err());
        assert!(args(&["a", "--each", "f"]).is_err() && args(&["--each", "f", "--", "b"]).is_err());
    }

    #[test]
    fn groups_are_bounded_and_are_copies_or_lines() {
        assert_eq!(args(&["x"]).unwrap().workers, 1);
        assert_eq!(args(&["x", "--workers", "1000"]).unwrap().workers, 1000);
        for (number, message) in [("0", "at least one"), ("1001", "at most 1000"), ("x", "no number")] {
            let error = args(&["x", "--workers", number]).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let both = inputs(&args(&["--each", "f", "--workers", "2"]).unwrap()).unwrap_err().render(Format::Text);
        assert!(both.contains("--each makes a task of every line"), "{both}");
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
    fn every_limit_has_a_flag_and_a_key() {
        let limits = |line: &[&str], env: &[(&str, &str)]| {
            let spec = spec(&args(line).unwrap(), &config(env), false).unwrap();
            Limit::ALL.map(|limit| spec.limit(limit).map(|limit| limit.as_secs()))
        };
        let line = ["x", "--time-limit", "1s", "--setup-limit", "2s", "--silence-limit", "3s", "--total-limit", "4s"];
        let env = [
            ("ADO_TIME_LIMIT", "5s"),
            ("ADO_SETUP_LIMIT", "6s"),
            ("ADO_SILENCE_LIMIT", "7s"),
            ("ADO_TOTAL_LIMIT", "8s"),
        ];
        assert_eq!(limits(&["x"], &[]), [None; 4]);
        assert_eq!(limits(&["x"], &env), [5, 6, 7, 8].map(Some));
        assert_eq!(limits(&line, &env), [1, 2, 3, 4].map(Some));
    }

    #[test]
    fn limits_are_read_as_people_write_them() {
        let line = ["x", "--cpu", "1.5", "--memory", "256Mi", "--pids", "50"];
        let given = resources(&args(&line).unwrap());
        assert_eq!(given, Resources { cpu_milli: Some(1500), memory: Some(256 << 20), pids: Some(50) });
        for (flag, value) in [("--cpu", "0"), ("--cpu", "much"), ("--memory", "4GB"), ("--pids", "0")] {
            let error = args(&["x", flag, value]).unwrap_err().to_string();
            assert!(error.contains(value) && error.contains(flag), "{error}");
        }
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
