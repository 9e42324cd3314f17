//! `ado bench latency`, briefly. How fast it is is nobody's business here.

use std::io::{BufRead, BufReader};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::TestEnv;

/// Longer than any machine that runs tests is slow.
const TARGET: &str = "10m";

#[test]
fn every_line_is_measured_once() {
    let env = TestEnv::new();
    let latency = ["bench", "latency", "--duration", "500ms", "--rate", "200", "--target", TARGET, "--workers", "2"];
    let ran = env.ado(latency.into_iter().chain(["-o", "json"]));
    ran.assert_code(0);
    let report = ran.json();
    let count = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{key}: {report}"));
    assert_eq!((count("tasks"), count("lines"), count("lost"), count("repeated")), (2, 200, 0, 0));
    assert_eq!((count("restarts"), count("rate"), count("lineBytes")), (0, 200, 100));
    let latency = &report["latency"];
    let at = |key: &str| latency[key].as_f64().unwrap_or_else(|| panic!("{key}: {report}"));
    let rising = [at("minMs"), at("p50Ms"), at("p90Ms"), at("p99Ms"), at("maxMs")];
    assert!(rising.is_sorted() && rising[0] > 0.0, "{report}");
    let counted: u64 = latency["histogram"].as_array().unwrap().iter().map(|b| b["lines"].as_u64().unwrap()).sum();
    assert_eq!(counted, 200);
    assert_eq!(latency["method"], "clock", "the task runs on this machine");
    assert!(report["roundTrip"]["controllerMs"].as_f64().unwrap() > 0.0);
    assert_eq!((&report["withinTarget"], &report["targetMs"]), (&json!(true), &json!(600_000.0)));
}

#[test]
fn a_target_that_is_missed_is_an_exit_code() {
    let env = TestEnv::new();
    let ran = env.ado(["bench", "latency", "--duration", "200ms", "--target", "0s"]);
    ran.assert_code(1);
    assert!(ran.stdout().contains("\nMISSED: p99 of ") && ran.stdout().contains("20 came, 0 lost, 0 repeated"));
    assert!(ran.stderr().starts_with("measuring for 200ms"), "{}", ran.stderr());
    let quiet = env.ado(["bench", "latency", "--duration", "200ms", "--target", TARGET, "--quiet"]);
    quiet.assert_code(0);
    assert_eq!(quiet.stderr(), "");
}

#[test]
fn a_worker_without_ado_is_told_apart_from_a_slow_one() {
    let env = TestEnv::new();
    let ran = env.ado(["bench", "latency", "--duration", "200ms", "--program", "no-such-ado"]);
    ran.assert_code(125);
    assert!(ran.stderr().contains("no-such-ado") && ran.stderr().contains("hint: ado bench latency --program"));
    let silly = env.ado(["bench", "latency", "--duration", "1h", "--rate", "100000"]);
    silly.assert_code(125);
    assert!(silly.stderr().contains("360000000 lines"), "{}", silly.stderr());
}

#[test]
fn stopping_it_cancels_its_tasks() {
    let env = TestEnv::new();
    let mut running = env.command(["bench", "latency", "--duration", "60s"]).spawn().expect("ado starts");
    let mut said = String::new();
    let mut stderr = BufReader::new(running.stderr.take().expect("it is piped"));
    stderr.read_line(&mut said).expect("its words");
    assert!(said.starts_with("measuring for 60s"), "{said}");
    let task = env.ado(["list", "-o", "json"]).json()[0]["shortId"].as_str().expect("an id").to_owned();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(running.id()).expect("a pid"));
    nix::sys::signal::kill(pid, Signal::SIGINT).expect("it runs");
    assert_eq!(running.wait().expect("it ends").code(), Some(130));
    env.ado(["attach", &task]).assert_code(130);
}
