//! The terminal while the dashboard has it. However the dashboard ends, the terminal is as it was before.

use std::io::{self, Stdout, stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use tokio::sync::mpsc;

use super::draw::draw;
use super::model::{Key, Model};

/// How often the thread that reads keys looks whether it should end.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Keys that may wait. More are not what anybody meant.
const KEYS: usize = 64;

/// What comes from the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FromTerminal {
    Key(Key),
    Resized,
    /// It is gone.
    Gone,
}

/// A terminal in raw mode with the dashboard on it.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    /// What of the terminal has to be restored.
    taken: Arc<Taken>,
    keys: Keys,
}

#[derive(Default)]
struct Taken {
    raw: AtomicBool,
    screen: AtomicBool,
}

impl Taken {
    fn enter(&self) -> io::Result<()> {
        self.raw.store(true, Ordering::SeqCst);
        enable_raw_mode()?;
        self.screen.store(true, Ordering::SeqCst);
        execute!(stdout(), EnterAlternateScreen, Clear(ClearType::All))
    }

    fn leave(&self) {
        // A terminal that is gone takes nothing, and needs nothing.
        if self.screen.swap(false, Ordering::SeqCst) {
            let _ = execute!(stdout(), LeaveAlternateScreen, Show);
        }
        if self.raw.swap(false, Ordering::SeqCst) {
            let _ = disable_raw_mode();
        }
    }
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn enter() -> io::Result<Self> {
        let taken = Arc::<Taken>::default();
        // Words about a panic are to be read, not painted over.
        let (restored, before) = (taken.clone(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            restored.leave();
            before(panic);
        }));
        let entered = taken.enter().and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        match entered {
            Ok(terminal) => Ok(Self { terminal, taken, keys: Keys::start() }),
            Err(error) => {
                taken.leave();
                Err(error)
            }
        }
    }

    /// Draws the dashboard.
    ///
    /// # Errors
    /// When the terminal takes nothing, or was restored because some thread panicked.
    pub(super) fn draw(&mut self, model: &Model) -> io::Result<()> {
        if !self.taken.screen.load(Ordering::SeqCst) {
            return Err(io::Error::other("a part of ado failed"));
        }
        self.terminal.draw(|frame| draw(model, frame)).map(drop)
    }

    /// What comes next. Cancel safe.
    pub(super) async fn next(&mut self) -> FromTerminal {
        self.keys.rx.recv().await.unwrap_or(FromTerminal::Gone)
    }

    /// Gives the terminal to somebody else for a while.
    pub(super) fn lend(&mut self) {
        self.keys.stop();
        self.taken.leave();
    }

    /// Waits for a key without taking the screen: what is on it is still to be read.
    pub(super) async fn wait_for_key(&mut self) -> io::Result<()> {
        self.taken.raw.store(true, Ordering::SeqCst);
        enable_raw_mode()?;
        self.keys = Keys::start();
        while self.next().await == FromTerminal::Resized {}
        self.keys.stop();
        Ok(())
    }

    /// Takes it back.
    pub(super) fn take_back(&mut self) -> io::Result<()> {
        self.taken.enter()?;
        // One that has drawn nothing yet: to clear the old one it would ask the terminal where its cursor is, and the
        // answer may be a key that is typed.
        self.terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
        self.keys = Keys::start();
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.lend();
    }
}

/// A thread that reads the terminal: nothing else lets a read be given up.
struct Keys {
    rx: mpsc::Receiver<FromTerminal>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keys {
    fn start() -> Self {
        let (tx, rx) = mpsc::channel(KEYS);
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("keys".into()).spawn(move || read(&tx, &stopped)).ok();
        Self { rx, stop, thread }
    }

    /// Reads no more: what is typed from now on is somebody else's.
    fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(to: &mpsc::Sender<FromTerminal>, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let read = match event::poll(LOOK_EVERY) {
            Ok(false) => continue,
            Ok(true) => event::read(),
            Err(error) => Err(error),
        };
        let (seen, gone) = match read {
            Ok(Event::Key(key)) => (meaning(key).map(FromTerminal::Key), false),
            Ok(Event::Resize(..)) => (Some(FromTerminal::Resized), false),
            Ok(_) => (None, false),
            Err(_) => (Some(FromTerminal::Gone), true),
        };
        if let Some(seen) = seen {
            // Full: whoever reads is not there.
            let _ = to.try_send(seen);
        }
        if gone {
            return;
        }
    }
}

fn meaning(key: KeyEvent) -> Option<Key> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char('c' | 'd') if control => Key::Interrupt,
        KeyCode::Char('n') if control => Key::Down,
        KeyCode::Char('p') if control => Key::Up,
        KeyCode::Char(_) if control => return None,
        KeyCode::Char(c) => Key::Char(c),
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Tab => Key::Tab,
        KeyCode::BackTab => Key::BackTab,
        KeyCode::Backspace => Key::Backspace,
        _ => return None,
    })
}
