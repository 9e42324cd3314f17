//! Processes of this machine, as anybody can look at them.

#![allow(dead_code, unreachable_pub, reason = "included by several test binaries, each of which uses a part")]

use std::fs;
use std::path::Path;

/// Processes that carry this marker (`NAME=value`) in their environment.
pub fn marked(marker: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let carries = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == marker.as_bytes())
    };
    pids.filter(carries).collect()
}

/// Whether a process cannot run: stopped, or in a frozen control group.
pub fn is_frozen(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    if stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')) {
        return true;
    }
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return false };
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().any(|mount| {
        let events = Path::new(mount).join(group).join("cgroup.events");
        fs::read_to_string(events).unwrap_or_default().lines().any(|line| line == "frozen 1")
    })
}
