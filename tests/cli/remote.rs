//! Several machines: each a home of its own, joined by tokens and keys.

use std::time::Duration;

use ado::env::Env;
use ado_certs::{Ca, Identity, KeyRequest};
use ado_proto::Timestamp;
use serde_json::Value;

use crate::support::{Ran, Service, TestEnv};

/// A controller of its own on `server`, and what it said at its first start.
pub(crate) fn controller(server: &TestEnv) -> (Service, Value) {
    let args = ["controller", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "-o", "json", "--log-level", "error"];
    let mut service = Service::start(server, args);
    let said = service.json();
    (service, said)
}

pub(crate) fn token(admin: &TestEnv, args: &[&str]) -> String {
    let made = admin.ado(["--remote", "token", "create"].iter().chain(args));
    made.assert_code(0);
    made.stdout().trim().to_owned()
}

#[track_caller]
fn refused(ran: &Ran, words: &str) {
    ran.assert_code(125);
    assert!(ran.stderr().contains(words), "{}", ran.stderr());
}

#[test]
fn a_controller_a_worker_and_a_laptop() {
    let (server, laptop, builder, guest) = (TestEnv::new(), TestEnv::new(), TestEnv::new(), TestEnv::new());
    let (controller, said) = controller(&server);
    let join = said["join"].as_str().expect("a join string");
    laptop.ado(["join", join]).assert_code(0);
    refused(&guest.ado(["join", join]), "used already");

    refused(&builder.ado(["worker", "--join", &token(&laptop, &["--role", "user"])]), "none for workers");
    refused(&guest.ado(["join", &token(&laptop, &["--role", "worker"])]), "one for workers");
    assert!(!guest.home().join("contexts").exists(), "nothing of it is kept");

    let join = token(&laptop, &["--role", "worker"]);
    let worker = Service::start(&builder, ["worker", "--join", &join, "--name", "builder", "--log-level", "error"]);
    let ran = laptop.ado(["run", "--remote", "echo over there; exit 3"]);
    ran.assert_code(3);
    assert_eq!(ran.stdout(), "over there\n");
    assert_eq!(laptop.ado(["--remote", "list", "-o", "json"]).json()[0]["worker"], "builder");

    let unknown = laptop.ado(["--remote", "status", "nothing"]);
    refused(&unknown, "hint: ado --remote list --all");
    let detached = laptop.ado(["run", "--remote", "--detach", "echo later"]);
    let attached = laptop.ado(["attach", "--remote", detached.stdout().trim()]);
    attached.assert_code(0);
    assert_eq!(attached.stdout(), "later\n");
    worker.stop();
    controller.stop();
}

#[test]
fn one_home_holds_all_of_it() {
    let env = TestEnv::new();
    env.ado(["up"]).assert_code(0);
    let (controller, said) = controller(&env);
    env.ado(["join", said["join"].as_str().expect("a join string")]).assert_code(0);
    let join = token(&env, &["--role", "worker"]);
    let worker = Service::start(&env, ["worker", "--join", &join, "--log-level", "error"]);
    assert_eq!(env.ado(["run", "--remote", "echo there"]).stdout(), "there\n");
    assert_eq!(env.ado(["run", "echo here"]).stdout(), "here\n");
    worker.stop();
    controller.stop();
}

#[test]
fn an_api_key_is_good_for_many_machines_until_it_is_revoked() {
    let (server, admin) = (TestEnv::new(), TestEnv::new());
    let (_controller, said) = controller(&server);
    admin.ado(["join", said["join"].as_str().expect("a join string")]).assert_code(0);
    let key = token(&admin, &["--unlimited", "--name", "ci", "--ttl", "30d"]);
    let address = said["quic"][0].as_str().expect("an address");

    let machines = [TestEnv::new(), TestEnv::new()];
    let list = |env: &TestEnv| {
        let file = env.work().join("ado.yaml");
        let auth = "{type: api-key, key: \"${ADO_API_KEY}\"}";
        let text = format!("distributed: {{controller: {{url: \"https://{address}\", auth: {auth}}}}}\n");
        std::fs::write(&file, text).expect("a file");
        let mut command = env.command(["--remote", "list", "--config", "ado.yaml"]);
        Ran::of(command.env("ADO_API_KEY", &key))
    };
    machines.iter().for_each(|env| list(env).assert_code(0));
    // What it was exchanged for has ended: it is exchanged again.
    let dir = machines[0].home().join("contexts/remote/identity");
    replace(&server, &dir, |_| (Timestamp(1_700_000_000_000_000), Duration::from_secs(60)));
    list(&machines[0]).assert_code(0);

    admin.ado(["--remote", "token", "revoke-identity", "ado://default/user/ci"]).assert_code(0);
    machines.iter().for_each(|env| refused(&list(env), "revoked"));
}

#[test]
fn a_certificate_that_is_due_is_renewed_by_any_command() {
    let (server, laptop) = (TestEnv::new(), TestEnv::new());
    let (_controller, said) = controller(&server);
    laptop.ado(["join", said["join"].as_str().expect("a join string")]).assert_code(0);
    let dir = laptop.home().join("contexts/remote/identity");
    let hour = Duration::from_secs(3600);
    let until = replace(&server, &dir, |now| (Timestamp(now.0 - 3 * 3_600_000_000), 4 * hour));
    laptop.ado(["--remote", "list"]).assert_code(0);
    let renewed = Identity::load(&dir).expect("an identity").not_after();
    assert!(renewed > until.after(24 * hour), "{renewed:?} is not long after {until:?}");
}

/// Puts a certificate of another life in the place of the one in `dir`. Returns its end.
fn replace(server: &TestEnv, dir: &std::path::Path, life: impl Fn(Timestamp) -> (Timestamp, Duration)) -> Timestamp {
    let now = Env::system().now();
    let who = Identity::load(dir).expect("an identity").principal().clone();
    let ca = Ca::open_or_create(&server.home().join("serve/controller"), now).expect("the server's CA");
    let request = KeyRequest::new().expect("a key");
    let (from, lifetime) = life(now);
    let issued = ca.issue(request.csr_der(), &who, lifetime, from).expect("a certificate");
    request.into_identity(issued.chain).expect("an identity").save(dir).expect("a file");
    issued.not_after
}

#[test]
fn a_token_lets_another_machine_in() {
    let env = TestEnv::new();
    let join = env.ado(["token", "create", "--role", "user", "--name", "ann"]).stdout().trim().to_owned();
    let other = TestEnv::new();
    let joined = other.ado(["join", &join, "-o", "json"]);
    joined.assert_code(0);
    assert_eq!(joined.json()["identity"], "ado://default/user/ann");
    let ran = other.ado(["run", "--remote", "echo hi"]);
    ran.assert_code(0);
    assert_eq!(ran.stdout(), "hi\n");
    other.ado(["join", &join, "--context-name", "again"]).assert_code(125);
    env.ado(["token", "revoke-identity", "ado://default/user/ann"]).assert_code(0);
    other.ado(["run", "--remote", "echo hi"]).assert_code(125);
}
