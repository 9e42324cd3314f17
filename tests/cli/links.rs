//! Commands over a link that misbehaves: the real binary, through the relay that `netsim proxy` runs.

use ado_netsim::proxy::{Config, Proxy, RelayConfig};
use ado_netsim::{Profile, Scenario};

use crate::remote::{controller, token};
use crate::support::{Service, TestEnv};

/// A relay of datagrams in this process.
struct Relay {
    proxy: Proxy,
    _runtime: tokio::runtime::Runtime,
}

impl Relay {
    fn to(target: &str, seed: u64, profile: Profile) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let mut scenario = Scenario { seed, ..Scenario::default() };
        scenario.begin_with(profile);
        let relays = vec![RelayConfig::udp("laptop", target.parse().expect("an address"))];
        let proxy = runtime.block_on(Proxy::start(Config { relays, scenario, record: None })).expect("a proxy");
        Self { proxy, _runtime: runtime }
    }

    fn address(&self) -> String {
        self.proxy.relays()[0].listen.to_string()
    }

    fn tell(&self, line: &str) -> String {
        self.proxy.tell(line, &|_| Err("no files".to_owned())).expect("a command")
    }

    fn stats(&self) -> serde_json::Value {
        serde_json::from_str(&self.tell("stats")).expect("JSON")
    }
}

/// Flaky Wi-Fi, silences both ways and one way, another port, another address: every line once, in order.
#[test]
fn attach_over_flaky_wifi_shows_every_line_once() {
    const LINES: usize = 400;
    let (server, laptop, builder) = (TestEnv::new(), TestEnv::new(), TestEnv::new());
    let (controller, said) = controller(&server);
    let quic = said["quic"][0].as_str().expect("an address");
    let relay = Relay::to(quic, 7, Profile::WifiFlaky);
    let join = said["join"].as_str().expect("a join string").replace(quic, &relay.address());
    laptop.ado(["join", &join]).assert_code(0);
    let join = token(&laptop, &["--role", "worker"]).replace(&relay.address(), quic);
    let worker = Service::start(&builder, ["worker", "--join", &join, "--log-level", "error"]);

    let command = format!("for i in $(seq {LINES}); do echo line $i; sleep 0.02; done");
    let submitted = laptop.ado(["run", "--remote", "--detach", &command]);
    submitted.assert_code(0);
    let mut attached = laptop.start(["attach", "--remote", "--from", "start", submitted.stdout().trim()]);
    for number in 1..=LINES {
        assert_eq!(attached.line().trim_end(), format!("line {number}"));
        match number {
            50 => drop(relay.tell("down 700ms")),
            120 => drop(relay.tell("rebind")),
            190 => drop(relay.tell("cut down 700ms")),
            260 => drop(relay.tell("rebind address")),
            330 => drop(relay.tell("cut up 700ms")),
            _ => {}
        }
    }
    let (code, rest, stderr) = attached.end();
    assert_eq!((code, rest.as_str()), (Some(0), ""), "{stderr}");
    let stats = relay.stats();
    let lost = &stats["laptop"]["down"]["dropped"];
    assert!(lost["burst"].as_u64() > Some(0) && lost["blackout"].as_u64() > Some(0), "it went another way: {stats}");
    worker.stop();
    controller.stop();
}
