//! The guard's end of the control socket. Never blocks: a worker that does not read must not keep the guard from its
//! deadlines.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::protocol::{self, FromGuard, ToGuard};

pub(super) struct Control {
    stream: UnixStream,
    buffer: Vec<u8>,
    closed: bool,
}

impl Control {
    /// The socket at standard input.
    pub(super) fn stdin() -> io::Result<Self> {
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        stream.set_nonblocking(true)?;
        Ok(Self { stream, buffer: Vec::new(), closed: false })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether the worker is gone, or might as well be.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// What has come.
    pub(super) fn receive(&mut self) -> Vec<ToGuard> {
        let mut chunk = [0; 64 * 1024];
        while !self.closed {
            match self.stream.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(length) => self.buffer.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.closed = true,
            }
        }
        let mut messages = Vec::new();
        loop {
            match protocol::take(&mut self.buffer) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return messages,
                Err(_) => {
                    self.closed = true;
                    return messages;
                }
            }
        }
    }

    /// Says something. The socket holds thousands of these messages: a worker that left so many unread is not one.
    pub(super) fn tell(&mut self, message: &FromGuard) {
        let sent = protocol::encode(message).map_err(io::Error::other).and_then(|bytes| self.stream.write_all(&bytes));
        self.closed |= sent.is_err();
    }
}
