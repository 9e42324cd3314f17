//! One stream of a task's log that is written in parts by whoever reads an agent: positions, and secrets hidden.

use std::sync::Arc;
use std::time::Duration;

use ado_proto::record::{Body, MAX_OUTPUT, Output, Stream};
use bytes::BytesMut;
use tokio::time::Instant;

use super::redact::{Redacting, Redactor};

/// How long is held back what may be the beginning of a secret: more than a model pauses between two pieces of what it
/// says, where a secret may be cut.
const HOLD_FOR: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Debug)]
pub(super) struct Track {
    stream: Stream,
    /// Bytes given out.
    position: u64,
    hiding: Option<Redacting>,
    release_at: Option<Instant>,
}

impl Track {
    pub(super) fn new(stream: Stream, redactor: Option<&Arc<Redactor>>) -> Self {
        Self { stream, position: 0, hiding: redactor.map(|redactor| redactor.stream()), release_at: None }
    }

    /// Takes what was written, adds the records of it.
    pub(super) fn write(&mut self, data: &[u8], bodies: &mut impl Extend<Body>) {
        let Some(hiding) = &mut self.hiding else { return self.give(data, bodies) };
        let mut shown = BytesMut::new();
        hiding.take(data, &mut shown);
        self.release_at = match (hiding.held(), self.release_at) {
            (0, _) => None,
            // Some of it was held before.
            (held, Some(at)) if held > data.len() => Some(at),
            _ => Some(Instant::now() + HOLD_FOR),
        };
        self.give(&shown, bodies);
    }

    /// When [`Self::release`] has something to do.
    pub(super) fn release_at(&self) -> Option<Instant> {
        self.release_at
    }

    /// Gives out what is held, whatever it may be the beginning of.
    pub(super) fn release(&mut self, bodies: &mut impl Extend<Body>) {
        self.release_at = None;
        if let Some(hiding) = &mut self.hiding {
            let mut shown = BytesMut::new();
            hiding.release(&mut shown);
            self.give(&shown, bodies);
        }
    }

    fn give(&mut self, data: &[u8], bodies: &mut impl Extend<Body>) {
        bodies.extend(data.chunks(MAX_OUTPUT).map(|piece| {
            let position = self.position;
            self.position += piece.len() as u64;
            Body::from(Output { stream: self.stream, position, data: bytes::Bytes::copy_from_slice(piece) })
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bodies: &[Body]) -> String {
        let outputs = bodies.iter().map(|body| match body {
            Body::Output(output) => output,
            other => panic!("{other:?}"),
        });
        let mut position = 0;
        let mut text = String::new();
        for output in outputs {
            assert_eq!(output.position, position);
            assert!(output.data.len() <= MAX_OUTPUT);
            position += output.data.len() as u64;
            text.push_str(std::str::from_utf8(&output.data).unwrap());
        }
        text
    }

    #[tokio::test(start_paused = true)]
    async fn a_secret_is_hidden_across_writes_and_held_a_moment_only() {
        let redactor = Redactor::new(["hunter2-hunter2"]).map(Arc::new);
        let mut track = Track::new(Stream::Tool, redactor.as_ref());
        let mut bodies = Vec::new();
        track.write(b"key: hunter2", &mut bodies);
        assert_eq!(text(&bodies), "key: ");
        assert!(track.release_at().is_some());
        track.write(b"-hunter2!", &mut bodies);
        assert_eq!((text(&bodies).as_str(), track.release_at()), ("key: ***!", None));
        track.write(b"hunter", &mut bodies);
        track.release(&mut bodies);
        assert_eq!((text(&bodies).as_str(), track.release_at()), ("key: ***!hunter", None));
    }

    #[tokio::test]
    async fn long_writes_are_several_records() {
        let mut track = Track::new(Stream::Stdout, None);
        let mut bodies = Vec::new();
        track.write(&vec![b'x'; 2 * MAX_OUTPUT + 1], &mut bodies);
        assert_eq!((bodies.len(), text(&bodies).len()), (3, 2 * MAX_OUTPUT + 1));
    }
}
