//! What every command prints, where, and with which exit code: as text, as JSON, by a prefix, of a group, on a terminal of
//! 80 columns, and when the input is wrong. `INSTA_UPDATE=always` accepts what is printed now.

use std::fmt::Write as _;

use crate::mesh::Mesh;
use crate::support::Ran;

/// A mesh with some history, and how its ids are written here.
struct Scene {
    mesh: Mesh,
    names: Vec<(&'static str, String)>,
}

impl Scene {
    /// `first` has completed, `bad` has failed, `held` and a group of two wait for a worker, two are called `twin`.
    fn new() -> Self {
        let mesh = Mesh::start();
        let bad = mesh.submit(&["--name", "bad", "echo out; exit 3"]);
        mesh.ado(["wait", "bad"]).assert_code(3);
        let held = mesh.submit(&["--name", "held", "--pool", "later", "sleep 600"]);
        let group = mesh.submit_group("later", &["make", "make"]);
        let done = mesh.submit_group("default", &["test $ADO_GROUP_INDEX = 1 || echo a; exit 4"; 2]);
        mesh.ado(["wait", &done]).assert_code(4);
        for _ in 0..2 {
            mesh.submit(&["--name", "twin", "--pool", "later", "true"]);
        }
        let prefix = bad[..9].to_owned();
        let names = vec![("$BAD4", prefix), ("$BAD", bad), ("$HELD", held), ("$GROUP", group), ("$DONE", done)];
        Self { mesh, names }
    }

    fn args(&self, line: &str) -> Vec<String> {
        let known = |word: &str| self.names.iter().find(|(name, _)| *name == word).map(|(_, id)| id.clone());
        line.split(' ').map(|word| known(word).unwrap_or_else(|| word.replace('+', " "))).collect()
    }

    /// Runs lines (`+` stands for a space in a word), and writes down all there is to see.
    fn transcript(&self, lines: &[&str]) -> String {
        lines.iter().map(|line| shown(line, &self.mesh.ado(self.args(line)), &self.mesh)).collect()
    }

    /// The same on a terminal of 80 columns.
    fn on_terminal(&self, lines: &[&str]) -> String {
        let mut text = String::new();
        for line in lines {
            let args = self.args(line);
            let args: Vec<_> = args.iter().map(String::as_str).collect();
            let (screen, code) = self.mesh.in_terminal(&args, 50, 80);
            let _ = writeln!(text, "$ ado {line}\n{}\n= {}\n", screen.trim_end(), code.unwrap_or(-1));
        }
        text
    }
}

fn shown(line: &str, ran: &Ran, mesh: &Mesh) -> String {
    let mut text = format!("$ ado {line}\n");
    for (mark, stream) in [("| ", ran.stdout()), ("! ", ran.stderr())] {
        for line in stream.lines() {
            let _ = writeln!(text, "{}", format!("{mark}{line}").trim_end());
        }
    }
    let text = text.replace(&mesh.env().home().display().to_string(), "/HOME");
    let here = mesh.env().work().canonicalize().expect("a directory").display().to_string();
    text.replace(&here, "/WORK") + &format!("= {}\n\n", ran.code().unwrap_or(-1))
}

/// What differs from run to run and machine to machine.
const CHANCE: [(&str, &str); 21] = [
    ("[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "00000000-0000-7000-8000-000000000000"),
    ("task-[0-9a-hjkmnp-tv-z]{10}", "task-xxxxxxxxxx"),
    ("group-[0-9a-hjkmnp-tv-z]{10}", "group-xxxxxxxxxx"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "2026-01-01T00:00:00Z"),
    (r"\(\d+[smhd] ago\)", "(0s ago)"),
    (r"(?:  \d| \d\d)s ", "  0s "),
    (r"(?m)^(\| )?time       .*$", "${1}time       0s"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:4433"),
    (r#""pid":\d+"#, r#""pid":1"#),
    (r"pid \d+", "pid 1"),
    (r#""heartbeatAgeMs":\d+"#, r#""heartbeatAgeMs":0"#),
    (r#""rttMs":(null|[\d.]+)"#, r#""rttMs":0.5"#),
    (r#""load":(null|\{[^}]*\})"#, r#""load":null"#),
    (r#""containment":"\w+""#, r#""containment":"cgroup""#),
    (r#""cursor":\d+"#, r#""cursor":1"#),
    (r#""nextOffset":\d+"#, r#""nextOffset":1"#),
    (r"log        \d+ records", "log        6 records"),
    (r"ado1:[0-9A-Za-z.:_+/=,-]+", "ado1:JOIN"),
    (r"\b[0-9a-f]{10}\b", "0123456789"),
    (r#""(exp|sign|cwd)":"/[^"]*""#, r#""$1":"/WORK""#),
    (r"directory  .*", "directory  /WORK"),
];

macro_rules! snapshot {
    ($name:literal, $text:expr) => {
        insta::with_settings!({ filters => CHANCE.to_vec(), omit_expression => true, prepend_module_to_snapshot => false }, {
            insta::assert_snapshot!($name, $text)
        })
    };
}

#[test]
fn commands() {
    let scene = Scene::new();
    snapshot!(
        "run",
        scene.transcript(&[
            "run echo+hello",
            "run -q echo+hello",
            "run -o json echo+hello",
            "run --agent nobody x",
            "run --pool ../x x",
            "run echo hello",
            "run",
            "run --time-limit soon x",
            "run --workers 0 x",
            "run --detach --pool later x",
            "run --detach --pool later --workers 2 x -o json",
            "run --detach --pool later x -o json",
        ])
    );
    snapshot!(
        "attach",
        scene.transcript(&[
            "attach first",
            "attach $BAD4",
            "attach $BAD -o json",
            "attach $DONE",
            "attach nothing",
            "attach twin",
            "attach"
        ])
    );
    snapshot!(
        "logs",
        scene.transcript(&[
            "logs bad",
            "logs $BAD4 --tail 1",
            "logs bad -o json",
            "logs $DONE",
            "logs nothing",
            "logs bad --from x"
        ])
    );
    snapshot!(
        "status",
        scene.transcript(&[
            "status bad",
            "status $BAD4",
            "status bad -o json",
            "status held",
            "status $GROUP",
            "status $DONE",
            "status bad first",
            "status nothing",
            "status nothing -o json",
            "status task-7k",
            "status twin",
            "status",
        ])
    );
    snapshot!(
        "list",
        scene.transcript(&[
            "list",
            "list --group $GROUP --columns group,state,pool",
            "list --state failed --ids",
            "list --name bad -o json",
            "list --name nobody",
            "list --name nobody -q",
            "list --columns what",
            "list --state odd",
            "list --since yesterday",
        ])
    );
    snapshot!(
        "workers",
        scene.transcript(&[
            "workers --columns name,state,slots,pool,agents,labels,why",
            "workers list --task held --columns name,why --no-headers",
            "workers list --task $GROUP --columns name,why",
            "workers list -o json",
            "workers list --task nothing",
            "workers list --columns odd",
        ])
    );
    snapshot!(
        "steer",
        scene.transcript(&[
            "pause held",
            "pause held",
            "status held",
            "resume $HELD",
            "pause $GROUP",
            "resume $GROUP -o json",
            "pause bad first",
            "pause nothing held -o json",
            "resume held -q",
            "cancel $GROUP",
            "cancel $GROUP -o json",
            "cancel held --no-wait",
            "cancel twin",
            "cancel",
            "pause --timeout soon held",
        ])
    );
    snapshot!(
        "wait",
        scene.transcript(&[
            "wait first",
            "wait $BAD4",
            "wait first bad",
            "wait $DONE -q",
            "wait bad -q",
            "wait bad -o json",
            "wait twin",
            "wait nothing",
            "wait",
        ])
    );
    snapshot!("detach", scene.transcript(&["detach", "detach first", "detach first -o json", "detach nothing"]));
    snapshot!(
        "events",
        scene.transcript(&[
            "events --task $BAD",
            "events --task $GROUP --kind *.submitted --no-headers --columns kind,task,message",
            "events --task bad --tail 1 -o json",
            "events --kind no.*",
            "events --task nothing",
            "events --from x",
            "events --tail 1 --since 1h",
        ])
    );
    snapshot!(
        "terminal",
        scene.on_terminal(&[
            "list",
            "list --columns task,state,name,pool,owner,command",
            "status $GROUP",
            "workers --columns name,state,slots,pool,agents,labels,why",
            "workers list --task twin",
            "events --task bad",
            "wait first",
            "status nothing",
        ])
    );
}

#[test]
fn machines_and_set_up() {
    let scene = Scene::new();
    snapshot!(
        "token",
        scene.transcript(&[
            "token create --name ann",
            "token create --role worker -o json",
            "token create --role odd",
            "token create --pool gpu",
            "token create --role worker --pool gpu --agent shell --label zone=a --max-slots 8 -o json",
            "token list",
            "token revoke nothing",
            "token revoke-identity ann",
            "token",
        ])
    );
    let work = scene.mesh.env().work();
    std::fs::write(work.join("value"), "hunter2-hunter2").expect("a file");
    std::fs::write(work.join("short"), "abc").expect("a file");
    snapshot!(
        "secret",
        scene.transcript(&[
            "secret list",
            "secret set token --from-file value",
            "secret set token --from-file value -o json",
            "secret set short --from-file short",
            "secret set -x --from-file value",
            "secret list",
            "run --secret nothing true",
            "run --secret token=A --env A=1 true",
            "run --secret token echo+$TOKEN;echo+$TOKEN|base64",
            "secret rm token -o json",
            "secret rm token",
        ])
    );
    snapshot!(
        "audit",
        scene.transcript(&["audit --refused", "audit --columns who,action,times,result --action Enrol"])
    );
    snapshot!("join", scene.transcript(&["join nonsense", "join"]));
    snapshot!(
        "local",
        scene.transcript(&["down", "down -o json", "status nothing --context local", "up -o json", "down --odd"])
    );
    snapshot!("config", scene.transcript(&["config show", "config", "config show --config nowhere.yaml"]));
    snapshot!("completions", scene.transcript(&["completions", "completions tcsh"]));
    snapshot!("man", scene.transcript(&["man --dir pages -q", "man nothing", "man run --dir x"]));
    snapshot!("global", scene.transcript(&["odd", "list --context nowhere", "list -o yaml", "list --log-level odd=["]));
}

#[test]
fn help() {
    let env = crate::support::TestEnv::new();
    let names = "run attach logs wait pause resume detach cancel list status events workers top up down controller worker join token secret audit bench task config completions man schema";
    let mut text = String::new();
    let nested: [&str; 13] = [
        "workers list",
        "token create",
        "secret set",
        "secret list",
        "secret rm",
        "token list",
        "token revoke",
        "token revoke-identity",
        "config show",
        "bench latency",
        "task progress",
        "task checkpoint",
        "task log",
    ];
    for name in std::iter::once("").chain(names.split(' ')).chain(nested) {
        let ran = env.ado(name.split(' ').filter(|word| !word.is_empty()).chain(["--help"]));
        ran.assert_code(0);
        assert_eq!(ran.stderr(), "");
        assert!(ran.stdout().lines().all(|line| line.chars().count() <= 80), "{name}: {}", ran.stdout());
        let _ = writeln!(text, "$ ado {name} --help\n{}\n", ran.stdout().trim_end());
    }
    snapshot!("help", text);
}

#[test]
fn states_are_coloured_where_somebody_looks_and_wants_it() {
    let mesh = Mesh::start();
    let colours = |args: &[&str], env: &[(&str, &str)]| {
        let (bytes, code) = mesh.bytes_in_terminal(args, env, 40, 80);
        assert_eq!(code, Some(0));
        bytes.contains(&0x1b)
    };
    for args in [&["list"][..], &["status", "first"], &["workers"]] {
        assert!(colours(args, &[]), "{args:?}");
        assert!(!colours(args, &[("NO_COLOR", "1")]), "{args:?}");
        assert!(!mesh.ado(args).bytes().contains(&0x1b), "{args:?} in a pipe");
    }
}
