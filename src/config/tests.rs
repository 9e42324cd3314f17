use super::*;

/// The configuration of the product's specification, verbatim, and its worker.
const SPECIFIED: &str = r#"
distributed:
  enabled: true
  controller:
    url: "https://ado.example.com"
    auth:
      type: "api-key"
      key: ${ADO_API_KEY}
  communication:
    protocol: "trpc"            # and "quic", our default
    websocket: true
    reconnectInterval: 5000     # ms
    heartbeatInterval: 30000
  workers:
    default: 3
    min: 1
    max: 50
    autoscale:
      enabled: true
      targetQueueLength: 10
      scaleUpCooldown: 60       # s
      scaleDownCooldown: 300
  failover:
    heartbeatTimeout: 60000     # ms
    maxRetries: 3
    checkpointInterval: 30000
"#;

const SPECIFIED_WORKER: &str = r#"
worker:
  image: "ado-worker:latest"
  resources:
    cpu: "2"
    memory: "4Gi"
  capabilities:
    - claude-code
    - gemini-cli
    - cursor-cli
  healthCheck:
    endpoint: "/health"
    interval: 30s
"#;

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let pairs = [("HOME", "/home/ann")].iter().chain(pairs);
    pairs.map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn from_file(text: &str) -> Result<Config, Error> {
    resolve(&Flags::default(), &env(&[("FOUR", "4"), ("EMPTY", "")]), Some((Path::new("/c.yaml"), text)))
}

fn from_env(pairs: &[(&str, &str)]) -> Result<Config, Error> {
    resolve(&Flags::default(), &env(pairs), None)
}

#[track_caller]
fn refused(text: &str) -> String {
    from_file(text).expect_err("the file is wrong").to_string()
}

#[test]
fn the_specified_file_is_read_as_written() {
    let env = env(&[("ADO_API_KEY", "s3cret")]);
    let text = format!("{SPECIFIED}{SPECIFIED_WORKER}");
    let config = resolve(&Flags::default(), &env, Some((Path::new("/c.yaml"), &text))).expect("it is valid");
    let (name, remote) = config.remote().expect("there is a remote");
    assert_eq!((name, remote.controllers[0].to_string().as_str()), ("remote", "ado.example.com:4433"));
    assert_eq!(config.auth.kind, AuthKind::ApiKey);
    assert_eq!(config.auth.key.as_ref().map(Secret::reveal), Some("s3cret"));
    assert_eq!(
        config.communication,
        Communication {
            protocol: Protocol::Trpc,
            websocket: true,
            reconnect_interval: Duration::from_secs(5),
            heartbeat_interval: Duration::from_secs(30),
        }
    );
    assert_eq!(
        config.workers,
        Workers {
            default: 3,
            min: 1,
            max: 50,
            autoscale: Autoscale {
                enabled: true,
                target_queue_length: 10,
                scale_up_cooldown: Duration::from_secs(60),
                scale_down_cooldown: Duration::from_secs(300),
            }
        }
    );
    let file = Origin::File("/c.yaml".into());
    assert_eq!(
        config.failover,
        Failover {
            heartbeat_timeout: Duration::from_secs(60),
            max_retries: Given { value: 3, origin: file },
            checkpoint_interval: Duration::from_secs(30),
        }
    );
    let worker = &config.worker;
    assert_eq!(worker.image, "ado-worker:latest");
    assert_eq!((worker.cpu, worker.memory), (Some(MilliCpu(2000)), Some(ByteSize(4 << 30))));
    let capabilities = ["claude-code", "gemini-cli", "cursor-cli"].map(String::from).to_vec();
    assert_eq!(worker.capabilities.as_ref(), Some(&capabilities));
    assert_eq!((worker.health_endpoint.as_str(), worker.health_interval), ("/health", Duration::from_secs(30)));
}

#[test]
fn nothing_at_all_is_a_configuration() {
    for config in [from_env(&[]), from_file(""), from_file("# nothing\n"), from_file("distributed:\n")] {
        let config = config.expect("defaults are valid");
        assert_eq!(config.home, Path::new("/home/ann/.local/share/ado"));
        assert_eq!((config.context.as_str(), config.contexts.len()), ("local", 0));
        assert_eq!(config.communication.protocol, Protocol::Quic);
        assert_eq!(config.communication.heartbeat_interval, Duration::from_secs(5));
        assert_eq!(config.failover.heartbeat_timeout, Duration::from_secs(20));
        assert_eq!(config.task.agent, "shell");
        assert!(config.shown().iter().all(|shown| shown.origin == Origin::Default));
    }
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let mut flags = Flags::default();
    let pairs = [("ADO_WORKER_SLOTS", "2"), ("ADO_WORKER_POOL", "env"), ("ADO_WORKERS_MAX", "")];
    let text = "worker: {slots: 1, pool: file, name: w}\ndistributed: {workers: {max: 9}}";
    flags.set("worker.slots", "--slots", "3");
    let config = resolve(&flags, &env(&pairs), Some((Path::new("/c.yaml"), text))).expect("it is valid");
    assert_eq!((config.worker.slots, config.worker.pool.as_str()), (Some(3), "env"));
    assert_eq!((config.worker.name.as_deref(), config.workers.max, config.workers.min), (Some("w"), 9, 1));
    let origin = |key| &config.shown().iter().find(|shown| shown.key == key).expect("it is shown").origin;
    assert_eq!(*origin("worker.slots"), Origin::Flag("--slots"));
    assert_eq!(*origin("worker.pool"), Origin::Env("ADO_WORKER_POOL".into()));
    assert_eq!(*origin("worker.name"), Origin::File("/c.yaml".into()));
    assert_eq!(*origin("distributed.workers.max"), Origin::File("/c.yaml".into()), "an empty variable is none");
    assert_eq!(*origin("distributed.workers.min"), Origin::Default);
}

#[test]
fn variables_are_put_into_values() {
    let config = from_file(concat!(
        "worker:\n  slots: ${FOUR}\n  pool: a${FOUR}-${NONE:-b}\n  name: ${EMPTY:-e}\n",
        "  labels: {n: \"${FOUR}\"}\n  capabilities: [\"x${FOUR}\"]\n  image: $${FOUR}$\n",
        "distributed: {enabled: \"${OFF:-false}\"}\n",
    ))
    .expect("it is valid");
    let worker = config.worker;
    assert_eq!((worker.slots, worker.pool.as_str(), worker.name.as_deref()), (Some(4), "a4-b", Some("e")));
    assert_eq!(worker.labels.get("n").map(String::as_str), Some("4"));
    assert_eq!((worker.capabilities, worker.image.as_str()), (Some(vec!["x4".into()]), "${FOUR}$"));
}

#[test]
fn a_missing_variable_names_itself_and_its_key() {
    assert_eq!(
        refused(SPECIFIED),
        "/c.yaml:8: `distributed.controller.auth.key` needs the environment variable ADO_API_KEY, which is not set: set \
         it, or give a default with ${ADO_API_KEY:-default}"
    );
    for text in
        ["worker: {pool: \"${\"}", "worker: {pool: \"${}\"}", "worker: {pool: \"${A B}\"}", "worker: {pool: \"${1}\"}"]
    {
        assert!(refused(text).contains("`worker.pool` has a `${` that is not"), "{text}");
    }
}

#[test]
fn an_unknown_key_is_refused_with_the_one_that_was_meant() {
    let text = "distributed:\n  failover:\n    maxRetrys: 3\n";
    let meant = "/c.yaml:3: there is no key `distributed.failover.maxRetrys`: did you mean \
                 `distributed.failover.maxRetries`?";
    assert_eq!(refused(text), meant);
    assert_eq!(refused("\nworkerz:\n  a: 1"), "/c.yaml:2: there is no key `workerz`: did you mean `worker`?");
    assert_eq!(
        refused("distributed: {workers: {MAX: 1}}"),
        "/c.yaml:1: there is no key `distributed.workers.MAX`: did you mean `distributed.workers.max`?"
    );
    assert_eq!(refused("xyzzy: 1"), "/c.yaml:1: there is no key `xyzzy`");
    assert!(refused("contexts: {a: {controler: [b]}}").contains("did you mean `contexts.a.controllers`?"));
    let mut flags = Flags::default();
    flags.set("worker.slot", "--slots", "3");
    let error = resolve(&flags, &env(&[]), None).expect_err("there is no such key").to_string();
    assert_eq!(error, "--slots: there is no key `worker.slot`: did you mean `worker.slots`?");
}

#[test]
fn a_wrong_value_is_shown_with_what_is_needed() {
    assert_eq!(
        refused("distributed:\n  workers:\n    max: many\n"),
        "/c.yaml:3: `distributed.workers.max` is \"many\", but must be a whole number from 0 on; for example: 50"
    );
    let wrong = |text: &str, part: &str| {
        let error = refused(text);
        assert!(error.contains(part), "{text}: {error}");
    };
    wrong("distributed: {workers: {max: -1}}", "is -1, but must be a whole number");
    wrong("distributed: {workers: {max: 1.5}}", "is 1.5, but");
    wrong("distributed: {workers: {max: \"3\"}}", "is \"3\", but");
    wrong("distributed: {enabled: yes}", "is \"yes\", but must be true or false");
    wrong("distributed: {communication: {protocol: tcp}}", "is \"tcp\", but must be `quic` or `trpc`");
    wrong("distributed: {controller: {auth: {type: none}}}", "is \"none\", but must be `api-key` or `mtls`");
    wrong("distributed: {communication: {reconnectInterval: 0}}", "is 0, but must be a time above 0");
    wrong("worker: {slots: 0}", "is 0, but must be a whole number from 1 on");
    wrong("worker: {name: 7}", "is 7, but must be a name");
    wrong("worker: {pool: ../x}", "is \"../x\", but must be a name");
    wrong("worker: {resources: {memory: 4GB}}", "is \"4GB\", but must be bytes");
    wrong("worker: {resources: {cpu: -1}}", "is -1, but must be processors");
    wrong("worker: {labels: {a: [b]}}", "`worker.labels.a` is a list, but");
    wrong("worker: {capabilities: [a, {b: c}]}", "`worker.capabilities[1]` is a mapping, but");
    wrong("worker: 3", "`worker` is 3, but must be a section");
    wrong("contexts: {a: {}}", "`contexts.a` is a mapping, but must be names, each with `controllers`");
    wrong("contexts: {a: {controllers: [\"b/c\"]}}", "`contexts.a.controllers[0]` is \"b/c\", but");
    wrong("[1]", "the file holds a list, but must hold keys");
    let error = from_env(&[("ADO_WORKER_SLOTS", "x")]).expect_err("not a number").to_string();
    assert_eq!(
        error,
        "ADO_WORKER_SLOTS: `worker.slots` is \"x\", but must be a whole number from 1 on; for example: 4"
    );
}

#[test]
fn broken_yaml_names_the_line() {
    for text in ["a: [\n", "worker:\n\t- x", "worker: {slots: 1}\nworker: {slots: 2}\n", "a: *none"] {
        assert!(matches!(from_file(text), Err(Error::Syntax { place: Place { line: Some(_), .. }, .. })), "{text}");
    }
}

#[test]
fn values_that_contradict_each_other_are_both_named() {
    assert_eq!(
        refused("distributed: {communication: {heartbeatInterval: 30000}}"),
        "`distributed.failover.heartbeatTimeout` is 20s (default), and `distributed.communication.heartbeatInterval` is \
         30s (/c.yaml): a worker would be lost between two heartbeats; make the timeout two or three intervals"
    );
    assert_eq!(
        refused("distributed: {workers: {min: 5}}"),
        "`distributed.workers.min` is 5 (/c.yaml), and `distributed.workers.default` is 3 (default): raise `default` or \
         lower `min`"
    );
    assert!(refused("distributed: {workers: {max: 2}}").contains("lower `default` or raise `max`"));
    assert!(from_file("distributed: {workers: {min: 0, default: 0, max: 0}}").is_ok());
}

#[test]
fn controllers_are_addresses() {
    let remote = |url: &str| from_env(&[("ADO_CONTROLLER_URL", url)]).map(|config| config.contexts["remote"].clone());
    for (url, address) in [
        ("https://ado.example.com", "ado.example.com:4433"),
        ("https://ado.example.com/", "ado.example.com:4433"),
        ("https://ado.example.com:443", "ado.example.com:443"),
        ("ado.example.com", "ado.example.com:4433"),
        ("10.0.0.1:9", "10.0.0.1:9"),
        ("[::1]", "[::1]:4433"),
        ("https://[::1]:5", "[::1]:5"),
    ] {
        assert_eq!(remote(url).expect("an address").controllers[0].to_string(), address);
    }
    assert_eq!(remote("a:1, b").expect("two addresses").controllers.len(), 2);
    for url in ["http://a", "https://", "https://a/b", "a:0", "a:65536", "a:b", "u@a", "::1", "[::1", "[x]", ":1"] {
        assert!(remote(url).is_err(), "{url}");
    }
}

#[test]
fn contexts_and_the_remote() {
    let two = "contexts:\n  a: {controllers: [a]}\n  b: {controllers: [b1, b2]}\n";
    let remote = |text: &str| from_file(text).and_then(|config| config.remote().map(|(name, _)| name.to_owned()));
    assert_eq!(remote("contexts: {a: {controllers: [a]}}").as_deref(), Ok("a"), "the only one");
    assert_eq!(remote(&format!("{two}context: b")).as_deref(), Ok("b"), "the current one");
    let url = "distributed: {controller: {url: c}}";
    assert_eq!(remote(&format!("{two}context: b\n{url}")).as_deref(), Ok("remote"), "the configured one");
    let missing = |text: &str| matches!(remote(text), Err(Error::Missing { key: "distributed.controller.url", .. }));
    assert!(missing(two), "nobody says which");
    assert!(missing("distributed: {enabled: false, controller: {url: c}}"));
    assert!(missing("context: remote"));
    assert_eq!(refused(&format!("{two}context: c")), "/c.yaml: there is no context `c`; known: local, a, b");
    assert!(refused("contexts: {local: {controllers: [a]}}").contains("choose another name"));
    assert!(refused(&format!("contexts: {{remote: {{controllers: [a]}}}}\n{url}")).contains("differ"));
}

#[test]
fn a_plain_commands_exit_code_is_an_answer_unless_somebody_asked() {
    let retries = |text| {
        let config = from_file(text).expect("it is valid");
        (config.max_retries("shell"), config.max_retries("claude-code"))
    };
    assert_eq!(retries(""), (0, 3));
    assert_eq!(retries("distributed: {failover: {maxRetries: 3}}"), (3, 3));
    assert_eq!(retries("task: {retries: 1}"), (1, 1));
}

#[test]
fn secrets_are_never_shown() {
    let config = from_env(&[("ADO_API_KEY", "s3cret")]).expect("it is valid");
    for shown in [format!("{config:?}"), config.to_text(), config.to_json().to_string()] {
        assert!(!shown.contains("s3cret"));
    }
    for text in ["[s3cret]", "{a: s3cret}", "7331"] {
        let error = refused(&format!("distributed: {{controller: {{auth: {{key: {text}}}}}}}"));
        assert!(!error.contains("s3cret") && !error.contains("7331"), "{error}");
    }
}

#[test]
fn what_is_shown_can_be_written() {
    let pairs: Vec<_> = KEYS.iter().filter_map(|key| Some((key.env?, key.default?))).collect();
    let config = from_env(&pairs).expect("defaults may be written");
    let text = config.to_text();
    assert_eq!(text.lines().count(), KEYS.len());
    let line = text.lines().find(|line| line.contains("heartbeatTimeout")).expect("it is shown");
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words, ["distributed.failover.heartbeatTimeout", "20s", "ADO_HEARTBEAT_TIMEOUT"]);
    for shown in config.shown() {
        if let (Some(serde_json::Value::String(value)), Some(key)) =
            (&shown.value, KEYS.iter().find(|key| key.path == shown.key && !key.secret))
        {
            let mut raw = Raw::default();
            raw.set_text(key.path, value, &Origin::Default).expect("what is shown is a value of its key");
        }
    }
    let json = config.to_json();
    let first = json.as_array().and_then(|keys| keys.iter().find(|key| key["key"] == "context")).expect("it is there");
    assert_eq!(first["value"], "local");
    assert_eq!((&first["origin"], &first["from"]), (&"env".into(), &"ADO_CONTEXT".into()));
}

#[test]
fn what_is_kept_can_be_switched_off() {
    let off = |pairs: &[(&str, &str)]| from_env(pairs).map(|config| config.cache.enabled);
    assert_eq!((off(&[]), off(&[("ADO_CACHE", "off")]), off(&[("ADO_CACHE", "0")])), (Ok(true), Ok(false), Ok(false)));
    assert!(off(&[("ADO_CACHE", "no")]).unwrap_err().to_string().contains("true, false, on or off"));
    let file = |text| from_file(text).map(|config| config.cache);
    let cache = file("cache: {enabled: off, maxBytes: 1Mi}").expect("it is valid");
    assert_eq!((cache.enabled, cache.max_bytes), (false, 1024 * 1024));
}

#[test]
fn the_table_is_sound() {
    let defaults = Raw::defaults();
    assert_eq!(defaults.shown().len(), KEYS.len());
    let mut variables: Vec<_> = KEYS.iter().filter_map(|key| key.env).collect();
    variables.sort_unstable();
    let all = variables.len();
    variables.dedup();
    assert_eq!(variables.len(), all, "a variable sets one key");
    assert!(variables.iter().all(|name| name.starts_with("ADO_")));
    for (index, key) in KEYS.iter().enumerate() {
        assert!(!key.doc.trim().is_empty());
        let nested = KEYS.iter().enumerate().any(|(other, outer)| {
            other != index && (key.path == outer.path || key.path.starts_with(&format!("{}.", outer.path)))
        });
        assert!(!nested, "{} is below another key", key.path);
    }
}

#[test]
fn every_example_is_a_value_of_its_key() {
    for key in KEYS {
        let (last, sections) = (key.path.rsplit('.').next().expect("a name"), key.path.matches('.').count());
        let mut text = String::new();
        for (depth, section) in key.path.split('.').take(sections).enumerate() {
            text.push_str(&format!("{}{section}:\n", "  ".repeat(depth)));
        }
        // The example of `contexts` is written with its key.
        let value = key.example.strip_prefix(&format!("{last}: ")).unwrap_or(key.example);
        text.push_str(&format!("{}{last}: {value}\n", "  ".repeat(sections)));
        let env = env(&[("ADO_API_KEY", "x")]);
        yaml::read(Path::new("/c.yaml"), &text, &env).unwrap_or_else(|error| panic!("{text}{error}"));
    }
}

#[test]
fn paths_begin_at_home() {
    let config = from_file("worker: {dir: ~/w}\nhome: \"~/h\"").expect("it is valid");
    assert_eq!(
        (config.worker.dir.as_deref().unwrap(), config.home.as_path()),
        (Path::new("/home/ann/w"), Path::new("/home/ann/h"))
    );
    let config = from_env(&[("XDG_DATA_HOME", "/x"), ("ADO_WORKER_POOL", "p")]).expect("it is valid");
    assert_eq!((config.home.as_path(), config.worker.dir), (Path::new("/x/ado"), None));
    let nowhere = resolve(&Flags::default(), &BTreeMap::new(), None).expect_err("no home");
    assert_eq!(nowhere.to_string(), "`home` is not set: set ADO_HOME, or HOME");
}

#[test]
fn the_file_is_found_where_it_is_named_or_usual() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let with = |flag: Option<&str>, pairs: &[(&str, &str)]| {
        let base = dir.path().to_string_lossy().into_owned();
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (*name, value.replace("DIR", &base))).collect();
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (*name, value.as_str())).collect();
        read(&Flags { config: flag.map(path), ..Flags::default() }, &env(&pairs)).map(|file| file.map(|(_, text)| text))
    };
    std::fs::create_dir_all(path("ado")).expect("a directory");
    std::fs::create_dir_all(path(".config/ado")).expect("a directory");
    for (name, text) in [("a", "flag"), ("b", "env"), ("ado/config.yaml", "xdg"), (".config/ado/config.yaml", "home")] {
        std::fs::write(path(name), text).expect("a file");
    }
    let all = [("ADO_CONFIG", "DIR/b"), ("XDG_CONFIG_HOME", "DIR"), ("HOME", "DIR")];
    assert_eq!(with(Some("a"), &all), Ok(Some("flag".into())));
    assert_eq!(with(None, &all), Ok(Some("env".into())));
    assert_eq!(with(None, &all[1..]), Ok(Some("xdg".into())));
    assert_eq!(with(None, &all[2..]), Ok(Some("home".into())));
    assert_eq!(with(None, &[]), Ok(None), "the usual file may be missing");
    let named = with(Some("none"), &[]);
    assert!(matches!(named, Err(Error::Unreadable { .. })), "a named one may not: {named:?}");
}
