//! `ado top`: what a mesh does, live.
//!
//! [`model`] decides, [`draw`] paints, [`feed`] asks, [`screen`] holds the terminal; this file joins them.

mod draw;
mod feed;
mod model;
mod panes;
mod rows;
mod screen;
#[cfg(test)]
mod tests;
mod text;

use std::io::{self, IsTerminal};
use std::pin::pin;
use std::time::Duration;

use ado_proto::TaskId;
use ado_proto::request::{StartAt, TaskInfo};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Global;
use super::error::{Error, Kind};
use super::observe;
use super::output::{Format, print};
use super::session::{App, Session};
use super::signals::Signals;
use super::watch::{Finish, OnInterrupt, Watch, Watched, look};
use crate::client::{Client, ConnectionState, Via};
use crate::config::Flags;
use model::{Effect, Input, Link, Model, update};
use screen::{FromTerminal, Screen};

/// How often ages are drawn anew.
const TICK: Duration = Duration::from_millis(500);
/// Answers that may wait to be shown.
const ANSWERS: usize = 16;
/// Lines that attaching begins with.
const TAIL: u32 = 100;
/// Width of a picture that is not for a terminal.
const WIDTH: u16 = 120;
/// Height of such a picture, beside its rows.
const HEIGHT: usize = 16;
/// Most rows of it.
const ROWS: usize = 400;

/// Watch tasks, workers and the connection live
///
/// Keys are explained by `?`. Enter attaches to the selected task; Ctrl-C comes back. Nothing is stopped by leaving.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one picture as plain text and exit
    #[arg(long)]
    once: bool,
}

pub(crate) async fn run(global: Global, args: Args) -> Result<u8, Error> {
    if global.output == Format::Json {
        let error = Error::usage("ado top is for people");
        return Err(error.hint("ado list --output json").hint("ado events --follow --output json"));
    }
    let on_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if !args.once && !on_terminal {
        let error = Error::usage("ado top needs a terminal: stdin or stdout is none");
        return Err(error.hint("ado top --once").hint("ado list").hint("ado events --follow --output json"));
    }
    // Words beside the picture would tear it.
    let silent = Global { quiet: true, ..global.clone() };
    let app = App::new(if args.once { global.clone() } else { silent }, Flags::default())?;
    let session = app.session().await?;
    // <https://no-color.org>
    let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let model = Model::new(session.context(), app.env.now(), colour);
    let done = if args.once {
        once(&app, &session, model).await
    } else {
        let dashboard = Dashboard { global: &global, app: &app, session: &session, model };
        dashboard.run().await
    };
    session.close().await;
    done.map(|()| 0)
}

/// One picture, as high as it has to be.
async fn once(app: &App, session: &Session, mut model: Model) -> Result<(), Error> {
    let inputs = feed::once(&session.client).await?;
    update(&mut model, Input::Tick { now: app.env.now(), link: link(&session.client) });
    for input in inputs {
        update(&mut model, input);
    }
    let width = terminal_size::terminal_size().map_or(WIDTH, |(width, _)| width.0);
    let rows = model.view().len() + model.workers.as_ref().map_or(0, Vec::len);
    let height = u16::try_from(rows.min(ROWS) + HEIGHT).expect("it is bounded");
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let Ok(_) = terminal.draw(|frame| draw::draw(&model, frame));
    print(Format::Text, &(), || plain(terminal.backend().buffer()))?;
    Ok(())
}

/// A picture as lines of text, without the keys in its last line.
fn plain(buffer: &ratatui::buffer::Buffer) -> String {
    let width = usize::from(buffer.area.width);
    let line = |cells: &[ratatui::buffer::Cell]| {
        let mut skip = 0;
        let mut text = String::new();
        for cell in cells {
            // The cells that a wide character covers are empty.
            if skip == 0 {
                text.push_str(cell.symbol());
                skip = unicode_width::UnicodeWidthStr::width(cell.symbol()).max(1);
            }
            skip -= 1;
        }
        text.trim_end().to_owned()
    };
    let mut lines: Vec<_> = buffer.content.chunks(width.max(1)).map(line).collect();
    lines.pop();
    lines.dedup_by(|a, b| a.is_empty() && b.is_empty());
    lines.join("\n")
}

struct Dashboard<'a> {
    /// As typed: how a task looks that is attached to.
    global: &'a Global,
    app: &'a App,
    session: &'a Session,
    model: Model,
}

impl Dashboard<'_> {
    async fn run(mut self) -> Result<(), Error> {
        let mut signals = Signals::catch()?;
        self.session.stay();
        let (tx, mut rx) = mpsc::channel(ANSWERS);
        let (preview, wanted) = watch::channel(None);
        feed::start(&self.session.client, &self.session.tasks, &tx, wanted);
        let mut screen = Screen::enter().map_err(broken)?;
        let mut taken_down = pin!(self.session.taken_down());
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let input = tokio::select! {
                biased;
                // Somebody sent it: on a terminal Ctrl-C is a key here.
                _ = signals.next() => return Ok(()),
                () = &mut taken_down => return Err(observe::taken_down()),
                from = screen.next() => match from {
                    FromTerminal::Key(key) => Input::Key(key),
                    FromTerminal::Resized => self.tick(),
                    FromTerminal::Gone => return Ok(()),
                },
                _ = tick.tick() => self.tick(),
                input = rx.recv() => input.expect("this side holds a sender"),
            };
            for effect in update(&mut self.model, input) {
                match effect {
                    Effect::Quit => return Ok(()),
                    Effect::Preview(task) => drop(preview.send(task)),
                    Effect::Desire(task, desired) => {
                        let work = feed::steer(self.session.client.clone(), task, desired, tx.clone());
                        self.session.tasks.spawn_until_stop("top steer", work);
                    }
                    Effect::Attach(task) => self.attach(task, &mut screen, &mut signals).await?,
                }
            }
            screen.draw(&self.model).map_err(broken)?;
        }
    }

    fn tick(&self) -> Input {
        Input::Tick { now: self.app.env.now(), link: link(&self.session.client) }
    }

    /// Lends the terminal to who watches a task, and takes it back.
    async fn attach(&mut self, task: TaskId, screen: &mut Screen, signals: &mut Signals) -> Result<(), Error> {
        let Some(info) = self.model.task(task).map(|task| task.info.clone()) else { return Ok(()) };
        screen.lend();
        let finish = self.watch(&info, signals).await;
        let said = match &finish {
            // What it wrote last is still to be read.
            Ok(Finish::End(_)) => Some(format!("{} has ended", info.id.short())),
            Ok(_) => None,
            Err(error) => Some(error.render(Format::Text).trim_end().to_owned()),
        };
        if let Some(said) = said {
            eprintln!("{said}; any key goes back to ado top");
            tokio::select! {
                biased;
                _ = signals.next() => {}
                key = screen.wait_for_key() => key.map_err(broken)?,
            }
        }
        screen.take_back().map_err(broken)?;
        let tick = self.tick();
        update(&mut self.model, tick);
        Ok(())
    }

    /// Shows a task as `ado attach` does; Ctrl-C comes back.
    async fn watch(&self, info: &TaskInfo, signals: &mut Signals) -> Result<Finish, Error> {
        let look = look(self.global, false);
        let watch = Watch {
            session: self.session,
            env: self.app.env.clone(),
            group: None,
            tasks: vec![Watched::of(info, Some(StartAt::Tail(TAIL)), look)],
            follow: true,
            look,
            on_interrupt: OnInterrupt::Detach,
        };
        watch.run(signals).await
    }
}

fn link(client: &Client) -> Link {
    match client.connection() {
        ConnectionState::Connected { rtt, path, via } => Link::Up {
            rtt,
            path: match via {
                Via::Udp => path.to_string(),
                Via::WebSocket => format!("{path} by WebSocket"),
            },
        },
        ConnectionState::Connecting { since, problem } => Link::Away {
            for_: Instant::now().duration_since(since),
            problem: problem.unwrap_or_else(|| "nobody has answered yet".into()),
        },
        ConnectionState::Closed { why } => Link::Away { for_: Duration::ZERO, problem: why },
    }
}

fn broken(error: io::Error) -> Error {
    Error::new(Kind::Local, "cannot use the terminal").because(error)
}
