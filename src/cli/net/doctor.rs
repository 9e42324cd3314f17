//! `ado net doctor`: looks at every way to every controller, and says what is wrong and what to do.

use std::net::SocketAddr;
use std::time::Duration;

use ado_certs::{ClientTls, Clock};
use ado_proto::request::{Hello, Welcome};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::diagnosis::{self, Answers, Check, Grade, Observed, Ways};
use crate::BUILD;
use crate::cli::Global;
use crate::cli::columns::Colour;
use crate::cli::error::Error;
use crate::cli::output::{colours, print};
use crate::cli::session::App;
use crate::config::Flags;
use crate::net::{LinkConfig, Reached, Survey};
use crate::tasks::Tasks;

/// Find out what stands between this machine and the controllers
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Looks at the certificate, at UDP and WebSocket to every controller, and over what works at the NAT, the size of packets, the time of answers and the clock. Exit code 1 when something does not work.\n\nExamples:\n  ado net doctor --remote\n  ado net doctor --remote -o json"
)]
pub(crate) struct Args {
    /// Ask the controller this many times how long an answer takes
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    count: u16,
}

const ANSWER_FOR: Duration = Duration::from_secs(5);
/// Between two questions: answers that wait for each other would tell of one moment only.
const BETWEEN: Duration = Duration::from_millis(20);
/// How long the search for the largest packet may take.
const MTU_FOR: Duration = Duration::from_secs(2);
const MTU_LOOKS: u32 = 20;

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    let app = App::new(global, Flags::default())?;
    let tasks = Tasks::new();
    let (identity, addresses, websocket) = app.membership()?;
    let left = (identity.not_after() > app.env.now()).then(|| identity.not_after().since(app.env.now()));
    let mut checks = vec![diagnosis::identity(&identity.principal().to_string(), left)];
    let env = app.env.clone();
    let hosts = addresses();
    let link = LinkConfig {
        addresses,
        tls: ClientTls::mesh_with_clock(identity, Clock::new(move || env.now()))?,
        reconnect_interval: Duration::from_secs(1),
        keep_alive: Duration::from_secs(1),
        idle_timeout: Duration::from_secs(30),
        websocket,
        sockets: None,
    };
    let wants_websocket = link.websocket.is_some();
    let survey = Survey::new(link, &tasks)?;
    let mut best: Option<(Reached, Welcome)> = None;
    let mut observed: Vec<(SocketAddr, SocketAddr)> = Vec::new();
    for host in &hosts {
        let resolved = survey.resolve(host).await.map_err(|error| error.to_string());
        let mut udp = Vec::new();
        for address in resolved.iter().flatten() {
            let reached = greeted(survey.over_udp(*address).await).await;
            udp.push((*address, took(&reached)));
            if let Ok((reached, welcome)) = reached {
                observed.extend(reached.from.zip(welcome.observed.parse().ok()));
                best.get_or_insert((reached, welcome));
            }
        }
        let websocket = if wants_websocket && resolved.is_ok() {
            let reached = greeted(survey.by_websocket(host).await).await;
            let took = took(&reached);
            if let Ok(reached) = reached {
                best.get_or_insert(reached);
            }
            Some(took)
        } else {
            None
        };
        checks.extend(diagnosis::ways(&Ways { host: host.clone(), resolved, udp, websocket }));
    }
    if let Some((own, _)) = observed.first().copied() {
        let by = observed.iter().filter(|(from, _)| *from == own).map(|(_, by)| *by).collect();
        checks.extend(diagnosis::nat(&Observed { own, by }));
    }
    if let Some((reached, welcome)) = best {
        checks.extend(over(&app, &reached, &welcome, args.count).await);
    }
    tasks.stop(Duration::from_secs(1)).await;
    let is_bad = checks.iter().any(|check| check.grade == Grade::Bad);
    print(app.global.output, &json!({ "ok": !is_bad, "checks": checks }), || table(&checks))?;
    Ok(u8::from(is_bad))
}

/// A connection is worth something when it answers.
async fn greeted(reached: Result<Reached, crate::net::Error>) -> Result<(Reached, Welcome), String> {
    let reached = reached.map_err(|error| error.to_string())?;
    match reached.ask(&Hello { build: BUILD.into() }, ANSWER_FOR).await {
        Ok(welcome) => Ok((reached, welcome)),
        Err(error) => Err(error.to_string()),
    }
}

fn took(reached: &Result<(Reached, Welcome), String>) -> Result<Duration, String> {
    reached.as_ref().map(|(reached, _)| reached.took).map_err(Clone::clone)
}

/// What only a connection can tell.
async fn over(app: &App, reached: &Reached, welcome: &Welcome, count: u16) -> Vec<Check> {
    for _ in 0..MTU_LOOKS {
        let before = reached.measured().mtu;
        sleep(MTU_FOR / MTU_LOOKS).await;
        if before > 1200 && reached.measured().mtu == before {
            break;
        }
    }
    let mut times = Vec::new();
    let mut ahead = None;
    for _ in 0..count {
        let (begun, begun_at) = (Instant::now(), app.env.now());
        let Ok(welcome) = reached.ask(&Hello { build: BUILD.into() }, ANSWER_FOR).await else { break };
        let took = begun.elapsed();
        // Of the answer that was quickest, the middle is known best.
        if times.iter().all(|time| took < *time) {
            let here = begun_at.after(took / 2);
            #[expect(clippy::cast_precision_loss, reason = "microseconds of less than centuries")]
            let seconds = (welcome.now.0 - here.0) as f64 / 1e6;
            ahead = Some(seconds);
        }
        times.push(took);
        sleep(BETWEEN).await;
    }
    let measured = reached.measured();
    let mut checks = vec![diagnosis::mtu(measured.mtu)];
    checks.extend(diagnosis::latency(&mut Answers { times, sent: measured.sent, lost: measured.lost }));
    checks.extend(ahead.map(diagnosis::clock));
    checks.push(diagnosis::build(BUILD, &welcome.build));
    checks
}

fn table(checks: &[Check]) -> String {
    let coloured = colours(&std::io::stdout());
    let mut text = String::new();
    for check in checks {
        let (word, colour) = match check.grade {
            Grade::Good => ("ok", Colour::Green),
            Grade::Warning => ("warning", Colour::Yellow),
            Grade::Bad => ("wrong", Colour::Red),
        };
        let word = format!("{word:<8}");
        let word = if coloured { colour.paint(&word) } else { word };
        text += &format!("{word} {:<10} {}\n", check.check, check.text);
        if let Some(advice) = &check.advice {
            text += &format!("{:19} {advice}\n", "");
        }
    }
    text
}
