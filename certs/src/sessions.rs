//! Sessions that may be resumed: the server's, and the client's tickets. In memory only.
//!
//! A session carries the client's certificate as it was when the session began, however often it is resumed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ado_proto::Timestamp;
use rustls::NamedGroup;
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::server::StoresServerSessions;

use crate::tls::{Clock, Holder};

/// A server's sessions, at most `limit`: the oldest goes first, and its client makes a full handshake.
///
/// Stateful on purpose: rustls gives up early data when sessions live in tickets. Each is taken once, so early data cannot
/// be replayed.
pub(crate) struct Sessions {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    // Key to age and session. Nobody sees the map's order.
    by_key: HashMap<Vec<u8>, (u64, Vec<u8>)>,
    by_age: BTreeMap<u64, Vec<u8>>,
    next_age: u64,
}

impl Sessions {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, held: Mutex::default() }
    }

    /// Every client makes a full handshake at its next connection.
    pub(crate) fn forget(&self) {
        *self.lock() = Held::default();
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn take(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        let (age, session) = self.by_key.remove(key)?;
        self.by_age.remove(&age);
        Some(session)
    }
}

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, session: Vec<u8>) -> bool {
        let mut held = self.lock();
        held.take(&key);
        let age = held.next_age;
        held.next_age += 1;
        held.by_age.insert(age, key.clone());
        held.by_key.insert(key, (age, session));
        if held.by_key.len() > self.limit
            && let Some((_, oldest)) = held.by_age.pop_first()
        {
            held.by_key.remove(&oldest);
        }
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.lock().by_key.get(key).map(|(_, session)| session.clone())
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.lock().take(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// Names of servers a client remembers tickets of. It asks for one name only.
const NAMES: usize = 4;

/// A client's tickets. They outlive a renewal of its certificate, but not the certificate they began with: the server
/// would see the expired one and refuse, though a new one is at hand.
pub(crate) struct Tickets {
    holder: Arc<Holder>,
    clock: Clock,
    current: Mutex<Batch>,
}

struct Batch {
    tickets: Arc<ClientSessionMemoryCache>,
    // The end of the oldest certificate a ticket of this batch may carry.
    until: Timestamp,
}

impl Tickets {
    pub(crate) fn new(holder: Arc<Holder>, clock: Clock) -> Self {
        let batch = Batch::new(&holder);
        Self { holder, clock, current: Mutex::new(batch) }
    }

    /// The next connection makes a full handshake, with the certificate of now.
    pub(crate) fn forget(&self) {
        *self.lock() = Batch::new(&self.holder);
    }

    fn tickets(&self) -> Arc<ClientSessionMemoryCache> {
        Arc::clone(&self.lock().tickets)
    }

    fn lock(&self) -> MutexGuard<'_, Batch> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batch {
    fn new(holder: &Holder) -> Self {
        Self { tickets: Arc::new(ClientSessionMemoryCache::new(NAMES)), until: holder.identity().not_after() }
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.tickets().set_kx_hint(server_name, group);
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.tickets().kx_hint(server_name)
    }

    fn set_tls12_session(&self, _server_name: ServerName<'static>, _value: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _server_name: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.tickets().insert_tls13_ticket(server_name, value);
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if self.lock().until <= self.clock.now() {
            self.forget();
        }
        self.tickets().take_tls13_ticket(server_name)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Vec<u8> {
        vec![n]
    }

    #[test]
    fn the_oldest_session_goes_first() {
        let sessions = Sessions::new(3);
        for n in 0..5 {
            assert!(sessions.put(key(n), vec![n; 10]));
        }
        let kept: Vec<_> = (0..5).filter(|n| sessions.get(&key(*n)).is_some()).collect();
        assert_eq!(kept, [2, 3, 4]);
        // One put again is the youngest.
        sessions.put(key(2), b"again".to_vec());
        sessions.put(key(5), Vec::new());
        assert_eq!(sessions.get(&key(3)), None);
        assert_eq!(sessions.take(&key(2)).unwrap(), b"again");
    }

    #[test]
    fn a_session_is_taken_once_and_frees_its_place() {
        let sessions = Sessions::new(2);
        sessions.put(key(1), Vec::new());
        sessions.put(key(2), Vec::new());
        assert!(sessions.take(&key(1)).is_some() && sessions.take(&key(1)).is_none());
        sessions.put(key(3), Vec::new());
        assert!(sessions.get(&key(2)).is_some() && sessions.get(&key(3)).is_some());
        sessions.forget();
        assert!(sessions.take(&key(2)).is_none());
        let held = sessions.lock();
        assert!(held.by_key.is_empty() && held.by_age.is_empty());
    }
}
