//! `process_*`: what the kernel knows of this process, read from `/proc/self` when asked.

use std::fmt::Write as _;
use std::fs;

/// One reading; what cannot be read is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) open_fds: Option<u64>,
    pub(super) max_fds: Option<u64>,
    pub(super) threads: Option<u64>,
    pub(super) start_seconds: Option<f64>,
}

/// `USER_HZ`, which Linux fixes at 100 for everything that it shows in `/proc`.
const TICKS: f64 = 100.0;

impl Process {
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        // The command's name, in brackets, may hold anything; fields are counted after it, from state = 3.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .collect();
        let ticks = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Self {
            cpu_seconds: ticks(14)
                .zip(ticks(15))
                .map(|(user, system)| (user + system) / TICKS),
            resident_bytes: kib(&status, "VmRSS:"),
            virtual_bytes: kib(&status, "VmSize:"),
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|dir| dir.count() as u64),
            max_fds: max_fds(),
            threads: field(&status, "Threads:").and_then(|text| text.parse().ok()),
            start_seconds: ticks(22)
                .zip(boot_seconds())
                .map(|(since_boot, boot)| boot + since_boot / TICKS),
        }
    }
}

/// The same as Prometheus' text, for processes that have no registry.
pub(crate) fn process_text() -> String {
    let process = Process::read();
    let whole = |value: Option<u64>| value.map(|value| value as f64);
    let all = [
        ("process_cpu_seconds_total", "counter", process.cpu_seconds),
        (
            "process_resident_memory_bytes",
            "gauge",
            whole(process.resident_bytes),
        ),
        ("process_open_fds", "gauge", whole(process.open_fds)),
        ("process_max_fds", "gauge", whole(process.max_fds)),
        ("process_threads", "gauge", whole(process.threads)),
        ("process_start_time_seconds", "gauge", process.start_seconds),
    ];
    let mut text = String::new();
    for (name, kind, value) in all {
        if let Some(value) = value {
            let _ = write!(text, "# TYPE {name} {kind}\n{name} {value}\n");
        }
    }
    text
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| line.strip_prefix(name))?
        .split_whitespace()
        .next()
}

fn kib(status: &str, name: &str) -> Option<u64> {
    Some(field(status, name)?.parse::<u64>().ok()? * 1_024)
}

fn boot_seconds() -> Option<f64> {
    field(&fs::read_to_string("/proc/stat").ok()?, "btime ")?
        .parse()
        .ok()
}

fn max_fds() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_this_process() {
        let process = Process::read();
        assert!(
            process.resident_bytes.is_some_and(|bytes| bytes > 1 << 20),
            "{process:?}"
        );
        assert!(process.open_fds.is_some_and(|fds| fds >= 3), "{process:?}");
        assert!(
            process.threads.is_some_and(|threads| threads >= 1),
            "{process:?}"
        );
        assert!(
            process.start_seconds.is_some_and(|at| at > 1_600_000_000.0),
            "{process:?}"
        );
        assert!(
            process.cpu_seconds.is_some()
                && process.max_fds.is_some()
                && process.virtual_bytes.is_some()
        );
    }
}
