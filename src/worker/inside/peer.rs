//! Who may speak for a task: the processes below its guard. All tasks of a worker run as the same user, so a path that is
//! known does not prove whose a process is; who its ancestors are does, since nothing leaves its guard's part of the tree.

#[cfg(target_os = "linux")]
use crate::worker::containment;

/// Levels that are climbed at most.
#[cfg(target_os = "linux")]
const DEPTH: usize = 256;
/// A parent that ends while we climb leaves its children to the guard: they are looked at again.
#[cfg(target_os = "linux")]
const TRIES: usize = 3;

/// Whether the process is a descendant of `guard`. One that is gone is nobody's.
#[cfg(target_os = "linux")]
pub(super) fn is_below(guard: u32, pid: i32) -> bool {
    (0..TRIES).any(|_| climb(guard, pid, parent))
}

/// Who may open the socket is the same user, and more cannot be told here.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_below(_guard: u32, _pid: i32) -> bool {
    true
}

#[cfg(target_os = "linux")]
fn climb(guard: u32, pid: i32, parent: impl Fn(i32) -> Option<i32>) -> bool {
    let ancestors = std::iter::successors(parent(pid), |pid| parent(*pid));
    ancestors.take(DEPTH).any(|ancestor| u32::try_from(ancestor) == Ok(guard))
}

#[cfg(target_os = "linux")]
fn parent(pid: i32) -> Option<i32> {
    if pid <= 1 {
        return None;
    }
    containment::parent(pid)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn only_those_below_the_guard_are_its_own() {
        // 1 ← 10 (guard) ← 11 ← 12; 1 ← 20 (guard) ← 21; 30 is gone.
        let parents = |pid| [(10, 1), (11, 10), (12, 11), (20, 1), (21, 20), (1, 0)].into_iter().find(|p| p.0 == pid);
        let of = |pid| parents(pid).map(|(_, parent)| parent);
        assert!(climb(10, 11, of) && climb(10, 12, of));
        assert!(!climb(10, 21, of) && !climb(10, 20, of) && !climb(10, 1, of) && !climb(10, 30, of));
        assert!(!climb(10, 10, of), "the guard itself says nothing");
    }

    #[test]
    fn a_ring_that_changes_while_it_is_climbed_ends() {
        assert!(!climb(10, 2, |pid| Some(if pid == 2 { 3 } else { 2 })));
    }

    #[test]
    fn real_processes() {
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(is_below(own, pid));
        assert!(!is_below(child.id(), i32::try_from(own).unwrap()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_below(own, pid), "it is gone");
    }
}
