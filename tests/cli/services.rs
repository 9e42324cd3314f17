//! A controller whose truth is in PostgreSQL: what users see stays the same, and it outlives the controller's machine.

use serde_json::Value;

use crate::servers::postgres::Cluster;
use crate::support::{Ran, Service, TestEnv};

/// A controller that listens there; `more` are further arguments.
fn controller(server: &TestEnv, listen: &str, more: &[&str]) -> (Service, Value) {
    let own = ["controller", "--listen", listen, "--http", "127.0.0.1:0", "-o", "json", "--log-level", "error"];
    let mut controller = Service::start(server, own.iter().chain(more));
    let said = controller.json();
    (controller, said)
}

#[test]
fn tasks_and_logs_outlive_the_controller_and_the_database_servers_crash() {
    let Some(mut cluster) = Cluster::start() else { return };
    let (server, laptop, builder) = (TestEnv::new(), TestEnv::new(), TestEnv::new());
    let url = cluster.url("postgres");
    let (first, said) = controller(&server, "127.0.0.1:0", &["--database-url", &url]);
    laptop.ado(["join", said["join"].as_str().expect("a join string")]).assert_code(0);
    let token = laptop.ado(["--remote", "token", "create", "--role", "worker"]);
    token.assert_code(0);
    let worker = Service::start(
        &builder,
        ["worker", "--join", token.stdout().trim(), "--name", "builder", "--log-level", "error"],
    );
    let ran = laptop.ado(["run", "--remote", "--name", "one", "echo over there; echo oops >&2; exit 3"]);
    ran.assert_code(3);
    // On stderr is also that it waits, if the worker is slow to come.
    assert!(ran.stdout() == "over there\n" && ran.stderr().ends_with("oops\n"), "{}", ran.stderr());
    // It runs while its controller is restarted and the database is cut off, and notices neither.
    let gate = builder.work().join("gate");
    let waits = format!("echo begun; while [ ! -e {} ]; do sleep 0.05; done; echo done", gate.display());
    let mut watched = laptop.start(["run", "--remote", "--name", "two", &waits]);
    assert_eq!(watched.line(), "begun\n");
    let store = server.home().join("serve/controller/store.sqlite3");
    assert!(!store.exists(), "nothing is kept in a file");
    first.stop();
    let listen = said["quic"][0].as_str().expect("an address");
    let (second, _) = controller(&server, listen, &["--database-url", &url]);
    let logs = laptop.ado(["logs", "--remote", "one"]);
    logs.assert_code(0);
    assert_eq!((logs.stdout(), logs.stderr()), ("over there\n", "oops\n"));
    cluster.crash();
    cluster.launch();
    std::fs::write(gate, "").expect("a file");
    assert_eq!(watched.line(), "done\n");
    assert_eq!(watched.end().0, Some(0));
    let list = laptop.ado(["list", "--remote", "--all", "-o", "json"]).json();
    assert_eq!(list.as_array().expect("tasks").len(), 2);
    worker.stop();
    second.stop();
}

#[test]
fn its_url_is_a_secret_and_must_be_one() {
    let env = TestEnv::new();
    let with = |url: &str, args: &[&str]| Ran::of(env.command(args).env("ADO_DATABASE_URL", url));
    let shown = with("postgres://ann:hunter2@localhost/ado", &["config", "show", "-o", "json"]);
    shown.assert_code(0);
    assert!(!shown.stdout().contains("hunter2"));
    let keys = shown.json();
    let key = keys.as_array().expect("keys").iter().find(|key| key["key"] == "controller.database.url");
    assert_eq!(key.expect("the key")["from"], Value::from("ADO_DATABASE_URL"));

    let start = ["controller", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    for (url, why) in [
        ("mysql://ann:hunter2@localhost/ado", "postgres://"),
        ("postgres://ann:hunter2@127.0.0.1:1/ado", "the store is unavailable"),
    ] {
        let refused = with(url, &start);
        refused.assert_code(125);
        let stderr = refused.stderr();
        assert!(stderr.contains(why) && stderr.contains("ado config show"), "{stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
    }
}
