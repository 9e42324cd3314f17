//! Secrets, through the real binary: they reach the task that names them, and nobody else.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::json;

use crate::promises::eventually;
use crate::support::{Running, TestEnv};

/// Long enough to be nothing else, with something to escape in it.
const VALUE: &str = "hunter2/\"hunter2\"+hunter2";

/// Sets a secret as a pipe would.
fn set(env: &TestEnv, name: &str, value: &str) {
    let mut command = env.command(["secret", "set", name, "-q"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("ado starts");
    child.stdin.take().expect("it is piped").write_all(value.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success());
}

/// Files below a folder that hold these bytes.
fn holders(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_symlink() {
            continue;
        }
        if entry.is_dir() {
            found.extend(holders(&entry, bytes));
        } else if fs::read(&entry).is_ok_and(|all| all.windows(bytes.len()).any(|window| window == bytes)) {
            found.push(entry.display().to_string());
        }
    }
    found
}

/// Whether any process was started with these words.
fn in_command_lines(bytes: &[u8]) -> bool {
    let all =
        fs::read_dir("/proc").map(|all| all.flatten().map(|entry| entry.path().join("cmdline")).collect::<Vec<_>>());
    let holds = |path: &std::path::PathBuf| {
        fs::read(path).is_ok_and(|line| line.windows(bytes.len()).any(|window| window == bytes))
    };
    all.unwrap_or_default().iter().any(holds)
}

#[test]
fn a_secret_reaches_its_task_and_is_nowhere_else() {
    let env = TestEnv::new();
    env.ado(["up"]).assert_code(0);
    set(&env, "api-key", &format!("{VALUE}\n"));
    let id = env.submit_with(
        &["--secret", "api-key", "--secret", "api-key=OTHER"],
        "test ${#API_KEY} = 25 && test \"$API_KEY\" = \"$OTHER\" || exit 9
         printf 'a=%s\\n' \"$API_KEY\"; printf '%s' \"$API_KEY\" | base64 -w0 >&2
         printf '%s' hunter2/; sleep 0.2; printf '%s\\n' '\"hunter2\"+hunter2'
         ado task log \"key $API_KEY\" -q; ado task progress 5 \"$API_KEY\" -q
         ado task checkpoint --data \"{\\\"key\\\":$(printf '%s' \"$API_KEY\" | sed 's/\"/\\\\\"/g; s/.*/\"&\"/')}\" -q
         until test -e go; do sleep 0.02; done",
    );
    eventually("it has said all", || {
        env.ado(["status", &id, "-o", "json"]).json()["checkpointData"] == json!({ "key": "***" })
    });
    assert!(!in_command_lines(VALUE.as_bytes()));
    assert_eq!(holders(env.home(), VALUE.as_bytes()), [] as [String; 0], "while it runs");
    fs::write(env.work().join("go"), "").unwrap();
    env.ado(["wait", &id]).assert_code(0);
    let logs = env.ado(["logs", &id]);
    assert!(logs.stdout().starts_with("a=***\n"), "{}", logs.stdout());
    assert!(logs.stderr().starts_with("***g=="), "all but the last bits: {}", logs.stderr());
    let all =
        [&["logs", &id, "-o", "json"][..], &["status", &id, "-o", "json"], &["status", &id], &["events"], &["audit"]];
    let said: String = all
        .into_iter()
        .map(|args| env.ado(args.iter().copied()))
        .map(|ran| format!("{}{}", ran.stdout(), ran.stderr()))
        .collect();
    assert!(
        said.contains("key ***") && said.contains(r#""secrets":{"API_KEY":"api-key","OTHER":"api-key"}"#),
        "{said}"
    );
    // What the command line says of it by itself is public.
    assert!(!logs.stdout().contains("\"+hunter2") && !said.contains(VALUE), "{said}");
    env.ado(["down"]).assert_code(0);
    assert_eq!(holders(env.home(), VALUE.as_bytes()), [] as [String; 0], "afterwards");
}

#[test]
fn a_secret_that_is_not_there_is_refused_and_one_that_was_removed_is_named() {
    let env = TestEnv::new();
    let refused = env.ado(["run", "--secret", "key", "true"]);
    refused.assert_code(125);
    assert!(refused.stderr().contains("there is no secret `key`") && refused.stderr().contains("ado secret set key"));
    set(&env, "key", "first-value");
    set(&env, "key", "second-value");
    let hidden = env.ado(["run", "--secret", "key", "test $KEY = second-value && echo $KEY"]);
    hidden.assert_code(0);
    assert_eq!(hidden.stdout(), "***\n");
    let command = env.command([
        "run",
        "--secret",
        "key",
        "--retries",
        "3",
        "echo begun; until test -e go; do sleep 0.02; done; exit 1",
    ]);
    let running = Running::start(command);
    eventually("the first attempt runs", || env.ado(["list", "-o", "json"]).stdout().contains(r#""status":"running""#));
    env.ado(["secret", "rm", "key"]).assert_code(0);
    fs::write(env.work().join("go"), "").unwrap();
    let (code, _, errors) = running.end();
    assert_eq!(code, Some(125), "{errors}");
    assert!(errors.contains("the secret `key` was removed"), "{errors}");
}
