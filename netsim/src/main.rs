//! `netsim`: links that misbehave, for real processes.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use ado_netsim::proxy::{Config, Proxy, RelayConfig};
use ado_netsim::{Profile, Scenario};
use clap::{Args, Parser, Subcommand};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;

type Failure = Box<dyn Error + Send + Sync>;

/// Links that delay, lose, fall silent and change addresses, for real processes
#[derive(Parser)]
#[command(name = "netsim", version, max_term_width = 100, after_long_help = COMMANDS)]
struct Netsim {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Relay UDP and TCP between processes of this machine
    #[command(after_long_help = COMMANDS)]
    Proxy(ProxyArguments),
    /// Connect two network namespaces by a link (root, Linux)
    #[cfg(target_os = "linux")]
    #[command(after_long_help = COMMANDS)]
    Bridge(BridgeArguments),
    /// Draw what a record says as SVG: delay, loss and throughput over time
    Plot(PlotArguments),
}

#[derive(Args)]
struct Conditions {
    /// A file of commands with their times, one a line
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Begin with the parameters of wifi, wifi-flaky, lte or train
    #[arg(long, value_name = "NAME", value_parser = profile)]
    profile: Option<Profile>,
    /// Where chance comes from; the scenario may name one
    #[arg(long)]
    seed: Option<u64>,
    /// Write what happened to every packet to this file
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Take commands on this Unix socket as well, one a line, each answered by a line
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// End when standard input does
    #[arg(long)]
    until_eof: bool,
}

#[derive(Args)]
struct ProxyArguments {
    /// What to relay: [LINK=]udp:ADDRESS:PORT or tcp:ADDRESS:PORT, with @ADDRESS:PORT where it is to listen
    ///
    /// Relays of one link share it. Where each listens is printed as a line of JSON.
    #[arg(required = true, value_name = "RELAY")]
    relays: Vec<RelayConfig>,
    #[command(flatten)]
    conditions: Conditions,
}

#[cfg(target_os = "linux")]
#[derive(Args)]
struct BridgeArguments {
    /// The near end, NAMESPACE=ADDRESS/PREFIX, as laptop=10.99.0.1/24
    near: ado_netsim::bridge::End,
    /// The far end
    far: ado_netsim::bridge::End,
    #[command(flatten)]
    conditions: Conditions,
}

#[derive(Args)]
struct PlotArguments {
    /// A file that --record wrote
    record: PathBuf,
    /// Where to write the picture, if not on standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

const COMMANDS: &str = "\
Commands, on standard input and in scenarios (there after `at TIME` or `every TIME [from TIME] [until TIME]`):
  set [up|down] KEY VALUE ...           delay, jitter, distribution, correlation, reorder, loss, bursts, duplicate,
                                        rate, queue, discipline, mtu, trace
  profile NAME                          wifi, wifi-flaky, lte, train
  down [TIME]                           swallow everything, both ways
  cut [up|down] [udp|tcp] [over BYTES] [TIME]   swallow what is named
  block udp|tcp [TIME]                  the same as cut udp
  heal [up|down] [udp|tcp]              end what swallows
  rebind [port|address]                 the near end gets another port or address
  nat MAPPING FILTERING preserving|random [TIME]   put the near end behind a NAT; nat none
To a running proxy also `on LINK COMMAND`, for one of several links, and `stats`.

Example:
  netsim proxy udp:127.0.0.1:4433 --profile wifi-flaky
  set up loss 2%
  cut down 3s";

fn profile(name: &str) -> Result<Profile, String> {
    name.parse().map_err(|()| "there are wifi, wifi-flaky, lte and train".to_owned())
}

fn main() -> ExitCode {
    let arguments = Netsim::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(arguments));
            // Standard input may be in the middle of a read that nobody ends.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut causes = vec![error.to_string()];
            let mut source = error.source();
            while let Some(cause) = source {
                causes.push(cause.to_string());
                source = cause.source();
            }
            eprintln!("netsim: {}", causes.join(": "));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Netsim) -> Result<(), Failure> {
    match arguments.command {
        Subcommands::Proxy(arguments) => proxy(arguments).await,
        #[cfg(target_os = "linux")]
        Subcommands::Bridge(arguments) => bridge(arguments).await,
        Subcommands::Plot(arguments) => plot(&arguments),
    }
}

async fn proxy(arguments: ProxyArguments) -> Result<(), Failure> {
    let ProxyArguments { relays, conditions } = arguments;
    let config = Config { relays, scenario: conditions.scenario()?, record: conditions.record.clone() };
    let proxy = Proxy::start(config).await?;
    let started = serde_json::json!({ "relays": proxy.relays() }).to_string();
    let tell = move |line: &str| match proxy.tell(line, &read_file) {
        Ok(answer) => answer,
        Err(error) => format!("error: {error}"),
    };
    obey(&conditions, &started, Arc::new(tell)).await
}

#[cfg(target_os = "linux")]
async fn bridge(arguments: BridgeArguments) -> Result<(), Failure> {
    use ado_netsim::bridge::{Bridge, Config};
    let BridgeArguments { near, far, conditions } = arguments;
    let config = Config { near, far, scenario: conditions.scenario()?, record: conditions.record.clone() };
    let bridge = Bridge::start(config)?;
    let tell = move |line: &str| match bridge.tell(line, &read_file) {
        Ok(answer) => answer,
        Err(error) => format!("error: {error}"),
    };
    obey(&conditions, "{\"bridge\":\"up\"}", Arc::new(tell)).await
}

fn plot(arguments: &PlotArguments) -> Result<(), Failure> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", arguments.record.display());
    let text = std::fs::read_to_string(&arguments.record).map_err(|error| named(&error))?;
    let svg = ado_netsim::plot::svg(&text).map_err(|error| named(&error))?;
    match &arguments.output {
        Some(path) => std::fs::write(path, svg).map_err(|error| format!("{}: {error}", path.display()))?,
        None => say(&svg)?,
    }
    Ok(())
}

impl Conditions {
    fn scenario(&self) -> Result<Scenario, Failure> {
        let text = match &self.scenario {
            Some(path) => std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?,
            None => String::new(),
        };
        let named = |error| format!("{}: {error}", self.scenario.as_deref().unwrap_or("".as_ref()).display());
        let mut scenario = Scenario::parse(&text, &read_file).map_err(named)?;
        scenario.seed = self.seed.unwrap_or(scenario.seed);
        if let Some(profile) = self.profile {
            scenario.begin_with(profile);
        }
        Ok(scenario)
    }
}

fn read_file(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

type Tell = dyn Fn(&str) -> String + Send + Sync;

/// Says that it has started, and takes commands until a signal, or the end of standard input if that is to be the end.
async fn obey(conditions: &Conditions, started: &str, tell: Arc<Tell>) -> Result<(), Failure> {
    let (ended, mut end) = mpsc::channel::<()>(1);
    let _socket = match &conditions.control {
        Some(path) => Some(control::listen(path, tell.clone())?),
        None => None,
    };
    say(started)?;
    let until_eof = conditions.until_eof;
    tokio::spawn(async move {
        answer(tokio::io::stdin(), tokio::io::stdout(), tell).await;
        if until_eof {
            let _ = ended.send(()).await;
        } else {
            std::future::pending::<()>().await;
        }
    });
    tokio::select! {
        biased;
        result = signalled() => Ok(result?),
        _ = end.recv() => Ok(()),
    }
}

async fn answer(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, tell: Arc<Tell>) {
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.trim().is_empty() {
            continue;
        }
        let answer = tell(&line);
        if to.write_all(format!("{answer}\n").as_bytes()).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

#[cfg(unix)]
async fn signalled() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        biased;
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

#[cfg(not(unix))]
async fn signalled() -> std::io::Result<()> {
    tokio::signal::ctrl_c().await
}

#[cfg(unix)]
mod control {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use tokio::net::UnixListener;

    use super::{Failure, Tell, answer};

    /// A socket's file, gone with this.
    pub(super) struct Socket(PathBuf);

    impl Drop for Socket {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    pub(super) fn listen(path: &Path, tell: Arc<Tell>) -> Result<Socket, Failure> {
        let listener = UnixListener::bind(path).map_err(|error| format!("listen on {}: {error}", path.display()))?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (from, to) = stream.into_split();
                tokio::spawn(answer(from, to, tell.clone()));
            }
        });
        Ok(Socket(path.to_owned()))
    }
}

#[cfg(not(unix))]
mod control {
    use std::path::Path;
    use std::sync::Arc;

    use super::{Failure, Tell};

    pub(super) fn listen(path: &Path, _: Arc<Tell>) -> Result<(), Failure> {
        Err(format!("--control {}: there are no Unix sockets here", path.display()).into())
    }
}
