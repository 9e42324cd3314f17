//! What fails, through the real binary: limits of time, what a task says of its own failure, the dead letter.

use serde_json::{Value, json};

use crate::promises::eventually;
use crate::schema::Schema;
use crate::support::TestEnv;

/// Attempts that a task had, and how it ended.
fn attempts(env: &TestEnv, task: &str) -> (usize, Value) {
    let events = env.ado(["logs", task, "-o", "json"]).json_lines();
    let attempts = events.iter().filter(|event| event["type"] == "assigned").count();
    (attempts, events.last().expect("an end")["result"].clone())
}

#[test]
fn every_limit_ends_a_task_and_is_named() {
    let env = TestEnv::new();
    let silent = env.ado(["run", "--name", "silent", "--silence-limit", "400ms", "echo on; sleep 600"]);
    silent.assert_code(124);
    assert_eq!(silent.stdout(), "on\n");
    assert!(silent.stderr().contains("failed: timed out: silent for 400ms"), "{}", silent.stderr());
    let result = json!({ "outcome": "failed", "timedOut": true, "limit": "silence" });
    assert_eq!(attempts(&env, "silent"), (1, result));
    // Whoever says something, by whatever way, is not silent.
    let talks = "for i in 1 2 3 4 5 6; do sleep 0.2; echo $i; done; for i in 1 2 3 4 5 6; do sleep 0.2; ado task progress $i; done";
    env.ado(["run", "--silence-limit", "1s", talks]).assert_code(0);
    let again =
        ["run", "--name", "again", "--silence-limit", "400ms", "--retries", "1", "test $ADO_ATTEMPT = 2 || sleep 600"];
    env.ado(again).assert_code(0);

    let whole = env.ado(["run", "--name", "whole", "--total-limit", "1s", "--retries", "9", "sleep 600"]);
    whole.assert_code(124);
    assert!(whole.stderr().contains("timed out: not over within 1s of its submission"), "{}", whole.stderr());
    let result = json!({ "outcome": "failed", "timedOut": true, "limit": "total" });
    assert_eq!(attempts(&env, "whole"), (1, result), "its time is not given anew");
    let between = env.ado(["run", "--name", "between", "--total-limit", "2s", "--retries", "99", "exit 3"]);
    between.assert_code(124);
    assert!(attempts(&env, "between").0 > 1, "over all its attempts, and the waiting between them");
    let nobody = env.ado(["run", "--total-limit", "300ms", "--label", "zone=moon", "true"]);
    nobody.assert_code(124);
    env.ado(["run", "--setup-limit", "1m", "true"]).assert_code(0);
}

#[test]
fn no_time_runs_while_a_task_is_paused() {
    let env = TestEnv::new();
    let limits = ["--silence-limit", "2s", "--total-limit", "3s", "--time-limit", "3s"];
    let task =
        [&["run", "--detach", "--name", "slow"], &limits[..], &["until test -e go; do sleep 0.02; done"]].concat();
    env.ado(task).assert_code(0);
    env.ado(["pause", "slow"]).assert_code(0);
    // Long enough for each of the limits, by the clock of a task that has the same and is not paused.
    env.ado([&["run"], &limits[..], &["sleep 600"]].concat()).assert_code(124);
    env.ado(["run", "--time-limit", "2s", "sleep 600"]).assert_code(124);
    std::fs::write(env.work().join("go"), "").unwrap();
    env.ado(["resume", "slow"]).assert_code(0);
    env.ado(["wait", "slow"]).assert_code(0);
}

#[test]
fn a_task_says_whether_trying_again_can_help() {
    let env = TestEnv::new();
    let text = "echo once; ado task fail --permanent 'the input is no JSON'; exit 7";
    let hopeless = env.ado(["run", "--name", "hopeless", "--retries", "3", text]);
    hopeless.assert_code(7);
    assert_eq!(hopeless.stdout(), "once\n");
    let result = json!({ "outcome": "failed", "hopeless": "the input is no JSON", "permanent": true, "exitCode": 7 });
    assert_eq!(attempts(&env, "hopeless"), (1, result));
    // An exit code of 0 after such a word is no success.
    env.ado(["run", "ado task fail --permanent broken"]).assert_code(125);

    let away =
        "test -e back && exit 0; touch back; ado task fail --unavailable 'quota used up' --retry-after 1ms; exit 1";
    let ran = env.ado(["run", "--name", "away", away]);
    ran.assert_code(0);
    assert!(ran.stderr().contains("queued again: not available: quota used up"), "{}", ran.stderr());
    let status = env.ado(["status", "away", "-o", "json"]).json();
    assert_eq!((&status["attempt"], &status["maxRetries"]), (&json!(1), &json!(0)), "no attempt was charged");
    let neither =
        env.ado(["run", "ado task fail oops; echo $?; ado task fail --permanent x --retry-after 1s; echo $?"]);
    assert_eq!(neither.stdout(), "125\n125\n", "{}", neither.stderr());
}

#[test]
fn the_dead_letter_is_listed_done_again_and_emptied() {
    let env = TestEnv::new();
    let schema = Schema::of(&env);
    let work =
        r#"test -e mended && { echo "from ${ADO_CHECKPOINT-anew}"; exit 0; }; ado task checkpoint --data 7; exit 3"#;
    env.ado(["run", "--name", "bad", "--retries", "1", work]).assert_code(3);
    env.ado(["run", "--name", "worse", "exit 4"]).assert_code(4);
    env.ado(["run", "true"]).assert_code(0);

    let listed = env.ado(["dead", "list"]);
    listed.assert_code(0);
    let lines: Vec<_> = listed.stdout().lines().collect();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(
        lines[0].starts_with("TASK") && lines[2].contains("2/2") && lines[2].contains("exited with code 3"),
        "{lines:#?}"
    );
    let only = |filter: &[&str]| env.ado([&["dead", "list", "--ids"], filter].concat()).stdout().lines().count();
    assert_eq!((only(&[]), only(&["--name", "bad"]), only(&["--agent", "noop"]), only(&["-n", "1"])), (2, 1, 0, 1));
    let json = env.ado(["dead", "list", "-o", "json"]).json();
    schema.check("tasks", &json);
    assert!(json.as_array().unwrap().iter().all(|task| task["deadLetter"] == true));

    std::fs::write(env.work().join("mended"), "").unwrap();
    let key = "--idempotency-key";
    // A UUIDv7 of now: the first is the clock, the rest is anything.
    let id = format!("{}7abc-8def-0123456789ab", &json[0]["taskId"].as_str().unwrap()[..14]);
    let retried = env.ado(["dead", "retry", "bad", key, &id, "-o", "json"]);
    retried.assert_code(0);
    let settled = retried.json();
    schema.check("deadSettled", &settled[0]);
    assert_eq!(env.ado(["dead", "retry", "bad", key, &id, "-o", "json"]).json(), settled, "said twice, done once");
    let new = settled[0]["retriedAs"].as_str().expect("a new task").to_owned();
    env.ado(["wait", &new]).assert_code(0);
    assert_eq!(env.ado(["logs", "bad"]).stdout(), "from 7\n", "its name goes on with it");
    env.ado(["logs", &new, "-o", "json"]).json_lines().iter().for_each(|event| schema.check("taskEvent", event));
    let state = env.ado(["status", &new, "-o", "json"]).json();
    assert_eq!((&state["retryOf"], &state["deadLetter"]), (&settled[0]["taskId"], &json!(false)));
    let again = env.ado(["dead", "retry", settled[0]["shortId"].as_str().unwrap()]);
    again.assert_code(0);
    assert!(again.stdout().contains(": already done again as task-"), "{}", again.stdout());
    let fine = env.ado(["dead", "retry", &new]);
    fine.assert_code(125);
    assert!(fine.stderr().contains("has not failed: it is completed"), "{}", fine.stderr());

    env.ado(["dead", "purge"]).assert_code(125);
    env.ado(["dead", "purge", "worse", "--older-than", "1s"]).assert_code(125);
    assert_eq!(env.ado(["dead", "purge", "--older-than", "1h"]).stdout(), "");
    let purged = env.ado(["dead", "purge", "--older-than", "0s"]);
    purged.assert_code(0);
    assert!(purged.stdout().ends_with(": purged\n"), "{}", purged.stdout());
    let empty = env.ado(["dead", "list"]);
    assert_eq!((empty.stdout(), empty.stderr()), ("", "the dead letter is empty\n"));
    env.ado(["logs", "worse"]).assert_code(0);
    let kinds = || env.ado(["events", "--tail", "100", "-o", "json"]).json_lines();
    eventually("events say so", || {
        let kinds: Vec<_> = kinds().iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect();
        ["task.retried", "task.purged"].iter().all(|kind| kinds.iter().any(|seen| seen == kind))
    });
}
