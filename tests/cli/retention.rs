//! What is too much of a log goes, and who reads it is told so.

use std::fs;

use crate::promises::eventually;
use crate::support::TestEnv;

#[test]
fn the_oldest_output_of_a_long_log_goes_and_readers_are_told() {
    let env = TestEnv::new();
    let up = env.command(["up"]).env("ADO_MAX_LOG_BYTES", "64Ki").env("ADO_HEARTBEAT_INTERVAL", "100").status();
    assert!(up.is_ok_and(|status| status.success()));
    let id = env.submit(
        "for n in $(seq 1 40); do head -c 20000 /dev/zero | tr '\\0' x; echo \" $n\"; sleep 0.01; done
         until test -e go; do sleep 0.02; done; echo last",
    );
    eventually("all is written, and some of it is gone", || {
        let logs = env.ado(["logs", &id]);
        logs.stdout().ends_with(" 40\n") && logs.stderr().contains("no longer kept")
    });
    let logs = env.ado(["logs", &id]);
    logs.assert_code(0);
    assert!(logs.stdout().len() < 800_000 && logs.stdout().ends_with(" 40\n"), "{} bytes", logs.stdout().len());
    let events = env.ado(["logs", &id, "-o", "json"]).json_lines();
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap_or_default().to_owned()).collect();
    assert!(kinds.starts_with(&["submitted".into(), "assigned".into(), "started".into()]), "{kinds:?}");
    let gone: u64 =
        events.iter().filter(|event| event["type"] == "truncated").filter_map(|event| event["bytes"].as_u64()).sum();
    assert!(gone > 100_000, "{gone}");
    fs::write(env.work().join("go"), "").unwrap();
    env.ado(["wait", &id]).assert_code(0);
    // What was written last may be read from memory for a moment, whole.
    eventually("the end is there, and that the beginning is not", || {
        let logs = env.ado(["logs", &id]);
        logs.stdout().ends_with(" 40\nlast\n") && logs.stderr().contains("no longer kept")
    });
}
