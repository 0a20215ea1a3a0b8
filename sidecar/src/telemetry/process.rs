//! What the process itself costs, under the names that Prometheus' own clients use.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike;

use super::{Counter, Family, Gauge, Registry};

static CPU_SECONDS: Family<Counter, 0> = Family::counter(
    "process_cpu_seconds_total",
    "Seconds of CPU that the process used, user and system.",
    [],
);
static RESIDENT_MEMORY: Family<Gauge, 0> = Family::gauge(
    "process_resident_memory_bytes",
    "Memory of the process that is in RAM.",
    [],
);
static VIRTUAL_MEMORY: Family<Gauge, 0> = Family::gauge(
    "process_virtual_memory_bytes",
    "Addresses that the process has mapped.",
    [],
);
static OPEN_FDS: Family<Gauge, 0> = Family::gauge("process_open_fds", "File descriptors that are open.", []);
static MAX_FDS: Family<Gauge, 0> = Family::gauge("process_max_fds", "File descriptors that may be open.", []);
static START_TIME: Family<Gauge, 0> = Family::gauge(
    "process_start_time_seconds",
    "When the process started, in seconds since 1970.",
    [],
);
static BUILD_INFO: Family<Gauge, 1> = Family::gauge("portunus_build_info", "Always 1; says what runs.", ["version"]);

/// Has the registry look at the process whenever it is scraped. What cannot be read is left out.
pub(super) fn observe(registry: &Registry) {
    registry.observe(&BUILD_INFO, |samples| samples.push([env!("CARGO_PKG_VERSION")], 1.0));
    let started = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64());
    registry.observe(&START_TIME, move |samples| samples.push([], started));
    registry.observe(&CPU_SECONDS, |samples| {
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
            samples.push([], micros as f64 / 1e6);
        }
    });
    for (family, field) in [(&RESIDENT_MEMORY, "VmRSS:"), (&VIRTUAL_MEMORY, "VmSize:")] {
        registry.observe(family, move |samples| {
            let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
            if let Some(kib) = kib_of(&status, field) {
                samples.push([], kib as f64 * 1024.0);
            }
        });
    }
    registry.observe(&OPEN_FDS, |samples| {
        if let Ok(fds) = fs::read_dir("/proc/self/fd") {
            // One of them is the folder that is being read.
            samples.push([], fds.count().saturating_sub(1) as f64);
        }
    });
    registry.observe(&MAX_FDS, |samples| {
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            samples.push([], soft as f64);
        }
    });
}

/// A field of `/proc/self/status` that counts KiB.
fn kib_of(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_its_own_line() {
        let status = "Name:\tVmRSS:\nVmSize:\t  7000 kB\nVmRSS:\t    5124 kB\n";
        assert_eq!(kib_of(status, "VmRSS:"), Some(5124));
        assert_eq!(kib_of(status, "VmSize:"), Some(7000));
        assert_eq!(kib_of("Name:\tx\n", "VmRSS:"), None);
    }
}
