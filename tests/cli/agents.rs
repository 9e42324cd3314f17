//! AI agents as they are: their real programs, a model that does as a test says, nothing else of the network.
//!
//! In the full tier (`ADO_TEST=full`) the programs are installed from npm, once, beside what is built.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};

use serde_json::{Value, json};

use crate::processes;
use crate::servers;
use crate::support::{Ran, Running, TestEnv};

/// The agents of a machine, and the model they talk to.
struct Rig {
    env: TestEnv,
    api: Api,
}

/// A scripted model. See the program.
struct Api {
    child: Child,
    url: String,
}

/// One of the agents, and its words for things.
#[derive(Debug, Clone, Copy)]
struct Agent {
    name: &'static str,
    api: &'static str,
    key: &'static str,
    url: &'static str,
    shell: &'static str,
    allow: &'static str,
    deny: &'static str,
}

const CLAUDE: Agent = Agent {
    name: "claude-code",
    api: "fake_anthropic.py",
    key: "ANTHROPIC_API_KEY",
    url: "ANTHROPIC_BASE_URL",
    shell: "Bash",
    allow: "allow",
    deny: "deny",
};
const GEMINI: Agent = Agent {
    name: "gemini-cli",
    api: "fake_gemini.py",
    key: "GEMINI_API_KEY",
    url: "GOOGLE_GEMINI_BASE_URL",
    shell: "run_shell_command",
    allow: "proceed_once",
    deny: "cancel",
};
/// Nobody may see it.
const KEY: &str = "key-of-nobody-1234";

/// Where the agents are; `None` (said loudly): skip the test.
fn installed() -> Option<&'static Path> {
    static INSTALLED: OnceLock<PathBuf> = OnceLock::new();
    static ONE: Mutex<()> = Mutex::new(());
    if !servers::full() {
        eprintln!("SKIPPED: set ADO_TEST=full (root) to have AI agents installed from npm");
        return None;
    }
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let dir = INSTALLED.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let there = |program: &'static str| {
            move || {
                std::env::split_paths("/usr/local/bin:/usr/bin:/bin").map(|at| at.join(program)).find(|at| at.exists())
            }
        };
        for (program, package) in [("node", "nodejs"), ("npm", "npm"), ("python3", "python3")] {
            servers::program(program, package, there(program)).expect("it is installed");
        }
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agents");
        let script = root.join("deploy/agents/install.sh");
        let status = Command::new("sh").arg(script).arg("--dir").arg(&dir).status().expect("a shell");
        assert!(status.success(), "the agents cannot be installed");
        dir
    });
    Some(dir)
}

impl Api {
    fn start(program: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/agents").join(program);
        let mut python = Command::new("python3");
        let mut child = python.arg(script).stdout(Stdio::piped()).spawn().expect("python");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).expect("its address");
        Self { child, url: line.trim().trim_start_matches("listening ").to_owned() }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rig {
    fn new(agent: Agent) -> Option<Self> {
        let installed = installed()?;
        let env = TestEnv::new();
        std::os::unix::fs::symlink(installed, env.home().join("agents")).expect("a link");
        Some(Self { env, api: Api::start(agent.api) })
    }

    /// A command that knows the model and its key, as the worker that it may start does.
    fn command(&self, agent: Agent, args: &[&str]) -> Command {
        let mut command = self.env.command(args);
        command.env(agent.key, KEY).env(agent.url, &self.api.url).env("CLAUDE_CODE_MAX_RETRIES", "1");
        command
    }

    fn ado(&self, agent: Agent, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(agent, args))
    }

    /// Submits a plan of the model's; the id of the task.
    fn submit(&self, agent: Agent, flags: &[&str], plan: &Value) -> String {
        let prompt = format!("PLAN: {plan}");
        let line =
            [&["run", "--detach", "--agent", agent.name, "--retries", "0"][..], flags, &[prompt.as_str()]].concat();
        let ran = self.ado(agent, &line);
        ran.assert_code(0);
        ran.stdout().trim().to_owned()
    }

    /// Follows a task from its beginning.
    fn follow(&self, agent: Agent, task: &str) -> Events {
        Events(Running::start(self.command(agent, &["attach", task, "--from", "start", "--output", "json"])))
    }
}

/// The events of a task, as they come.
struct Events(Running);

impl Events {
    /// Waits for one.
    #[track_caller]
    fn until(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        loop {
            let event: Value = serde_json::from_str(&self.0.line()).expect("an event");
            if is_it(&event) {
                return event;
            }
            let over = ["completed", "failed", "cancelled"].iter().any(|word| event["type"] == *word);
            assert!(!over, "it ended before that: {event}");
        }
    }

    #[track_caller]
    fn until_type(&mut self, word: &str) -> Value {
        self.until(|event| event["type"] == word)
    }
}

fn data(event: &Value, stream: &str) -> String {
    if event["stream"] == stream { event["data"].as_str().unwrap_or_default().into() } else { String::new() }
}

/// Several turns, each with a tool whose output is seen while it runs; words and tools apart; cost and turns at the end.
fn works(agent: Agent) {
    let Some(rig) = Rig::new(agent) else { return };
    let gate = rig.env.work().join("gate");
    let waits = format!("echo begun; while [ ! -e {} ]; do sleep 0.05; done; echo over >&2; exit 3", gate.display());
    let plan = json!([
        { "text": "I look first.", "tool": agent.shell, "input": { "command": waits, "description": "wait" } },
        { "text": "I write.", "tool": agent.shell, "input": { "command": format!("echo {KEY} > made"), "description": "write" } },
        { "text": format!("All is well, {KEY}.") },
    ]);
    let task = rig.submit(agent, &["--allow", "shell", "--silence-limit", "60s"], &plan);
    let mut events = rig.follow(agent, &task);
    events.until(|event| data(event, "tool").contains("begun\n"));
    // Only now it may go on: what was seen was seen before the tool had ended.
    std::fs::write(&gate, "").expect("a file");
    let usage = events.until_type("usage");
    assert!(usage["turns"].as_u64() >= Some(2) && usage["inputTokens"].as_u64() > Some(0), "{usage}");
    if agent.name == "claude-code" {
        assert!(usage["costUsd"].as_f64() > Some(0.0) && usage["turns"] == 3, "{usage}");
    }
    events.until_type("completed");
    let logs = rig.ado(agent, &["logs", &task]);
    assert_eq!(logs.stdout(), "I look first.\nI write.\nAll is well, ***.\n", "{}", logs.stderr());
    let tools = rig.ado(agent, &["logs", &task, "--stream", "tool"]);
    assert!(tools.stderr().contains("begun\nover\n") && !tools.stderr().contains(KEY), "{}", tools.stderr());
    let made = std::fs::read_to_string(rig.env.work().join("made")).expect("what it wrote");
    assert_eq!(made.trim(), KEY, "what the agent does is done as it says it, and only hidden from who looks");
    let status = rig.ado(agent, &["status", &task]);
    assert!(status.stdout().contains("tokens read"), "{}", status.stdout());
}

#[test]
fn claude_code_works_in_several_turns_and_its_tools_are_seen_while_they_run() {
    works(CLAUDE);
}

#[test]
fn gemini_cli_works_in_several_turns_and_its_tools_are_seen_while_they_run() {
    works(GEMINI);
}

/// Asks before it uses a tool; the answer comes from another command; one answer counts.
fn asks(agent: Agent) {
    let Some(rig) = Rig::new(agent) else { return };
    let plan = json!([
        { "text": "I write.", "tool": agent.shell, "input": { "command": "touch made", "description": "write" } },
        { "text": "done" },
    ]);
    for (answer, is_made) in [(agent.deny, false), (agent.allow, true)] {
        let task = rig.submit(agent, &[], &plan);
        let mut events = rig.follow(agent, &task);
        let asked = events.until_type("hitl_required");
        assert!(asked["reason"].as_str().expect("a reason").contains("touch made"), "{asked}");
        let waiting = rig.ado(agent, &["list", "--waiting", "--ids"]);
        assert_eq!(waiting.stdout().trim(), task);
        let wrong = rig.ado(agent, &["answer", &task, "perhaps"]);
        wrong.assert_code(125);
        assert!(wrong.stderr().contains(agent.allow), "it says what can be answered: {}", wrong.stderr());
        let line = ["answer", &task, answer, "--ask", asked["requestId"].as_str().expect("an id")];
        rig.ado(agent, &line).assert_code(0);
        let other = if is_made { agent.deny } else { agent.allow };
        let late = rig.ado(agent, &["answer", &task, other]);
        assert!(late.stdout().contains("already") || late.stderr().contains("already"), "{}", late.stderr());
        events.until_type("hitl_closed");
        events.until_type("completed");
        assert_eq!(rig.env.work().join("made").exists(), is_made);
    }
    // Nobody answers: it is denied after a while, and the log says why.
    std::fs::remove_file(rig.env.work().join("made")).expect("it was made");
    let task = rig.submit(agent, &["--answer-limit", "1s"], &plan);
    let mut events = rig.follow(agent, &task);
    let answered = events.until_type("hitl_answered");
    assert_eq!((&answered["by"], &answered["option"]), (&Value::Null, &json!(agent.deny)));
    events.until_type("completed");
    assert!(!rig.env.work().join("made").exists());
}

#[test]
fn claude_code_asks_and_is_answered_from_elsewhere() {
    asks(CLAUDE);
}

#[test]
fn gemini_cli_asks_and_is_answered_from_elsewhere() {
    asks(GEMINI);
}

#[test]
fn claude_code_asks_what_only_a_person_knows() {
    let Some(rig) = Rig::new(CLAUDE) else { return };
    let option = |label: &str| json!({ "label": label, "description": "one" });
    let question = json!({ "question": "Which db?", "header": "db", "multiSelect": false,
        "options": [option("sqlite"), option("postgres")] });
    let plan = json!([{ "text": "I ask.", "tool": "AskUserQuestion", "input": { "questions": [question] } }, { "text": "fine" }]);
    let task = rig.submit(CLAUDE, &[], &plan);
    let mut events = rig.follow(CLAUDE, &task);
    assert_eq!(events.until_type("hitl_required")["reason"], "Which db?");
    rig.ado(CLAUDE, &["answer", &task, "post"]).assert_code(0);
    assert_eq!(events.until_type("hitl_answered")["option"], "postgres");
    events.until_type("completed");
}

/// What an agent started is gone when its task is cancelled, wherever it went.
fn is_cancelled(agent: Agent) {
    let Some(rig) = Rig::new(agent) else { return };
    let command = "echo begun; setsid tail -f /dev/null & tail -f /dev/null";
    let plan = json!([{ "text": "x", "tool": agent.shell, "input": { "command": command, "description": "wait" } }, { "text": "done" }]);
    let task = rig.submit(agent, &["--allow", "shell"], &plan);
    let status = rig.ado(agent, &["status", &task, "--output", "json"]).json();
    let mark = format!("ADO_TASK_ID={}", status["taskId"].as_str().expect("an id"));
    rig.follow(agent, &task).until(|event| data(event, "tool").contains("begun\n"));
    assert!(processes::marked(&mark).len() >= 4, "the agent, a shell, and two of its own");
    rig.ado(agent, &["cancel", &task]).assert_code(0);
    assert_eq!(processes::marked(&mark), [] as [i32; 0], "processes are left");
}

#[test]
fn nothing_is_left_of_a_cancelled_claude_code() {
    is_cancelled(CLAUDE);
}

#[test]
fn nothing_is_left_of_a_cancelled_gemini_cli() {
    is_cancelled(GEMINI);
}

/// A model's API that is away: the task waits, no attempt is lost, and it is said which.
#[test]
fn an_api_that_answers_with_an_error_is_told_apart() {
    for (status, away, words) in [
        (401, true, "did not accept the credential (401)"),
        (429, true, "is limiting requests (429)"),
        (529, true, "has failed or is overloaded (529)"),
        (400, false, "refused the request (400)"),
    ] {
        let Some(rig) = Rig::new(CLAUDE) else { return };
        let plan = json!([{ "http_status": status, "error_type": "x_error" }]);
        let task = rig.submit(CLAUDE, &["--env", "CLAUDE_CODE_MAX_RETRIES=1"], &plan);
        let mut events = rig.follow(CLAUDE, &task);
        let end = events.until(|event| event["type"] == "requeued" || event["type"] == "failed");
        let why = end["reason"].as_str().or(end["error"].as_str()).unwrap_or_default();
        assert!(why.contains(words), "{status}: {why}");
        assert_eq!((end["type"] == "requeued", end["charged"] == json!(false)), (away, away), "{end}");
        if away {
            rig.ado(CLAUDE, &["cancel", &task]).assert_code(0);
        }
    }
}

#[test]
fn an_api_that_hangs_up_is_tried_again_and_one_that_hangs_is_given_up() {
    let Some(rig) = Rig::new(CLAUDE) else { return };
    let task = rig.submit(CLAUDE, &[], &json!([{ "text": "cut off in the middle", "drop": true }]));
    rig.follow(CLAUDE, &task).until_type("completed");
    let plan = json!([{ "text": "late", "before_s": 600 }]);
    let task = rig.submit(CLAUDE, &["--silence-limit", "3s"], &plan);
    let ran = rig.ado(CLAUDE, &["wait", &task]);
    ran.assert_code(124);
}

#[test]
fn a_limit_of_tokens_ends_it_for_good() {
    let Some(rig) = Rig::new(CLAUDE) else { return };
    let step = json!({ "text": "on", "tool": "Bash", "input": { "command": "true", "description": "x" } });
    let task = rig.submit(CLAUDE, &["--allow", "shell", "--max-tokens", "100"], &json!([step, { "text": "done" }]));
    let failed = rig.follow(CLAUDE, &task).until(|event| event["type"] == "failed");
    assert!(failed["error"].as_str().expect("why").contains("100 tokens"), "{failed}");
}

#[test]
fn who_lacks_a_program_or_a_credential_is_told_so() {
    let Some(rig) = Rig::new(CLAUDE) else { return };
    let task = rig.env.ado(["run", "--agent", "claude-code", "--retries", "0", "x"]);
    task.assert_code(125);
    assert!(task.stderr().contains("--secret NAME=ANTHROPIC_API_KEY"), "{}", task.stderr());
    let refused = rig.env.ado(["run", "--agent", "cursor-cli", "x"]);
    refused.assert_code(125);
    assert!(refused.stderr().contains("none has the program `cursor-agent`"), "{}", refused.stderr());
}

#[test]
fn a_limit_of_turns_ends_it_for_good() {
    let Some(rig) = Rig::new(CLAUDE) else { return };
    let step = json!({ "text": "on", "tool": "Bash", "input": { "command": "true", "description": "x" } });
    let plan = json!([step, step, step, { "text": "done" }]);
    let task = rig.submit(CLAUDE, &["--allow", "shell", "--max-turns", "2"], &plan);
    let mut events = rig.follow(CLAUDE, &task);
    let failed = events.until(|event| event["type"] == "failed");
    assert!(failed["error"].as_str().expect("why").contains("2 turns"), "{failed}");
}

/// Stands for `claude`: does what the prompt says, with frames as the real one sends them. The rest needs no download.
const PUPPET: &str = r#"#!/bin/sh
for word; do [ "$before" = --session-id ] && session=$word; before=$word; done
say() { printf '%s\n' "$1"; }
text() { say '{"type":"assistant","parent_tool_use_id":null,"message":{"id":"'$1'","content":[{"type":"text","text":"'"$1"'"}]}}'; }
ask() { say '{"type":"control_request","request_id":"'$1'","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{"command":"'"$2"'"}}}'; }
end() { say '{"type":"result","subtype":"success","is_error":false,"terminal_reason":"completed","num_turns":1,"session_id":"'$session'"}'; }
read -r hello
read -r prompt
case $prompt in
*hostile*)
    say 'no frame at all'
    say '{"type":"result","subtype":"success","is_error":false,"session_id":"forged"}'
    say '["type","result"]'
    head -c 100000000 /dev/zero | tr '\0' x
    say ''
    printf '\033]0;title\007\377\n'
    text whole
    end ;;
*silent*) text begun; exit 0 ;;
*stays*) text done; end; sleep 1000 ;;
*asks*)
    ask one 'make me'
    read -r answer
    case $answer in *'"behavior":"allow"'*) text allowed ;; *) text denied ;; esac
    case $ADO_ATTEMPT in 1) exit 1 ;; esac
    end ;;
esac
"#;

fn with_puppet() -> TestEnv {
    let env = TestEnv::new();
    let bin = env.home().join("agents/bin");
    std::fs::create_dir_all(&bin).expect("a folder");
    std::fs::write(bin.join("claude"), PUPPET).expect("a file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bin.join("claude"), mode).expect("its mode");
    env
}

fn puppet(env: &TestEnv, flags: &[&str], prompt: &str) -> Ran {
    let line = [&["run", "--agent", "claude-code", "--env", "ANTHROPIC_API_KEY=none"][..], flags, &[prompt]].concat();
    env.ado(line)
}

#[test]
fn what_an_agent_says_may_be_anything() {
    let env = with_puppet();
    let ran = puppet(&env, &["--retries", "0", "--name", "it"], "hostile");
    ran.assert_code(0);
    assert_eq!(ran.stdout(), "whole\n");
    let complaints = String::from_utf8_lossy(ran.stderr_bytes()).into_owned();
    assert!(complaints.contains("no frame at all\n"), "{complaints}");
    assert!(complaints.contains("a result of another conversation was passed by"), "{complaints}");
    assert!(complaints.contains("a line of 100000000 bytes on its stdout is no frame"), "{complaints}");
    assert!(complaints.len() < 10_000, "none of that line is kept");
}

#[test]
fn who_ends_without_a_result_has_failed_and_who_has_one_need_not_end() {
    let env = with_puppet();
    let silent = puppet(&env, &["--retries", "0"], "silent");
    silent.assert_code(1);
    assert!(silent.stderr().contains("exited with code 0 without a result"), "{}", silent.stderr());
    let stays = puppet(&env, &["--retries", "0", "--name", "stays"], "stays");
    stays.assert_code(0);
    let id = env.ado(["status", "stays", "-o", "json"]).json()["taskId"].as_str().expect("an id").to_owned();
    assert_eq!(processes::marked(&format!("ADO_TASK_ID={id}")), [] as [i32; 0]);
}

#[test]
fn an_answer_counts_for_the_next_attempt_that_asks_the_same() {
    let env = with_puppet();
    let task = puppet(&env, &["--detach", "--retries", "3"], "asks");
    let task = task.stdout().trim();
    let mut events = Events(env.start(["attach", task, "--from", "start", "-o", "json"]));
    let asked = events.until_type("hitl_required");
    assert_eq!((&asked["tool"], &asked["detail"]["command"]), (&json!("Bash"), &json!("make me")));
    env.ado(["answer", task, "allow"]).assert_code(0);
    events.until_type("requeued");
    // It asks again, and nobody is asked.
    loop {
        let event = events.until(|_| true);
        assert_ne!(event["type"], "hitl_required");
        if event["type"] == "completed" {
            break;
        }
    }
    assert_eq!(env.ado(["logs", task]).stdout(), "allowed\nallowed\n");
}

#[test]
fn rules_answer_without_asking() {
    let env = with_puppet();
    for (flags, said) in
        [(&["--allow", "shell(make *)"][..], "allowed\n"), (&["--allow", "Bash", "--deny", "shell(*me)"], "denied\n")]
    {
        // The first attempt fails: see the puppet.
        let flags = [flags, &["--retries", "1"]].concat();
        let ran = puppet(&env, &flags, "asks");
        ran.assert_code(0);
        assert_eq!(ran.stdout(), format!("{said}{said}"));
    }
    let wrong = puppet(&env, &["--allow", "shell(x"], "asks");
    assert!(wrong.code() != Some(0) && wrong.stderr().contains("is no rule"), "{}", wrong.stderr());
}

#[test]
fn a_plain_task_asks_and_waits_and_an_answer_is_kept_for_the_next_attempt() {
    let env = TestEnv::new();
    let script =
        "said=$(ado task ask 'Deploy?' --option yes --option no) && echo said $said && test $ADO_ATTEMPT -eq 2";
    let task = env.submit_with(&["--retries", "1", "--time-limit", "20s"], script);
    let mut events = Events(env.start(["attach", &task, "--from", "start", "-o", "json"]));
    let asked = events.until_type("hitl_required");
    assert_eq!((&asked["reason"], &asked["options"]), (&json!("Deploy?"), &json!(["yes", "no"])));
    assert_eq!(env.ado(["list", "--waiting", "--ids"]).stdout().trim(), task);
    env.ado(["answer", &task, "maybe"]).assert_code(125);
    env.ado(["answer", &task, "y"]).assert_code(0);
    events.until_type("requeued");
    events.until_type("completed");
    assert_eq!(env.ado(["logs", &task]).stdout(), "said yes\nsaid yes\n");
    let words = env.submit("echo name $(ado task ask 'Name?')");
    Events(env.start(["attach", &words, "-o", "json"])).until_type("hitl_required");
    env.ado(["answer", &words, "--text", "ann of box"]).assert_code(0);
    env.ado(["wait", &words]).assert_code(0);
    assert_eq!(env.ado(["logs", &words]).stdout(), "name ann of box\n");
    let late = env.ado(["run", "ado task ask 'Now?' --option yes --option no --default no --wait 1s"]);
    assert_eq!(late.stdout(), "no\n", "{}", late.stderr());
}

/// `ado tool-run` with a named pipe in place of a worker: what came through that.
fn tool(env: &TestEnv, script: &str) -> (Ran, Vec<u8>) {
    const END: &[u8] = b"that was all";
    let path = env.work().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    // Both ends: opening waits for nobody.
    let mut pipe = std::fs::File::options().read(true).write(true).open(&path).expect("its ends");
    let mut reading = pipe.try_clone().expect("a descriptor");
    let reader = std::thread::spawn(move || {
        let (mut all, mut buffer) = (Vec::new(), [0; 65536]);
        while !all.ends_with(END) {
            let read = reading.read(&mut buffer).expect("the pipe");
            all.extend_from_slice(&buffer[..read]);
        }
        all.truncate(all.len() - END.len());
        all
    });
    let ran = Ran::of(env.command(["tool-run", "/bin/sh", "-c", script]).env("ADO_TOOL_OUTPUT", &path));
    pipe.write_all(END).expect("the pipe");
    std::fs::remove_file(&path).expect("it was there");
    (ran, reader.join().expect("what came"))
}

#[test]
fn a_tool_is_as_it_was_and_seen_as_well() {
    let env = TestEnv::new();
    let (ran, seen) = tool(&env, "echo one; echo two >&2; echo ${ADO_TOOL_OUTPUT-none}; exit 3");
    ran.assert_code(3);
    assert_eq!((ran.stdout(), ran.stderr()), ("one\nnone\n", "two\n"));
    let seen = String::from_utf8(seen).expect("text");
    assert!(["one\n", "two\n", "none\n"].iter().all(|line| seen.contains(line)), "{seen}");
    let (ran, seen) = tool(&env, "head -c 3000000 /dev/zero | tr '\\0' z; kill -9 $$");
    ran.assert_code(137);
    assert_eq!((ran.bytes().len(), seen.len()), (3_000_000, 3_000_000));
}

#[test]
fn a_tool_is_over_when_its_program_is_and_what_it_left_writes_on() {
    let env = TestEnv::new();
    let gate = env.work().join("gate");
    let script = format!("(while [ ! -e {} ]; do sleep 0.05; done; echo late) & echo now", gate.display());
    let mut command = env.command(["tool-run", "/bin/sh", "-c", &script]);
    let path = env.work().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let ends = std::fs::File::options().read(true).write(true).open(&path).expect("both ends");
    let mut child = command.env("ADO_TOOL_OUTPUT", &path).spawn().expect("it starts");
    assert_eq!(child.wait().expect("its end").code(), Some(0), "what it left goes on");
    std::fs::write(gate, "").expect("a file");
    let mut all = String::new();
    child.stdout.take().expect("it is piped").read_to_string(&mut all).expect("all of it");
    assert_eq!(all, "now\nlate\n");
    drop(ends);
}

#[test]
fn a_tool_that_nobody_looks_at_is_only_run() {
    let env = TestEnv::new();
    let gone = Ran::of(env.command(["tool-run", "/bin/sh", "-c", "echo hi"]).env("ADO_TOOL_OUTPUT", "/no/such/pipe"));
    gone.assert_code(0);
    assert_eq!(gone.stdout(), "hi\n");
    env.ado(["tool-run", "/no/such/program"]).assert_code(127);
}
