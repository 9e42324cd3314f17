//! How busy this machine is, as far as this process may use it. Cheap: a handful of small files every heartbeat.

use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::thread::available_parallelism;

use ado_proto::request::Load;

/// Looks. What this system does not tell is 0.
pub(super) fn read() -> Load {
    let (memory, memory_available) = memory(Path::new("/"));
    Load {
        // Knows of affinity and of quotas of control groups.
        cpus: available_parallelism().map_or(0, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        load_milli: load_milli(),
        memory,
        memory_available,
    }
}

#[expect(unsafe_code, reason = "no wrapper has this call")]
fn load_milli() -> u32 {
    let mut minute = 0.0;
    // SAFETY: it writes one number at most, as it is told.
    let count = unsafe { libc::getloadavg(&raw mut minute, 1) };
    // The cast keeps to the range of u32.
    if count == 1 { (minute * 1000.0).round() as u32 } else { 0 }
}

/// Bytes of memory this process may use, and of those that are free; `root` is where the system's files are.
fn memory(root: &Path) -> (u64, u64) {
    let machine = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let mut total = kib(&machine, "MemTotal:").unwrap_or(0);
    let mut available = kib(&machine, "MemAvailable:").unwrap_or(0);
    for (group, version) in groups(&own) {
        for (limit, used) in limits(root, group, version) {
            total = total.min(limit);
            available = available.min(limit.saturating_sub(used));
        }
    }
    (total, available)
}

/// A number of KiB in /proc/meminfo, in bytes.
fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    Some(first::<u64>(line)?.saturating_mul(1024))
}

fn first<T: FromStr>(text: &str) -> Option<T> {
    text.split_whitespace().next()?.parse().ok()
}

/// Names of a version's files.
struct Version {
    mount: &'static str,
    limit: &'static str,
    used: &'static str,
    /// Cache that would be given back, in `memory.stat`.
    cache: &'static str,
}

const V1: Version = Version {
    mount: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: "total_inactive_file",
};
const V2: Version =
    Version { mount: "sys/fs/cgroup", limit: "memory.max", used: "memory.current", cache: "inactive_file" };

/// The groups that may limit memory, of /proc/self/cgroup.
fn groups(own: &str) -> impl Iterator<Item = (&str, &'static Version)> {
    own.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next()?, parts.next()?);
        if controllers.is_empty() {
            return Some((group, &V2));
        }
        controllers.split(',').any(|controller| controller == "memory").then_some((group, &V1))
    })
}

/// Limit and use of a group and of all around it, where there is a limit. Inside a container the path may be the one
/// outside; then the mount itself is the container's group.
fn limits(root: &Path, group: &str, version: &Version) -> Vec<(u64, u64)> {
    let mount = root.join(version.mount);
    let own = mount.join(group.trim_start_matches('/'));
    let levels = own.ancestors().take_while(|level| level.starts_with(&mount));
    let limited = levels.filter_map(|level| {
        let number = |name: &str| first(&fs::read_to_string(level.join(name)).ok()?);
        let (limit, used): (u64, u64) = (number(version.limit)?, number(version.used)?);
        let stat = fs::read_to_string(level.join("memory.stat")).unwrap_or_default();
        let cache = stat.lines().find_map(|line| line.strip_prefix(version.cache)?.strip_prefix(' ')?.parse().ok());
        Some((limit, used.saturating_sub(cache.unwrap_or(0))))
    });
    limited.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       16384 kB\nMemFree:         1024 kB\nMemAvailable:    8192 kB\n";
    const MIB: u64 = 1 << 20;

    fn machine(files: &[(&str, &str)]) -> (u64, u64) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        memory(root.path())
    }

    #[test]
    fn a_machine_without_limits_is_as_it_says() {
        assert_eq!(machine(&[("proc/meminfo", MEMINFO)]), (16 * MIB, 8 * MIB));
        let unlimited = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "4:memory:/a\n0::/b\n"),
            ("sys/fs/cgroup/b/memory.max", "max\n"),
            ("sys/fs/cgroup/b/memory.current", "77\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "77\n"),
        ];
        assert_eq!(machine(&unlimited), (16 * MIB, 8 * MIB));
        assert_eq!(machine(&[]), (0, 0), "not known");
    }

    #[test]
    fn the_narrowest_group_counts_and_its_cache_is_free() {
        let v2 = [
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("sys/fs/cgroup/outer/memory.max", "4194304\n"),
            ("sys/fs/cgroup/outer/memory.current", "2097152\n"),
            ("sys/fs/cgroup/outer/memory.stat", "anon 1\ninactive_file 1048576\nfile 3\n"),
            ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
            ("sys/fs/cgroup/outer/inner/memory.current", "1\n"),
        ];
        assert_eq!(machine(&v2), (4 * MIB, 3 * MIB));
        let v1 = [
            ("proc/meminfo", MEMINFO),
            // The path is the one outside of the container.
            ("proc/self/cgroup", "9:name=systemd:/x\n4:cpu,memory:/docker/0123\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2097152\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "9999999\n"),
        ];
        assert_eq!(machine(&v1), (2 * MIB, 0));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_something() {
        let load = read();
        assert!(load.cpus > 0 && load.memory > 0 && load.memory_available <= load.memory, "{load:?}");
    }
}
