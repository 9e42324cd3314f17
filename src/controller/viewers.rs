//! Who follows what, so that viewers can be asked to leave.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ado_proto::TaskId;
use tokio::sync::oneshot;

/// Viewers of this controller that stay.
#[derive(Default)]
pub(super) struct Viewers(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    seated: u64,
    seats: BTreeMap<(TaskId, u64), Entry>,
}

struct Entry {
    /// `ado://…`.
    principal: String,
    /// Tells the viewer who wants it to leave.
    leave: oneshot::Sender<String>,
}

/// A viewer's place. When it is dropped, the viewer has left.
pub(super) struct Seat {
    viewers: Arc<Viewers>,
    key: (TaskId, u64),
    /// `None` when nobody can ask any more.
    asked: Option<oneshot::Receiver<String>>,
}

/// Viewers that will be told to leave. Until then nobody else can tell them.
pub(super) struct Leaving(Vec<((TaskId, u64), Entry)>);

impl Viewers {
    /// How many they are.
    pub(super) fn count(&self) -> usize {
        self.lock().seats.len()
    }

    /// A viewer comes.
    pub(super) fn join(self: &Arc<Self>, task: TaskId, principal: &str) -> Seat {
        let (leave, asked) = oneshot::channel();
        let mut inner = self.lock();
        inner.seated += 1;
        let key = (task, inner.seated);
        inner.seats.insert(key, Entry { principal: principal.into(), leave });
        Seat { viewers: self.clone(), key, asked: Some(asked) }
    }

    /// Takes the viewers of tasks: of one principal, or everybody's.
    pub(super) fn take(&self, tasks: &[TaskId], principal: Option<&str>) -> Leaving {
        let mut inner = self.lock();
        let mut taken = Vec::new();
        for task in tasks {
            let theirs = inner.seats.range((*task, 0)..=(*task, u64::MAX));
            let meant = theirs.filter(|(_, entry)| principal.is_none_or(|own| entry.principal == own));
            let keys: Vec<_> = meant.map(|(key, _)| *key).collect();
            taken.extend(keys.into_iter().filter_map(|key| inner.seats.remove_entry(&key)));
        }
        Leaving(taken)
    }

    /// They stay after all.
    pub(super) fn put_back(&self, leaving: Leaving) {
        let mut inner = self.lock();
        // Who has left meanwhile has left.
        inner.seats.extend(leaving.0.into_iter().filter(|(_, entry)| !entry.leave.is_closed()));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leaving {
    /// How many they are.
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// Tells them who asked.
    pub(super) fn tell(self, by: &str) {
        for (_, entry) in self.0 {
            // Fails for who has left by itself.
            let _ = entry.leave.send(by.into());
        }
    }
}

impl Seat {
    /// Who has asked the viewer to leave, if somebody has.
    pub(super) fn asked(&mut self) -> Option<String> {
        self.asked.as_mut()?.try_recv().ok()
    }

    /// Resolves when somebody asks the viewer to leave. Cancel safe.
    pub(super) async fn leave(&mut self) -> String {
        if let Some(asked) = &mut self.asked {
            if let Ok(by) = asked.await {
                return by;
            }
            self.asked = None;
        }
        std::future::pending().await
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // First, so that whoever puts it back either sees this or is undone by what follows.
        self.asked = None;
        self.viewers.lock().seats.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const ANN: &str = "ado://default/user/ann";
    const BOB: &str = "ado://default/user/bob";

    fn task(n: u128) -> TaskId {
        TaskId(Uuid::from_u128(n))
    }

    #[test]
    fn only_those_who_are_meant_are_told_and_once() {
        let viewers = Arc::new(Viewers::default());
        let mut seats = [(1, ANN), (1, BOB), (1, ANN), (2, ANN), (3, ANN)].map(|(n, who)| viewers.join(task(n), who));
        let anns = viewers.take(&[task(1), task(2)], Some(ANN));
        assert_eq!(anns.count(), 3);
        assert_eq!(viewers.take(&[task(1), task(2)], Some(ANN)).count(), 0, "they are spoken for");
        assert!(seats.iter_mut().all(|seat| seat.asked().is_none()), "nobody was told yet");
        anns.tell("user/ann");
        let told = seats.each_mut().map(|seat| seat.asked().is_some());
        assert_eq!(told, [true, false, true, true, false]);
        assert_eq!(viewers.take(&[task(1), task(2), task(3)], None).count(), 2, "everybody who is left");
    }

    #[test]
    fn who_is_put_back_can_be_asked_again_and_who_left_is_gone() {
        let viewers = Arc::new(Viewers::default());
        let (stays, leaves) = (viewers.join(task(1), ANN), viewers.join(task(1), ANN));
        let taken = viewers.take(&[task(1)], None);
        drop(leaves);
        viewers.put_back(taken);
        assert_eq!(viewers.lock().seats.len(), 1);
        assert_eq!(viewers.take(&[task(1)], None).count(), 1);
        drop(stays);
        assert!(viewers.lock().seats.is_empty());
        drop(viewers.join(task(1), ANN));
        assert!(viewers.lock().seats.is_empty());
    }
}
