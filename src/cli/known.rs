//! Where the controllers of a mesh are: those that were named, and those that the mesh has told of since.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::session::Joined;
use crate::client::Addresses;
use crate::local;

/// Most addresses that are kept: a mesh has few controllers.
const MOST: usize = 32;
/// After this it is asked again, also by commands that last no longer than an answer; sooner while one is known only,
/// without which nobody could be asked.
const OLD: Duration = Duration::from_secs(60);
const OLD_ALONE: Duration = Duration::from_secs(5);

/// Clones share what is learned.
#[derive(Clone)]
pub(crate) struct Known {
    named: Arc<[String]>,
    learned: Arc<Mutex<Vec<String>>>,
    file: PathBuf,
}

impl Known {
    /// `named` comes first. What was learned is kept in `file`.
    pub(crate) fn new(named: Vec<String>, file: &Path) -> Self {
        let learned = local::read_json::<Joined>(file).map(|joined| joined.controllers).unwrap_or_default();
        Self { named: named.into(), learned: Arc::new(Mutex::new(learned)), file: file.into() }
    }

    /// To dial, in this order.
    pub(crate) fn addresses(&self) -> Addresses {
        let known = self.clone();
        Arc::new(move || {
            let mut all = known.named.to_vec();
            for learned in known.learned.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                if !all.contains(learned) {
                    all.push(learned.clone());
                }
            }
            all
        })
    }

    /// Whether it has not been learned lately: a command that is about to end should ask.
    pub(crate) fn is_old(&self) -> bool {
        let learned_at = self.file.metadata().and_then(|file| file.modified());
        let old = if (self.addresses())().len() > 1 { OLD } else { OLD_ALONE };
        learned_at.map_or(true, |at| at.elapsed().is_ok_and(|age| age > old))
    }

    /// The mesh has told where its controllers are. They are kept in order of name: which of them told it does not matter.
    pub(crate) fn learn(&self, controllers: &[String]) {
        let mut controllers: Vec<_> = controllers.iter().take(MOST).cloned().collect();
        controllers.sort();
        controllers.dedup();
        let is_old = self.is_old();
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        if controllers.is_empty() || *learned == controllers && !is_old {
            return;
        }
        learned.clone_from(&controllers);
        if let Err(error) = local::write_json(&self.file, &Joined { controllers }) {
            tracing::warn!(%error, file = %self.file.display(), "what was learned serves this process only");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_learned_comes_after_what_was_named_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("known.json");
        let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let known = Known::new(texts(&["b:1"]), &file);
        let addresses = known.addresses();
        assert_eq!(addresses(), ["b:1"]);
        assert!(known.is_old());
        known.learn(&texts(&["c:1", "b:1", "a:1", "c:1"]));
        assert_eq!(addresses(), ["b:1", "a:1", "c:1"]);
        known.learn(&[]);
        assert!(!known.is_old());
        let again = Known::new(texts(&["c:1"]), &file);
        assert_eq!(again.addresses()(), ["c:1", "a:1", "b:1"]);
        again.learn(&texts(&["d:1"]));
        assert_eq!(again.addresses()(), ["c:1", "d:1"], "who is gone is forgotten, unless he was named");
    }
}
