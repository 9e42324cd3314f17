//! What Ctrl-C offers on a terminal. Pure.

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    Detach,
    Pause,
    Resume,
    Cancel,
    GoOn,
}

/// What can be chosen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Something is paused.
    pub(crate) resume: bool,
    /// Something is not.
    pub(crate) pause: bool,
}

impl Offer {
    /// The line that says so.
    pub(crate) fn line(self, name: &str) -> String {
        let pause = if self.pause { "  p pause" } else { "" };
        let resume = if self.resume { "  r resume" } else { "" };
        format!("{name}:  d detach{pause}{resume}  c cancel  Enter go on")
    }

    /// What was chosen by what keys sent, if anything: the first key that means something.
    pub(crate) fn choice(self, mut sent: &[u8]) -> Option<Choice> {
        while !sent.is_empty() {
            let (key, rest) = sent.split_at(length(sent));
            if let Some(choice) = self.choice_of_key(key) {
                return Some(choice);
            }
            sent = rest;
        }
        None
    }

    fn choice_of_key(self, key: &[u8]) -> Option<Choice> {
        match key {
            b"d" | b"D" | b"\x03" | b"\x04" => Some(Choice::Detach),
            b"p" | b"P" if self.pause => Some(Choice::Pause),
            b"r" | b"R" if self.resume => Some(Choice::Resume),
            b"c" | b"C" => Some(Choice::Cancel),
            b"\r" | b"\n" | b"\x1b" => Some(Choice::GoOn),
            _ => None,
        }
    }
}

/// How much of what was sent is the first key. Escape is a key of its own, and the beginning of what others send.
fn length(sent: &[u8]) -> usize {
    match sent {
        [0x1b, b'[', rest @ ..] => {
            let end = rest.iter().position(|byte| matches!(byte, 0x40..=0x7e));
            2 + end.map_or(rest.len(), |end| end + 1)
        }
        [0x1b, b'O', _, ..] => 3,
        [0x1b, _, ..] => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        let running = Offer { pause: true, resume: false };
        assert_eq!(running.line("task-x"), "task-x:  d detach  p pause  c cancel  Enter go on");
        for (key, choice) in [
            ("d", Some(Choice::Detach)),
            ("p", Some(Choice::Pause)),
            ("r", None),
            ("c", Some(Choice::Cancel)),
            ("\r", Some(Choice::GoOn)),
            ("\x1b", Some(Choice::GoOn)),
            ("\x1b[A", None),
            ("\x1bOP", None),
            ("x", None),
            ("x\x1b[1;5Ar\x1b", Some(Choice::GoOn)),
            ("xd", Some(Choice::Detach)),
        ] {
            assert_eq!(running.choice(key.as_bytes()), choice, "{key:?}");
        }
        let paused = Offer { pause: false, resume: true };
        assert_eq!((paused.choice(b"p"), paused.choice(b"r")), (None, Some(Choice::Resume)));
        assert_eq!(paused.line("task-x"), "task-x:  d detach  r resume  c cancel  Enter go on");
    }
}
