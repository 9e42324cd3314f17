//! Groups through the real binary, piped and in JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::promises::eventually;
use crate::schema::Schema;
use crate::support::{Ran, Service, TestEnv};

fn group(env: &TestEnv, args: &[&str]) -> String {
    let ran = env.ado([&["run", "--detach"], args].concat());
    ran.assert_code(0);
    let id = ran.stdout().trim().to_owned();
    assert!(id.starts_with("group-"), "{id}");
    id
}

/// The lines of each member, in order.
fn by_member(text: &str) -> BTreeMap<usize, Vec<&str>> {
    let mut members: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for line in text.lines() {
        let (index, rest) = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).expect(line);
        members.entry(index.parse().expect(line)).or_default().push(rest);
    }
    members
}

#[test]
fn every_worker_is_told_its_place_and_every_line_says_whose_it_is() {
    let env = TestEnv::new();
    let ran =
        env.ado(["run", "--workers", "3", "echo $ADO_GROUP_INDEX of $ADO_GROUP_COUNT; echo oops >&2; printf end"]);
    ran.assert_code(0);
    let members = by_member(ran.stdout());
    let expected: Vec<_> = (0..3).map(|index| vec![format!("{index} of 3"), "end".into()]).collect();
    assert_eq!(members.into_values().collect::<Vec<_>>(), expected);
    let (summary, oops): (Vec<_>, Vec<_>) = ran.stderr().lines().partition(|line| line.starts_with("group-"));
    assert_eq!(by_member(&oops.join("\n")), (0..3).map(|index| (index, vec!["oops"])).collect());
    let [summary] = summary[..] else { panic!("{summary:?}") };
    assert!(summary.ends_with(": 3 completed"), "{summary}");
    let quiet = env.ado(["run", "--quiet", "--workers", "2", "true"]);
    quiet.assert_code(0);
    assert_eq!((quiet.stdout(), quiet.stderr()), ("", ""));
}

#[test]
fn a_group_has_one_exit_code_and_says_what_failed() {
    let env = TestEnv::new();
    let ran = env.ado(["run", "--workers", "4", "test $ADO_GROUP_INDEX -lt 2 || exit $((ADO_GROUP_INDEX + 3))"]);
    ran.assert_code(5);
    let lines: Vec<_> = ran.stderr().lines().collect();
    assert!(lines[0].ends_with(": 2 completed, 2 failed (2: exited with code 5; 3: exited with code 6)"), "{lines:?}");
    let hint = lines[1].strip_prefix("hint: ado ").expect(lines[1]);
    env.ado(hint.split(' ')).assert_code(0);
    let id = lines[0].split(':').next().unwrap();
    env.ado(["attach", id]).assert_code(5);
    env.ado(["attach", &id[..11]]).assert_code(5);
    env.ado(["logs", id]).assert_code(0);
}

#[test]
fn each_line_of_a_file_is_a_task() {
    let env = TestEnv::new();
    std::fs::write(env.work().join("tasks"), "echo first\n\n   \necho second; exit 3\r\n").unwrap();
    let ran = env.ado(["run", "--each", "tasks"]);
    ran.assert_code(3);
    assert_eq!(by_member(ran.stdout()), BTreeMap::from([(0, vec!["first"]), (1, vec!["second"])]));

    let mut command = env.command(["run", "--each", "-"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"echo only\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b"only\n"[..]), "one is no group");

    for (text, message) in [("", "no line with text"), (&"true\n".repeat(1001), "at most 1000 tasks")] {
        std::fs::write(env.work().join("wrong"), text).unwrap();
        let ran = env.ado(["run", "--each", "wrong"]);
        ran.assert_code(125);
        assert!(ran.stderr().contains(message), "{}", ran.stderr());
    }
    for (args, message) in [
        (&["run", "--each", "tasks", "--workers", "2"][..], "--each makes a task of every line"),
        (&["run", "--each", "missing"], "cannot read missing"),
        (&["run", "--each", "tasks", "text"], "cannot be used with"),
        (&["run", "--workers", "0", "true"], "at least one task"),
        (&["run", "--workers", "1001", "true"], "at most 1000 tasks"),
        (&["run", "--on-interrupt", "ask", "true"], "needs a terminal"),
    ] {
        let ran = env.ado(args);
        ran.assert_code(125);
        assert!(ran.stderr().contains(message), "{}", ran.stderr());
    }
}

#[test]
fn programs_get_events_of_all_tasks_and_a_summary() {
    let env = TestEnv::new();
    let ran = env.ado(["run", "-o", "json", "--workers", "3", "echo $ADO_GROUP_INDEX; exit $ADO_GROUP_INDEX"]);
    ran.assert_code(1);
    let mut offsets: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for event in ran.json_lines() {
        offsets.entry(event["taskId"].as_str().unwrap().into()).or_default().push(event["offset"].as_u64().unwrap());
    }
    assert_eq!(offsets.len(), 3);
    assert!(offsets.values().all(|offsets| *offsets == (0..6).collect::<Vec<_>>()), "{offsets:?}");
    let summary: Value = serde_json::from_str(ran.stderr()).unwrap();
    assert_eq!(
        (&summary["type"], &summary["completed"], &summary["failed"]),
        (&json!("summary"), &json!(1), &json!(2))
    );
    assert_eq!((&summary["exitCode"], &summary["tasks"][2]["result"]["exitCode"]), (&json!(1), &json!(2)));
    let ids: BTreeSet<_> =
        summary["tasks"].as_array().unwrap().iter().map(|task| task["taskId"].as_str().unwrap()).collect();
    assert_eq!(ids, offsets.keys().map(String::as_str).collect());

    let detached = env.ado(["run", "-o", "json", "--detach", "--workers", "2", "true"]).json();
    assert!(detached["shortId"].as_str().unwrap().starts_with("group-") && detached["groupId"].is_string());
    assert_eq!(detached["tasks"].as_array().unwrap().len(), 2);

    let mut left = env.start(["run", "-o", "json", "--workers", "2", "sleep 600"]);
    left.line();
    left.signal(Signal::SIGTERM);
    let left: Value = serde_json::from_str(&left.end().2).unwrap();
    let schema = Schema::of(&env);
    schema.check("groupSummary", &summary);
    schema.check("submittedGroup", &detached);
    schema.check("groupDetached", &left);
}

#[test]
fn logs_of_a_group_are_the_same_whenever_they_are_asked_for() {
    let env = TestEnv::new();
    let id = group(&env, &["--workers", "20", "for i in 1 2 3; do echo $ADO_GROUP_INDEX.$i; done"]);
    env.ado(["attach", &id]).assert_code(0);
    let expected: String =
        (0..20).flat_map(|task| (1..4).map(move |line| format!("[{task}] {task}.{line}\n"))).collect();
    assert_eq!(env.ado(["logs", &id]).stdout(), expected);
    assert_eq!(env.ado(["logs", "--final", &id]).stdout(), expected);
    let last: String = (0..20).map(|task| format!("[{task}] {task}.3\n")).collect();
    assert_eq!(env.ado(["logs", &id, "--tail", "1"]).stdout(), last);
    let followed = env.ado(["logs", "--follow", &id]);
    followed.assert_code(0);
    assert_eq!(by_member(followed.stdout()), by_member(&expected));
}

#[test]
fn the_command_that_is_printed_shows_what_was_not_shown_yet() {
    let env = TestEnv::new();
    let text = "echo $ADO_GROUP_INDEX begins; test $ADO_GROUP_INDEX = 0 && exit
        printf 'half '; while [ ! -e gate ]; do sleep 0.02; done; echo a line; echo ends; exit 4";
    // Each has a slot: none waits for another to end.
    env.command(["up"]).env("ADO_WORKER_SLOTS", "4").status().expect("ado starts");
    let mut running = env.start(["run", "--workers", "3", text]);
    let mut shown: Vec<String> = (0..3).map(|_| running.line()).collect();
    running.signal(Signal::SIGINT);
    let (code, rest, stderr) = running.end();
    shown.push(rest);
    assert_eq!(code, Some(0), "{stderr}");
    let command = stderr.lines().last().unwrap().trim().strip_prefix("ado ").expect(&stderr).to_owned();
    assert!(command.starts_with("attach group-") && command.contains(" --from-each "), "{command}");
    std::fs::write(env.work().join("gate"), "").unwrap();
    let continued = env.ado(command.split(' '));
    continued.assert_code(4);
    shown.push(continued.stdout().to_owned());
    let all = shown.concat();
    let members = by_member(&all);
    assert_eq!(members[&0], ["0 begins"]);
    for member in [1, 2] {
        // The line that was open is shown in two parts where the first of them had come.
        let text = members[&member].concat();
        assert_eq!(text, format!("{member} beginshalf a lineends"), "{all}");
    }
    assert!(continued.stderr().contains("1 completed, 2 failed (1: exited with code 4; 2: exited with code 4)"));

    let id = command.split(' ').nth(1).unwrap();
    let wrong = env.ado(["attach", id, "--from-each", "0,0"]);
    wrong.assert_code(125);
    assert!(wrong.stderr().contains("--from-each has 2 offsets") && wrong.stderr().contains("3 tasks"));
    let again = env.ado(["attach", id, "--from-each", "end:3"]);
    again.assert_code(4);
    assert_eq!(again.stdout(), "");
}

#[test]
fn one_of_a_group_can_be_cancelled_and_all_of_them() {
    let env = TestEnv::new();
    let id = group(&env, &["--workers", "3", "echo begun; sleep 600"]);
    let tasks = env.ado(["list", "-o", "json"]).json();
    let second = tasks.as_array().unwrap().iter().find(|task| task["group"]["index"] == 1).expect("it is listed");
    let attached = env.start(["attach", &id]);
    env.ado(["cancel", second["shortId"].as_str().unwrap()]).assert_code(0);
    env.ado(["cancel", &id]).assert_code(0);
    let (code, _, stderr) = attached.end();
    assert_eq!(code, Some(130), "{stderr}");
    assert!(stderr.contains(": 3 cancelled"), "{stderr}");
}

#[test]
fn fifty_tasks_write_a_hundred_lines_a_second_each() {
    let env = TestEnv::new();
    env.command(["up"]).env("ADO_WORKER_SLOTS", "50").status().expect("ado starts");
    let text = "i=0; while [ $i -lt 100 ]; do echo line $i of $ADO_GROUP_INDEX; i=$((i + 1)); sleep 0.01; done";
    let ran = env.ado(["run", "--workers", "50", text]);
    ran.assert_code(0);
    let members = by_member(ran.stdout());
    for index in 0..50 {
        let expected: Vec<_> = (0..100).map(|line| format!("line {line} of {index}")).collect();
        assert_eq!(members[&index], expected);
    }
}

#[test]
fn a_thousand_tasks_are_watched_at_once() {
    let env = TestEnv::new();
    let ran = Ran::of(&mut env.command(["run", "--agent", "noop", "--workers", "1000", "x"]));
    ran.assert_code(0);
    assert!(ran.stderr().ends_with(": 1000 completed\n"), "{}", ran.stderr());
    let id = ran.stderr().split(':').next().unwrap().to_owned();
    let logs = env.ado(["logs", "-o", "json", &id]).json_lines();
    let completed = logs.iter().filter(|event| event["type"] == "completed").count();
    assert_eq!(completed, 1000);
}

#[test]
fn more_tasks_than_a_connection_has_streams_are_read_in_turns() {
    /// More than are read at once.
    const PAUSED: usize = 195;
    const ALL: usize = 200;
    let env = TestEnv::new();
    env.ado(["up"]).assert_code(0);
    // Nobody runs them for now.
    let shown = env.work().join("shown");
    let mut command = env.command(["run", "--pool", "later", "--workers", &ALL.to_string(), "echo $ADO_GROUP_INDEX"]);
    let mut running = command.stdout(std::fs::File::create(&shown).unwrap()).spawn().unwrap();
    let mut ids = BTreeMap::new();
    eventually("they are submitted", || {
        let tasks = env.ado(["list", "-n", "1000", "-o", "json"]).json();
        let rows = tasks.as_array().unwrap().iter();
        ids = rows.map(|row| (row["group"]["index"].as_u64().unwrap(), row["shortId"].clone())).collect();
        ids.len() == ALL
    });
    // The first ones stay where they are: the last ones are read although those never end.
    for id in ids.values().take(PAUSED) {
        env.ado(["pause", id.as_str().unwrap()]).assert_code(0);
    }
    let join = env.ado(["token", "create", "--role", "worker"]).stdout().trim().to_owned();
    let worker = Service::start(&env, ["worker", "--pool", "later", "--join", &join, "-o", "json"]);
    let shown = || std::fs::read_to_string(&shown).unwrap();
    eventually("the last ones are shown", || shown().lines().count() == ALL - PAUSED);
    let expected: BTreeMap<usize, Vec<String>> = (PAUSED..ALL).map(|index| (index, vec![index.to_string()])).collect();
    let text = shown();
    let members: BTreeMap<_, _> = by_member(&text)
        .into_iter()
        .map(|(index, lines)| (index, lines.into_iter().map(Into::into).collect()))
        .collect();
    assert_eq!(members, expected);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(running.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(running.wait().unwrap().success());
    worker.stop();
}

#[test]
fn who_is_detached_is_told_by_whom_and_how_to_continue() {
    let env = TestEnv::new();
    env.command(["up"]).env("ADO_WORKER_SLOTS", "4").status().expect("ado starts");
    let text = "echo begun; while [ ! -e gate ]; do sleep 0.02; done; echo ended";
    let mut alone = env.start(["run", "--name", "alone", text]);
    assert_eq!(alone.line(), "begun\n");
    env.ado(["detach", "alone"]).assert_code(0);
    let (code, rest, stderr) = alone.end();
    assert_eq!((code, rest.as_str()), (Some(0), ""), "{stderr}");
    assert!(stderr.contains("detached by admin/"), "{stderr}");
    assert!(stderr.contains("the task goes on; continue with\n  ado attach task-"), "{stderr}");

    let mut group = env.start(["run", "--name", "several", "--workers", "2", text]);
    let begun = [group.line(), group.line()].concat();
    assert_eq!(by_member(&begun), BTreeMap::from([(0, vec!["begun"]), (1, vec!["begun"])]));
    env.ado(["detach", "several"]).assert_code(0);
    let (code, rest, stderr) = group.end();
    assert_eq!((code, rest.as_str()), (Some(0), ""), "{stderr}");
    let command = stderr.lines().last().unwrap().trim().strip_prefix("ado ").expect(&stderr).to_owned();
    assert!(stderr.contains("detached by admin/") && command.contains(" --from-each "), "{stderr}");
    std::fs::write(env.work().join("gate"), "").unwrap();
    let continued = env.ado(command.split(' '));
    continued.assert_code(0);
    assert_eq!(by_member(continued.stdout()), BTreeMap::from([(0, vec!["ended"]), (1, vec!["ended"])]));
    let quiet = env.ado(["run", "--detach", "--quiet", "--pool", "nobody", "--workers", "2", "true"]);
    quiet.assert_code(0);
    assert!(quiet.stderr().is_empty() && quiet.stdout().starts_with("group-") && quiet.stdout().lines().count() == 1);
    let waits = env.ado(["run", "--detach", "--pool", "nobody", "--workers", "2", "true"]);
    let group = waits.stdout().trim();
    assert_eq!(waits.stderr(), format!("{group}: no worker can take its tasks now; they wait for one\n"));
}

#[test]
fn who_leaves_while_nobody_reads_is_told_where_to_go_on_and_loses_nothing() {
    const LINES: usize = 60_000;
    let env = TestEnv::new();
    let text = format!("seq 1 {LINES}");
    let mut running = env.command(["run", "--workers", "2", &text]).spawn().unwrap();
    // Nobody reads; the tasks end nevertheless.
    let ended = || env.ado(["list", "--state", "completed", "-o", "json"]).json().as_array().unwrap().len() == 2;
    eventually("the tasks end", ended);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(running.id()).unwrap()), Signal::SIGTERM).unwrap();
    let code = running.wait().unwrap().code();
    let (mut shown, mut stderr) = (String::new(), String::new());
    running.stdout.take().unwrap().read_to_string(&mut shown).unwrap();
    running.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(code, Some(0), "{stderr}");
    let command = stderr.lines().last().unwrap().trim().strip_prefix("ado ").expect(&stderr).to_owned();
    let continued = env.ado(command.split(' '));
    continued.assert_code(0);
    // What was being written is shown again: nobody knows how much of it was read. The last line of it may be a part.
    shown.truncate(shown.rfind('\n').map_or(0, |end| end + 1));
    for (index, lines) in by_member(&(shown + continued.stdout())) {
        let seen: BTreeSet<_> = lines.into_iter().map(|line| line.parse::<usize>().unwrap()).collect();
        let lost: Vec<_> = (1..=LINES).filter(|line| !seen.contains(line)).collect();
        assert!(lost.is_empty(), "{} lines of {index} from {:?} on: {command}", lost.len(), lost.first());
    }
}
