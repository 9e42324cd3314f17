//! `ado task`: what a task says about itself, from inside of it. No home, no configuration, no mesh: only the task's own
//! socket.

mod ask;
mod checkpoint;
mod fail;
mod log;
mod progress;

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ado_proto::CheckpointId;
use ado_proto::inside::{Answer, SOCKET, Say};
use serde_json::Value;
use serde_json::value::RawValue;

use super::Global;
use super::error::{Error, Kind};
use super::output::{Format, print};

/// Longest wait for an answer that needs nobody but this machine's worker.
const AT_ONCE: Duration = Duration::from_secs(30);

/// Report progress, checkpoints and messages from inside a task
///
/// For programs that ado runs: each task has a socket of its own, whose path is in ADO_SOCKET. Prints nothing unless asked
/// to with --output json, so that a task's output stays its own.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Progress(progress::Args),
    Checkpoint(checkpoint::Args),
    Ask(ask::Args),
    Log(log::Args),
    Fail(fail::Args),
}

pub(crate) fn run(global: &Global, args: Args) -> Result<u8, Error> {
    match args.command {
        Command::Progress(args) => progress::run(global, args),
        Command::Checkpoint(args) => checkpoint::run(global, args),
        Command::Ask(args) => ask::run(global, args),
        Command::Log(args) => log::run(global, args),
        Command::Fail(args) => fail::run(global, args),
    }
}

/// What a worker has to say to something.
struct Said {
    /// Of a checkpoint.
    checkpoint_id: Option<CheckpointId>,
    /// Of somebody who was asked.
    answer: Option<String>,
}

/// Says something to the task's worker, and waits for its answer for as long as `patience` says.
fn say(words: &Say<Box<RawValue>>, patience: Option<Duration>, example: &str) -> Result<Said, Error> {
    let Some(path) = std::env::var_os(SOCKET) else {
        let text = format!("this is for inside a task: {SOCKET} is not set here");
        return Err(Error::usage(text).hint(format!("ado run '{example}'")));
    };
    let gone = |error: io::Error| {
        let text = format!("no worker answers at {}: this task's attempt may be over", path.display());
        Error::new(Kind::Local, text).because(error)
    };
    let answer = ask(&path, words, patience).map_err(gone)?;
    match serde_json::from_str(&answer) {
        Ok(Answer::Ok { checkpoint_id, answer }) => Ok(Said { checkpoint_id, answer }),
        Ok(Answer::Error { message }) => Err(Error::new(Kind::Refused(0), message)),
        Err(error) => Err(Error::new(Kind::Local, "the worker's answer makes no sense").because(error)),
    }
}

/// What a command prints when it was understood.
fn done(global: &Global, json: impl FnOnce() -> Value) -> Result<u8, Error> {
    if global.output == Format::Json {
        let printed = print(Format::Json, &json(), String::new);
        printed.map_err(|error| Error::new(Kind::Local, "cannot print").because(error))?;
    }
    Ok(0)
}

fn ask(path: &std::ffi::OsStr, words: &Say<Box<RawValue>>, patience: Option<Duration>) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(patience)?;
    let mut line = serde_json::to_vec(words)?;
    line.push(b'\n');
    // Who is refused early may not be read to the end; the answer says why.
    let sent = stream.write_all(&line);
    let mut answer = String::new();
    match BufReader::new(stream).read_line(&mut answer) {
        Ok(1..) => Ok(answer),
        Ok(0) => sent.and(Err(io::ErrorKind::UnexpectedEof.into())),
        Err(error) => Err(sent.err().unwrap_or(error)),
    }
}
