//! How much CPU and memory the container may use, by its cgroup: version 2, version 1, or both at once.

use std::path::{Path, PathBuf};

/// The limits that the kernel holds this process to. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// CPUs that may be used at once; 0.5 is half of one.
    pub cpus: Option<f64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
}

impl Limits {
    /// The limits of this process.
    pub fn of_this_process() -> Limits {
        Limits::read(&|path| std::fs::read_to_string(path).ok())
    }

    /// The limits as the files say that `file` reads. A cgroup's limit binds all below it, so the lowest on the way up
    /// counts; what cannot be read limits nothing.
    fn read(file: &dyn Fn(&Path) -> Option<String>) -> Limits {
        let groups = file(Path::new("/proc/self/cgroup")).unwrap_or_default();
        let mounts = file(Path::new("/proc/self/mountinfo")).unwrap_or_default();
        let mut limits = Limits::default();
        for folder in folders(&groups, &mounts, Controller::Cpu) {
            let v2 = file(&folder.join("cpu.max")).and_then(|text| cpu_max(&text));
            let v1 = || {
                cpu_v1(
                    &file(&folder.join("cpu.cfs_quota_us"))?,
                    &file(&folder.join("cpu.cfs_period_us"))?,
                )
            };
            limits.cpus = lower(limits.cpus, v2.or_else(v1));
        }
        for folder in folders(&groups, &mounts, Controller::Memory) {
            for name in ["memory.max", "memory.limit_in_bytes"] {
                limits.memory = lower(limits.memory, file(&folder.join(name)).and_then(|text| memory(&text)));
            }
        }
        limits
    }
}

fn lower<T: PartialOrd>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b < a { b } else { a }),
        (a, b) => a.or(b),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Controller {
    Cpu,
    Memory,
}

impl Controller {
    fn is_in(self, list: &str) -> bool {
        let name = match self {
            Controller::Cpu => "cpu",
            Controller::Memory => "memory",
        };
        list.split(',').any(|of| of == name)
    }
}

/// The folders whose files may limit this process: its cgroup and those above, as far as they are mounted.
fn folders(groups: &str, mounts: &str, controller: Controller) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for mount in mounts
        .lines()
        .filter_map(Mount::parse)
        .filter(|mount| mount.v2 || controller.is_in(mount.options))
    {
        // Each line is `id:controllers:path`; version 2 has id 0 and no controllers.
        let group = groups.lines().find_map(|line| {
            let (id, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let ours = if mount.v2 {
                id == "0" && controllers.is_empty()
            } else {
                controller.is_in(controllers)
            };
            ours.then_some(path)
        });
        let Some(group) = group else { continue };
        // In a container of version 1 the mount shows the container's own cgroup, and `/proc` its path on the host.
        let below = Path::new(group).strip_prefix(mount.root).unwrap_or(Path::new(""));
        let own = mount.point.join(below.strip_prefix("/").unwrap_or(below));
        found.extend(
            own.ancestors()
                .take_while(|folder| folder.starts_with(&mount.point))
                .map(Path::to_owned),
        );
    }
    found
}

/// A cgroup file system in `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
struct Mount<'a> {
    v2: bool,
    root: &'a str,
    point: PathBuf,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Mount<'a>> {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let mut filesystem = filesystem.split(' ');
        let v2 = match filesystem.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let (root, point) = (mount.next()?, mount.next()?.into());
        Some(Mount {
            v2,
            root,
            point,
            options: filesystem.nth(1)?,
        })
    }
}

/// `cpu.max` of version 2: `QUOTA PERIOD`, or `max PERIOD`.
fn cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    cpu_v1(quota, period)
}

/// `cpu.cfs_quota_us` and `cpu.cfs_period_us` of version 1; a quota of -1 is none.
fn cpu_v1(quota: &str, period: &str) -> Option<f64> {
    let quota: u64 = quota.trim().parse().ok()?;
    let period: u64 = period.trim().parse().ok()?;
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

/// `memory.max` of version 2 (`max` is none), or `memory.limit_in_bytes` of version 1, where "none" is the largest
/// number of whole pages in 63 bits.
fn memory(text: &str) -> Option<u64> {
    const NO_LIMIT: u64 = 1 << 62;
    text.trim().parse().ok().filter(|bytes| *bytes < NO_LIMIT)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn limits(files: &[(&str, &str)]) -> Limits {
        let files: HashMap<&Path, &str> = files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
        Limits::read(&|path| files.get(path).map(|text| (*text).to_owned()))
    }

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate\n";

    #[test]
    fn a_container_of_version_2_is_held_to_what_its_root_says() {
        let limits = limits(&[
            ("/proc/self/cgroup", "0::/\n"),
            ("/proc/self/mountinfo", V2),
            ("/sys/fs/cgroup/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/memory.max", "268435456\n"),
        ]);
        assert_eq!(
            limits,
            Limits {
                cpus: Some(1.5),
                memory: Some(256 << 20)
            }
        );
    }

    #[test]
    fn the_lowest_limit_on_the_way_up_counts() {
        let limits = limits(&[
            ("/proc/self/cgroup", "0::/pods/pod1/proxy\n"),
            ("/proc/self/mountinfo", V2),
            ("/sys/fs/cgroup/pods/pod1/proxy/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/pods/pod1/proxy/memory.max", "2000\n"),
            ("/sys/fs/cgroup/pods/pod1/cpu.max", "50000 100000\n"),
            ("/sys/fs/cgroup/pods/pod1/memory.max", "1000\n"),
            ("/sys/fs/cgroup/pods/memory.max", "max\n"),
        ]);
        assert_eq!(
            limits,
            Limits {
                cpus: Some(0.5),
                memory: Some(1000)
            }
        );
    }

    #[test]
    fn a_container_of_version_1_finds_its_own_cgroup_at_the_mount() {
        let limits = limits(&[
            (
                "/proc/self/cgroup",
                "9:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n",
            ),
            (
                "/proc/self/mountinfo",
                "40 39 0:30 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
                 41 39 0:31 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n",
            ),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "67108864\n"),
        ]);
        assert_eq!(
            limits,
            Limits {
                cpus: Some(2.0),
                memory: Some(64 << 20)
            }
        );
    }

    #[test]
    fn where_both_versions_are_mounted_the_one_that_has_the_controller_counts() {
        let limits = limits(&[
            ("/proc/self/cgroup", "9:memory:/a\n0::/b\n"),
            (
                "/proc/self/mountinfo",
                "40 39 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                 42 39 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            ),
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1024\n"),
        ]);
        assert_eq!(
            limits,
            Limits {
                cpus: None,
                memory: Some(1024)
            }
        );
    }

    #[test]
    fn no_limit_is_no_limit() {
        let limits = limits(&[
            ("/proc/self/cgroup", "9:memory:/\n4:cpu,cpuacct:/\n"),
            (
                "/proc/self/mountinfo",
                "40 39 0:30 / /cg/memory rw - cgroup cgroup rw,memory\n41 39 0:31 / /cg/cpu rw - cgroup cgroup rw,cpu\n",
            ),
            ("/cg/cpu/cpu.cfs_quota_us", "-1\n"),
            ("/cg/cpu/cpu.cfs_period_us", "100000\n"),
            ("/cg/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(limits, Limits::default());
    }

    #[test]
    fn what_cannot_be_read_or_makes_no_sense_limits_nothing() {
        assert_eq!(limits(&[]), Limits::default());
        let nonsense = limits(&[
            ("/proc/self/cgroup", "what\n0::/\n"),
            ("/proc/self/mountinfo", &format!("\n - \na b - cgroup2\n{V2}")),
            ("/sys/fs/cgroup/cpu.max", "100000 0\n"),
            ("/sys/fs/cgroup/memory.max", "-5\n"),
        ]);
        assert_eq!(nonsense, Limits::default());
    }

    #[test]
    fn this_process_can_ask() {
        let limits = Limits::of_this_process();
        assert!(limits.cpus.is_none_or(|cpus| cpus > 0.0));
    }
}
