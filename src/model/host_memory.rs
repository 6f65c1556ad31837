//! How much memory this process may still take: what the machine has left, what its control groups
//! (containers, services) allow, and its own resource limits. The smallest counts.
//!
//! Control groups: <https://docs.kernel.org/admin-guide/cgroup-v2.html>, "Memory Interface Files",
//! and <https://docs.kernel.org/admin-guide/cgroup-v1/memory.html>.

use std::fmt;
use std::path::{Component, Path, PathBuf};

/// What limits memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The machine's memory.
    Machine,
    /// A control group's: a container's or a service's.
    Container,
    /// `RLIMIT_AS`.
    AddressSpace,
    /// `RLIMIT_DATA`.
    Data,
    /// The memory of a device of its own.
    Device,
    /// A setting: its key.
    Setting(&'static str),
}

/// Memory that may still be taken, and what says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// Bytes that may still be taken.
    pub free: u64,
    /// Bytes in all, what is in use included.
    pub limit: u64,
    /// What limits them.
    pub bound: Bound,
}

impl Headroom {
    /// The free memory of a device, whose whole is not known.
    pub fn of_device(free: u64) -> Self {
        Self {
            free,
            limit: free,
            bound: Bound::Device,
        }
    }

    /// What a setting allows.
    pub fn of_setting(key: &'static str, bytes: u64) -> Self {
        Self {
            free: bytes,
            limit: bytes,
            bound: Bound::Setting(key),
        }
    }

    /// The tighter of two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        if other.free < self.free { other } else { self }
    }

    /// What an operator can raise, as the end of a sentence that begins with "or".
    pub fn remedy(&self) -> &'static str {
        match self.bound {
            Bound::Machine => "free memory on the machine",
            Bound::Container => "raise the container's memory limit",
            Bound::AddressSpace => "raise the limit of its address space (ulimit -v)",
            Bound::Data => "raise the limit of its data (ulimit -d)",
            Bound::Device => "take a device with more memory",
            Bound::Setting(_) => "raise that setting",
        }
    }
}

impl fmt::Display for Headroom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (free, limit) = (self.free >> 20, self.limit >> 20);
        match self.bound {
            Bound::Machine => write!(f, "{free} MiB of the machine's {limit} MiB are free"),
            Bound::Container => write!(f, "{free} MiB of the container's {limit} MiB are free"),
            Bound::AddressSpace => {
                write!(f, "{free} MiB of the {limit} MiB of RLIMIT_AS are free")
            }
            Bound::Data => write!(f, "{free} MiB of the {limit} MiB of RLIMIT_DATA are free"),
            Bound::Device => write!(f, "{free} MiB are free on the device"),
            Bound::Setting(key) => write!(f, "{key} allows {limit} MiB"),
        }
    }
}

/// What this process may still take of the host's memory without swapping, where the system tells
/// (Linux).
pub fn headroom() -> Option<Headroom> {
    Root(Path::new("/")).headroom()
}

/// The root of a file system with the kernel's files; a test has one of its own.
struct Root<'a>(&'a Path);

impl Root<'_> {
    fn headroom(&self) -> Option<Headroom> {
        let bounds = [
            self.machine(),
            self.unified(),
            self.legacy(),
            self.address_space(),
            self.data(),
        ];
        bounds.into_iter().flatten().reduce(Headroom::min)
    }

    fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        let path = path.as_ref();
        std::fs::read_to_string(self.0.join(path.strip_prefix("/").unwrap_or(path))).ok()
    }

    fn machine(&self) -> Option<Headroom> {
        let text = self.read("/proc/meminfo")?;
        Some(Headroom {
            free: kilobytes(&text, "MemAvailable:")?,
            limit: kilobytes(&text, "MemTotal:").unwrap_or_default(),
            bound: Bound::Machine,
        })
    }

    /// Version 2: one hierarchy. Each group on the way to the root may limit what is below it.
    fn unified(&self) -> Option<Headroom> {
        let path = self.group(|controllers| controllers.is_empty())?;
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let groups = mounts.into_iter().flat_map(|mount| upwards(mount, &path));
        let bounds = groups.flat_map(|group| {
            let used = self.used(&group, "memory.current", "inactive_file");
            // Beyond `high`, the kernel slows the group down until it hardly moves.
            ["memory.max", "memory.high"].map(|file| bound(self.number(group.join(file))?, used?))
        });
        bounds.flatten().reduce(Headroom::min)
    }

    /// Version 1: a hierarchy for the memory controller.
    fn legacy(&self) -> Option<Headroom> {
        let path = self.group(|controllers| controllers.split(',').any(|c| c == "memory"))?;
        let groups = upwards("/sys/fs/cgroup/memory", &path).into_iter();
        let bounds = groups.filter_map(|group| {
            let used = self.used(&group, "memory.usage_in_bytes", "total_inactive_file")?;
            let limit = self.number(group.join("memory.limit_in_bytes"))?;
            // Without a limit it is the largest number of pages.
            (limit < i64::MAX as u64 / 2).then(|| bound(limit, used))?
        });
        bounds.reduce(Headroom::min)
    }

    /// The path of this process' group in the hierarchy with these controllers.
    fn group(&self, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
        let text = self.read("/proc/self/cgroup")?;
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            wanted(controllers).then(|| path.into())
        })
    }

    /// Bytes that a group uses and that the kernel cannot take back at once. Files that were read and
    /// are not in use, such as a model's that was loaded, do not count.
    fn used(&self, group: &Path, usage: &str, reclaimable: &str) -> Option<u64> {
        let usage = self.number(group.join(usage))?;
        let stat = self.read(group.join("memory.stat")).unwrap_or_default();
        let files = stat.lines().find_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            (name == reclaimable).then(|| bytes.trim().parse().ok())?
        });
        Some(usage.saturating_sub(files.unwrap_or(0)))
    }

    /// The number in a file; `None` for `max`.
    fn number(&self, path: PathBuf) -> Option<u64> {
        self.read(path)?.trim().parse().ok()
    }

    fn address_space(&self) -> Option<Headroom> {
        self.resource("Max address space", "VmSize:", Bound::AddressSpace)
    }

    fn data(&self) -> Option<Headroom> {
        self.resource("Max data size", "VmData:", Bound::Data)
    }

    fn resource(&self, limit: &str, used: &str, bound: Bound) -> Option<Headroom> {
        let limits = self.read("/proc/self/limits")?;
        let line = limits.lines().find_map(|line| line.strip_prefix(limit))?;
        // Soft, hard, unit; not a number if there is none.
        let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
        let used = kilobytes(&self.read("/proc/self/status")?, used)?;
        Some(Headroom {
            free: limit.saturating_sub(used),
            limit,
            bound,
        })
    }
}

fn bound(limit: u64, used: u64) -> Option<Headroom> {
    Some(Headroom {
        free: limit.saturating_sub(used),
        limit,
        bound: Bound::Container,
    })
}

/// The directories of a group and of those above it. The mount may show only the part of the
/// hierarchy that begins with the process' own group; directories that do not exist limit nothing.
fn upwards(mount: &str, group: &Path) -> Vec<PathBuf> {
    // A group outside of what is mounted begins with `..`.
    let names: PathBuf = group
        .components()
        .filter(|part| matches!(part, Component::Normal(_)))
        .collect();
    let mount = Path::new(mount);
    names.ancestors().map(|below| mount.join(below)).collect()
}

/// The bytes of a line such as `MemAvailable:   2048 kB`.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// The headroom in a file system of these files.
    fn check(files: &[(&str, &str)]) -> Option<Headroom> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Root(root.path()).headroom()
    }

    fn found(free: u64, limit: u64, bound: Bound) -> Option<Headroom> {
        let (free, limit) = (free * MIB, limit * MIB);
        Some(Headroom { free, limit, bound })
    }

    const MACHINE: (&str, &str) = (
        "proc/meminfo",
        "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable:   4194304 kB\n",
    );

    #[test]
    fn without_limits_the_machine_counts() {
        assert_eq!(check(&[]), None);
        assert_eq!(check(&[MACHINE]), found(4096, 8192, Bound::Machine));
        let unlimited = [
            MACHINE,
            ("proc/self/cgroup", "0::/app\n"),
            ("sys/fs/cgroup/app/memory.max", "max\n"),
            ("sys/fs/cgroup/app/memory.current", "1048576\n"),
            (
                "proc/self/limits",
                "Max data size  unlimited  unlimited  bytes\nMax address space  unlimited unlimited bytes\n",
            ),
            ("proc/self/status", "VmSize: 10 kB\nVmData: 10 kB\n"),
        ];
        assert_eq!(check(&unlimited), found(4096, 8192, Bound::Machine));
    }

    #[test]
    fn unified_groups_are_read_up_to_the_root() {
        let (mib_300, mib_100) = ((300 * MIB).to_string(), (100 * MIB).to_string());
        let own = [
            MACHINE,
            ("proc/self/cgroup", "0::/pod/app\n"),
            ("sys/fs/cgroup/pod/app/memory.max", "max\n"),
            ("sys/fs/cgroup/pod/app/memory.current", &mib_100),
            ("sys/fs/cgroup/pod/memory.max", &mib_300),
            ("sys/fs/cgroup/pod/memory.current", &mib_100),
        ];
        assert_eq!(check(&own), found(200, 300, Bound::Container));
        let cached = format!("anon 1\nactive_file 5\ninactive_file {}\n", 50 * MIB);
        let mut files = own.to_vec();
        files.push(("sys/fs/cgroup/pod/memory.stat", &cached));
        assert_eq!(check(&files), found(250, 300, Bound::Container));
        files.push(("sys/fs/cgroup/pod/app/memory.high", &mib_100));
        assert_eq!(check(&files), found(0, 100, Bound::Container));
    }

    #[test]
    fn a_container_sees_its_own_group_at_the_root() {
        let (mib_300, mib_100) = ((300 * MIB).to_string(), (100 * MIB).to_string());
        for group in ["0::/\n", "0::/docker/abc\n", "0::/../other\n"] {
            let files = [
                MACHINE,
                ("proc/self/cgroup", group),
                ("sys/fs/cgroup/memory.max", mib_300.as_str()),
                ("sys/fs/cgroup/memory.current", mib_100.as_str()),
            ];
            assert_eq!(check(&files), found(200, 300, Bound::Container), "{group}");
        }
    }

    #[test]
    fn the_first_version_is_read_too() {
        let (mib_300, mib_100) = ((300 * MIB).to_string(), (100 * MIB).to_string());
        let files = [
            MACHINE,
            (
                "proc/self/cgroup",
                "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n",
            ),
            (
                "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes",
                mib_300.as_str(),
            ),
            (
                "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes",
                mib_100.as_str(),
            ),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            (
                "sys/fs/cgroup/memory/memory.usage_in_bytes",
                mib_100.as_str(),
            ),
            (
                "sys/fs/cgroup/memory/docker/abc/memory.stat",
                "inactive_file 0\ntotal_inactive_file 1048576\n",
            ),
        ];
        assert_eq!(check(&files), found(201, 300, Bound::Container));
    }

    #[test]
    fn resource_limits_count() {
        let limits = |name: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\n{name}  {}  unlimited  bytes\n",
                500 * MIB
            )
        };
        for (name, free, bound) in [
            ("Max address space", 100, Bound::AddressSpace),
            ("Max data size", 300, Bound::Data),
        ] {
            let files = [
                MACHINE,
                ("proc/self/limits", &limits(name)),
                (
                    "proc/self/status",
                    "VmSize:  409600 kB\nVmData: 204800 kB\n",
                ),
            ];
            assert_eq!(check(&files), found(free, 500, bound));
        }
    }

    #[test]
    fn what_is_free_is_said_with_both_numbers() {
        let headroom = found(250, 300, Bound::Container).unwrap();
        assert_eq!(
            headroom.to_string(),
            "250 MiB of the container's 300 MiB are free"
        );
        let setting = Headroom::of_setting("train.memory_mb", 64 * MIB);
        assert_eq!(
            setting.min(headroom).to_string(),
            "train.memory_mb allows 64 MiB"
        );
        assert_eq!(headroom.remedy(), "raise the container's memory limit");
    }
}
