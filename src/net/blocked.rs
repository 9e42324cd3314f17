//! Networks that let no UDP pass, as far as that was found out.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Most networks that are remembered. A laptop sees a handful; one that is forgotten costs a head start.
const MOST: usize = 32;

/// A network is known by the address a machine has on it. Two may give the same: a WebSocket is then dialled in vain, and
/// UDP wins all the same.
pub struct Blocked {
    networks: Mutex<BTreeSet<IpAddr>>,
    changed: Box<Changed>,
}

type Changed = dyn Fn(&BTreeSet<IpAddr>) + Send + Sync;

impl Blocked {
    /// `known` are so; `changed` is told the whole whenever it has changed, to keep it.
    pub fn new(
        known: impl IntoIterator<Item = IpAddr>,
        changed: impl Fn(&BTreeSet<IpAddr>) + Send + Sync + 'static,
    ) -> Self {
        Self { networks: Mutex::new(known.into_iter().take(MOST).collect()), changed: Box::new(changed) }
    }

    pub(super) fn contains(&self, network: IpAddr) -> bool {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner).contains(&network)
    }

    pub(super) fn learn(&self, network: IpAddr, blocked: bool) {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = if blocked { networks.insert(network) } else { networks.remove(&network) };
        if changed {
            while networks.len() > MOST {
                networks.pop_first();
            }
            (self.changed)(&networks);
        }
    }
}

impl Default for Blocked {
    /// Knows nothing, and keeps what it learns for as long as it lives.
    fn default() -> Self {
        Self::new([], |_| {})
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_learned_is_told_once_and_bounded() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let blocked = Blocked::new([], move |all| tell.lock().unwrap().push(all.len()));
        let network = |n: u8| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n));
        blocked.learn(network(1), true);
        blocked.learn(network(1), true);
        blocked.learn(network(2), false);
        assert!(blocked.contains(network(1)) && !blocked.contains(network(2)));
        blocked.learn(network(1), false);
        assert_eq!(*told.lock().unwrap(), [1, 0]);
        (0..40).for_each(|n| blocked.learn(network(n), true));
        assert_eq!(*told.lock().unwrap().last().unwrap(), MOST);
    }
}
