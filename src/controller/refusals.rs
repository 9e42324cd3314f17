//! Refusals on their way into the audit log: whoever is refused again and again is counted there, so that a flood of what
//! nobody may cannot fill it.
//!
//! The counting is pure: lines and instants in, lines out.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ado_proto::Namespace;
use tokio::time::Instant;

use super::Shared;
use crate::store::Audit;

/// Repetitions within this are one line, which is written at its end.
const WINDOW: Duration = Duration::from_secs(60);
/// Different lines of one principal in a window. What it is refused beyond is one line a request.
const MOST_OF_ONE: usize = 20;
/// Different lines of all in a window. What is refused beyond is one line.
const MOST: usize = 500;
/// Most bytes of a line's texts: they are somebody else's.
const MOST_BYTES: usize = 256;

/// What was refused lately.
#[derive(Default)]
pub(super) struct Refusals(Mutex<Window>);

#[derive(Default)]
struct Window {
    /// When its first line came.
    since: Option<Instant>,
    /// How often each has come since it was written.
    seen: BTreeMap<Key, u32>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    namespace: Namespace,
    principal: String,
    action: &'static str,
    target: String,
    result: String,
}

impl Refusals {
    /// A refusal; the line to write at once, if it has not been written lately.
    pub(super) fn note(&self, line: Audit, now: Instant) -> Option<Audit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).note(line, now)
    }

    /// What has been counted in a window that is over, or with `all` in this one too.
    fn take(&self, now: Instant, all: bool) -> Vec<Audit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(now, all)
    }
}

impl Window {
    fn note(&mut self, line: Audit, now: Instant) -> Option<Audit> {
        self.since.get_or_insert(now);
        let key = Key::of(line);
        if let Some(count) = self.seen.get_mut(&key) {
            *count = count.saturating_add(1);
            return None;
        }
        let of_one = self.seen.keys().filter(|seen| seen.principal == key.principal).count();
        let more = "more of this was refused".to_owned();
        let together = match (self.seen.len() >= MOST, of_one >= MOST_OF_ONE) {
            (true, _) => Key { principal: "several".into(), action: "", target: String::new(), result: more, ..key },
            (false, true) => Key { target: String::new(), result: more, ..key },
            (false, false) => {
                self.seen.insert(key.clone(), 0);
                return Some(key.line(1));
            }
        };
        let count = self.seen.entry(together).or_default();
        *count = count.saturating_add(1);
        None
    }

    fn take(&mut self, now: Instant, all: bool) -> Vec<Audit> {
        if !all && self.since.is_none_or(|since| now - since < WINDOW) {
            return Vec::new();
        }
        self.since = None;
        let counted = std::mem::take(&mut self.seen).into_iter().filter(|(_, count)| *count > 0);
        counted.map(|(key, count)| key.line(count)).collect()
    }
}

impl Key {
    fn of(line: Audit) -> Self {
        let Audit { namespace, principal, action, target, result, count: _ } = line;
        Self { namespace: Namespace(cut(namespace.0)), principal, action, target: cut(target), result: cut(result) }
    }

    fn line(self, count: u32) -> Audit {
        let Self { namespace, principal, action, target, result } = self;
        Audit { namespace, principal, action, target, result, count }
    }
}

/// Text from elsewhere, as far as the audit log takes it.
pub(super) fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MOST_BYTES));
    text
}

/// Writes what has been counted, until the controller stops, and then the rest.
pub(super) async fn run(shared: Shared) {
    loop {
        let stopping = tokio::select! {
            biased;
            () = shared.tasks.stopping() => true,
            () = tokio::time::sleep(WINDOW / 6) => false,
        };
        for line in shared.refusals.take(Instant::now(), stopping) {
            shared.audit(line).await.unwrap_or_else(|error| tracing::warn!(%error, "not in the audit log"));
        }
        if stopping {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(principal: &str, target: &str) -> Audit {
        let line = Audit::done(Namespace::default(), principal.into(), "SetDesired", target);
        Audit { result: "no".into(), ..line }
    }

    fn words(lines: &[Audit]) -> Vec<String> {
        lines.iter().map(|line| format!("{} {} {} x{}", line.principal, line.action, line.target, line.count)).collect()
    }

    #[test]
    fn what_is_repeated_is_counted() {
        let (mut window, now) = (Window::default(), Instant::now());
        assert_eq!(window.note(line("ann", "a"), now), Some(line("ann", "a")));
        assert_eq!(window.note(line("ann", "b"), now), Some(line("ann", "b")));
        for _ in 0..1000 {
            assert_eq!(window.note(line("ann", "a"), now + WINDOW / 2), None);
        }
        assert_eq!(window.take(now + WINDOW - Duration::from_millis(1), false), []);
        assert_eq!(words(&window.take(now + WINDOW, false)), ["ann SetDesired a x1000"], "b is there already");
        assert_eq!(window.note(line("ann", "a"), now + WINDOW), Some(line("ann", "a")), "a new window");
        assert_eq!(window.note(line("ann", "a"), now + WINDOW), None);
        assert_eq!(words(&window.take(now + WINDOW, true)), ["ann SetDesired a x1"], "it stops");
    }

    #[test]
    fn a_flood_of_different_things_has_a_bound() {
        let (mut window, now) = (Window::default(), Instant::now());
        let mut written = 0;
        for n in 0..10_000 {
            written += usize::from(window.note(line("ann", &n.to_string()), now).is_some());
        }
        assert_eq!(written, MOST_OF_ONE);
        assert_eq!(window.note(line("bob", "a"), now), Some(line("bob", "a")), "who is not hidden by it");
        assert_eq!(words(&window.take(now, true)), ["ann SetDesired  x9980"]);
        for n in 0..10_000 {
            written += usize::from(window.note(line(&n.to_string(), "a"), now).is_some());
        }
        assert_eq!(written, MOST_OF_ONE + MOST);
        assert_eq!(words(&window.take(now, true)), ["several   x9500"]);
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let long = Audit { result: "ü".repeat(9000), ..line("ann", &"x".repeat(9000)) };
        let written = Window::default().note(long, Instant::now()).unwrap();
        assert_eq!((written.target.len(), written.result.len()), (MOST_BYTES, MOST_BYTES));
        assert_eq!(cut(format!("x{}", "ü".repeat(200))).len(), MOST_BYTES - 1);
    }
}
