//! What a worker and a guard say to each other: `length (u32, little endian) | postcard`. Both are the same build, so
//! these types may change freely.

use std::collections::{BTreeMap, BTreeSet};

use ado_proto::Secret;
use ado_proto::spec::{Containment, Exit, Limit, Resources};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::BootTime;

/// Longest message, bytes. More than the kernel takes as command line and environment.
const MAX_MESSAGE: usize = 8 * 1024 * 1024;
const HEAD: usize = 4;

/// From the worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuard {
    /// Run the agent. The first message; comes once.
    Start(Start),
    /// The lease holds until this instant. An earlier one than known is ignored.
    Renew(BootTime),
    /// The agent shall not run, for this reason.
    Freeze {
        /// Added to the set.
        reason: Reason,
        /// Comes back with the answer.
        mark: u64,
    },
    /// The reason is gone.
    Thaw {
        /// Taken out of the set.
        reason: Reason,
        /// Comes back with the answer.
        mark: u64,
    },
    /// Ask the agent to end (SIGTERM to its process group), kill it after the grace.
    Stop {
        /// Milliseconds.
        grace_ms: u64,
    },
    /// Kill it now.
    Kill,
    /// Kill it: a limit of time is over that the worker measures.
    TimeOut(Limit),
    /// It waits for somebody, or no longer does: time in which it does is no running time.
    Waits(bool),
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Program and arguments; never empty.
    pub argv: Vec<String>,
    /// The environment, but for the secrets.
    pub env: BTreeMap<String, String>,
    /// The rest of it.
    pub secrets: BTreeMap<String, Secret>,
    /// Working directory.
    pub cwd: String,
    /// What it reads on its standard input: a named pipe that its worker holds open, or nothing.
    pub stdin: Option<String>,
    /// Longest running time, milliseconds; time frozen does not count.
    pub time_limit_ms: Option<u64>,
    /// What is left of the time the task may take as a whole, milliseconds; counted like the running time.
    pub total_left_ms: Option<u64>,
    /// The lease holds until then.
    pub lease: BootTime,
    /// The strongest grade to try.
    pub containment: Containment,
    /// What it may use at most.
    pub limits: Resources,
}

/// Why an agent is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// A user asked.
    User,
    /// A snapshot is being taken.
    Snapshot,
    /// The lease ran out; the guard's own reason.
    Lease,
}

/// From the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGuard {
    /// The agent's program runs.
    Started {
        /// Its process id.
        pid: u32,
        /// How it is held.
        containment: Containment,
    },
    /// It could not be started. The guard ends after this.
    NotStarted {
        /// What was attempted and why it failed.
        error: String,
        /// Whether another try would fail the same way.
        permanent: bool,
    },
    /// The reasons changed, and the agent is frozen.
    Frozen {
        /// Why; not empty.
        reasons: BTreeSet<Reason>,
        /// Of the last freeze or thaw that counted.
        mark: u64,
    },
    /// No reason is left: the agent runs.
    Thawed {
        /// Of the last freeze or thaw that counted.
        mark: u64,
    },
    /// The agent ended and nothing of it is left. The guard ends after this.
    Exited(Exit),
}

/// The bytes are no message. The guard treats it as the worker's death.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Over the limit.
    #[error("message of {0} bytes is too long")]
    TooLong(usize),
    /// Not the type.
    #[error("malformed message")]
    Malformed,
}

/// The message as it travels.
///
/// # Errors
/// [`Error::TooLong`] when the other side would refuse it.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let mut out = postcard::to_extend(message, vec![0; HEAD]).map_err(|_| Error::Malformed)?;
    let length = out.len() - HEAD;
    if length > MAX_MESSAGE {
        return Err(Error::TooLong(length));
    }
    out[..HEAD].copy_from_slice(&u32::try_from(length).expect("below the limit").to_le_bytes());
    Ok(out)
}

/// Takes the first whole message off `buffer`; `None` means more bytes are needed.
///
/// # Errors
/// [`Error`]; nothing more can be read then.
pub fn take<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> Result<Option<T>, Error> {
    let Some(head) = buffer.first_chunk::<HEAD>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    if length > MAX_MESSAGE {
        return Err(Error::TooLong(length));
    }
    let end = HEAD + length;
    if buffer.len() < end {
        return Ok(None);
    }
    let message = postcard::from_bytes(&buffer[HEAD..end]).map_err(|_| Error::Malformed)?;
    buffer.drain(..end);
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_any_cut() {
        let messages = [
            ToGuard::Renew(BootTime(7)),
            ToGuard::Freeze { reason: Reason::User, mark: 3 },
            ToGuard::Kill,
            ToGuard::Stop { grace_ms: 10_000 },
        ];
        let bytes: Vec<u8> = messages.iter().flat_map(|message| encode(message).unwrap()).collect();
        for cut in 0..bytes.len() {
            let mut buffer = Vec::new();
            let mut read = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(message) = take::<ToGuard>(&mut buffer).unwrap() {
                    read.push(message);
                }
            }
            assert_eq!(read, messages);
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(take::<ToGuard>(&mut vec![0xff; 8]), Err(Error::TooLong(u32::MAX as usize)));
        assert_eq!(take::<ToGuard>(&mut vec![1, 0, 0, 0, 99]), Err(Error::Malformed));
    }
}
