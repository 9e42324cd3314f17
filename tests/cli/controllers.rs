//! Several controllers on one PostgreSQL and one Redis are one mesh: whoever of them is killed, work and watching go on.

use std::process::Command;

use serde_json::Value;

use crate::promises::eventually;
use crate::servers::postgres::Cluster;
use crate::servers::redis::Redis;
use crate::support::{Ran, Running, Service, TestEnv};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const OTHER_KEY: &str = "ff00000000000000000000000000000000000000000000000000000000000000";

/// What controllers of a mesh share.
struct Shared {
    database: String,
    redis: String,
    _servers: (Cluster, Redis),
}

impl Shared {
    /// `None`: skip the test.
    fn start() -> Option<Self> {
        let (cluster, redis) = (Cluster::start()?, Redis::start()?);
        Some(Self { database: cluster.url("postgres"), redis: redis.url(), _servers: (cluster, redis) })
    }

    fn command(&self, home: &TestEnv, listen: &str, key: Option<&str>) -> Command {
        let own = ["controller", "--listen", listen, "--http", "127.0.0.1:0", "-o", "json", "--log-level", "error"];
        let mut command = home.command(own);
        command.env("ADO_DATABASE_URL", &self.database).env("ADO_REDIS_URL", &self.redis);
        if let Some(key) = key {
            command.env("ADO_MASTER_KEY", key);
        }
        command
    }

    /// A controller and what it said.
    fn controller(&self, home: &TestEnv, listen: &str) -> (Service, Value) {
        let mut controller = Service::of(&mut self.command(home, listen, Some(KEY)));
        let said = controller.json();
        (controller, said)
    }
}

fn address(said: &Value) -> String {
    said["quic"][0].as_str().expect("an address").to_owned()
}

/// A join string that leads to one controller only.
fn through(join: &str, address: &str) -> String {
    let parts: Vec<_> = join.trim().rsplitn(3, ':').collect();
    format!("ado1:{address}:{}:{}", parts[1], parts[0])
}

/// The next lines of a count: each is one more than the one before.
fn counts_on(watched: &mut Running, last: &mut u32, lines: u32) {
    for _ in 0..lines {
        let line = watched.line();
        *last += 1;
        assert_eq!(line.trim(), last.to_string(), "each line once, and in order");
    }
}

#[test]
fn whichever_controller_is_killed_work_and_watching_go_on() {
    let Some(shared) = Shared::start() else { return };
    let homes = [TestEnv::new(), TestEnv::new(), TestEnv::new()];
    let (laptop, phone, builder) = (TestEnv::new(), TestEnv::new(), TestEnv::new());
    let (a, said_a) = shared.controller(&homes[0], "127.0.0.1:0");
    laptop.ado(["join", said_a["join"].as_str().expect("the first one says how to join")]).assert_code(0);
    let (b, said_b) = shared.controller(&homes[1], "127.0.0.1:0");
    let (c, said_c) = shared.controller(&homes[2], "127.0.0.1:0");
    assert_eq!((&said_b["join"], &said_c["join"]), (&Value::Null, &Value::Null), "they joined a mesh that is there");
    let [at_a, at_b, at_c] = [&said_a, &said_b, &said_c].map(address);

    // Tasks are submitted at A, the worker is at B, the viewer at C.
    let token = |role: &str| {
        let made = laptop.ado(["--remote", "token", "create", "--role", role]);
        made.assert_code(0);
        made.stdout().to_owned()
    };
    let join = through(&token("worker"), &at_b);
    let worker = Service::start(&builder, ["worker", "--join", &join, "--name", "box", "--log-level", "error"]);
    phone.ado(["join", &through(&token("user"), &at_c)]).assert_code(0);
    let gate = builder.work().join("gate");
    let count = format!("n=0; while [ ! -e {} ]; do n=$((n+1)); echo $n; sleep 0.05; done", gate.display());
    laptop.ado(["run", "--remote", "--detach", "--name", "count", &count]).assert_code(0);
    let mut watched = phone.start(["--remote", "attach", "count", "--from", "start"]);
    let mut last = 0;
    counts_on(&mut watched, &mut last, 5);

    let list = || laptop.ado(["--remote", "controllers", "list", "-o", "json"]).json();
    let of = |list: &Value, address: &str| {
        let all = list.as_array().expect("controllers").iter();
        all.clone().find(|one| one["addresses"][0] == *address).unwrap_or_else(|| panic!("{address}: {list}")).clone()
    };
    eventually("each says what it has", || {
        let list = list();
        let has = |address: &str, what: &str, count: u64| of(&list, address)[what] == count;
        let loops: Vec<_> =
            list.as_array().expect("controllers").iter().flat_map(|one| one["loops"].as_array()).collect();
        let held: usize = loops.iter().map(|loops| loops.len()).sum();
        has(&at_b, "workers", 1) && has(&at_c, "viewers", 1) && of(&list, &at_a)["answers"] == true && held == 3
    });

    // It knew only A when it joined.
    eventually("the laptop learns of the others", || {
        list();
        let known = std::fs::read_to_string(laptop.home().join("contexts/remote/controllers.json")).unwrap_or_default();
        [&at_a, &at_b, &at_c].iter().all(|address| known.contains(*address))
    });

    // The worker's controller, the viewer's, and the one that the task was given to; each comes back after.
    b.kill();
    counts_on(&mut watched, &mut last, 40);
    let (b, _) = shared.controller(&homes[1], &at_b);
    c.kill();
    counts_on(&mut watched, &mut last, 40);
    let (c, _) = shared.controller(&homes[2], &at_c);
    a.kill();
    laptop.ado(["--remote", "list"]).assert_code(0);
    eventually("the loops move to those who live", || {
        let list = list();
        let dead = of(&list, &at_a);
        let all = list.as_array().expect("controllers").iter();
        let held = all.filter(|one| one["state"] == "live").filter_map(|one| one["loops"].as_array());
        dead["state"] == "lost" && held.map(Vec::len).sum::<usize>() == 3
    });
    counts_on(&mut watched, &mut last, 40);
    std::fs::write(&gate, "").expect("a file");
    let (code, rest, complaints) = watched.end();
    assert_eq!(code, Some(0), "{complaints}");
    for line in rest.lines() {
        last += 1;
        assert_eq!(line, last.to_string());
    }
    let events = phone.ado(["--remote", "logs", "count", "--output", "json"]).json_lines();
    let kinds: Vec<_> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "assigned").count(), 1, "the agent noticed nothing");
    assert!(!kinds.contains(&"worker_lost"), "{kinds:?}");

    // Who is asked to stop says so: it is no longer listed, and the rest goes on.
    b.stop();
    eventually("who left is not listed", || list().as_array().expect("controllers").len() == 2);
    let ran = laptop.ado(["run", "--remote", "echo still here"]);
    ran.assert_code(0);
    assert_eq!(ran.stdout(), "still here\n");
    worker.stop();
    c.stop();
}

#[test]
fn a_controller_without_the_meshs_master_key_is_refused() {
    let Some(shared) = Shared::start() else { return };
    let homes = [TestEnv::new(), TestEnv::new()];
    // Without a key the first one makes one, and keeps it.
    let mut first = Service::of(&mut shared.command(&homes[0], "127.0.0.1:0", None));
    let said = first.json();
    let made = std::fs::read_to_string(homes[0].home().join("serve/controller/master.key")).expect("a master key");
    let refused = |key: Option<&str>| {
        let ran = Ran::of(&mut shared.command(&homes[1], "127.0.0.1:0", key));
        ran.assert_code(125);
        assert!(key.is_none_or(|key| !ran.stderr().contains(key)), "it is shown: {}", ran.stderr());
        ran.stderr().to_owned()
    };
    for (key, what) in [(None, "there is no master key here"), (Some(OTHER_KEY), "it was closed with the master key")] {
        let told = refused(key);
        assert!(told.contains(what) && told.contains("set ADO_MASTER_KEY"), "{told}");
    }
    let told = refused(Some("hunter2"));
    assert!(told.contains("openssl rand -base64 32"), "{told}");
    assert!(!homes[1].home().join("serve/controller/master.key").exists(), "no other key was made");

    // With it, or with a file that has it, it is let in; its own first start makes nobody an administrator.
    let file = homes[1].work().join("key");
    std::fs::write(&file, &made).expect("a file");
    for key in [made.trim(), &file.display().to_string()] {
        let mut second = Service::of(&mut shared.command(&homes[1], "127.0.0.1:0", Some(key)));
        assert_eq!(second.json()["join"], Value::Null);
        second.stop();
    }
    let shown = Ran::of(homes[1].command(["config", "show"]).env("ADO_MASTER_KEY", KEY));
    shown.assert_code(0);
    assert!(shown.stdout().contains("controller.masterKey") && !shown.stdout().contains(KEY));
    assert!(said["join"].is_string());
    first.stop();
}
