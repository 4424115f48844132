//! What Linux says about processes in `/proc`. Elsewhere every figure is zero or missing.

use std::fs;
use std::time::Duration;

/// `USER_HZ`, which Linux fixes at 100 for programs whatever the kernel was built with.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time of this process, all threads, user and system. Resolution 10 ms.
pub(crate) fn own_cpu() -> Duration {
    cpu_of("self").map_or(Duration::ZERO, |cpu| cpu.own)
}

/// CPU time of a PostgreSQL server: its postmaster, the children that it has now and those it has waited for.
pub(crate) fn server_cpu(postmaster: u32) -> Option<Duration> {
    let parent = cpu_of(&postmaster.to_string())?;
    let children = processes().filter(|cpu| cpu.parent == postmaster).map(|cpu| cpu.own);
    Some(parent.own + parent.waited_for + children.sum::<Duration>())
}

/// Whether a process of this machine is a PostgreSQL one: a server in a container has other numbers.
pub(crate) fn is_postgres(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("postgres"))
}

/// CPU time of everything on this machine, what the hypervisor took away included.
pub(crate) fn machine_cpu() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user nice system (idle iowait) irq softirq steal; guest time is in user already
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|&index| ticks.get(index)).sum();
    ticks_to_duration(busy)
}

/// Resident memory of this process in KiB.
pub(crate) fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// The load of the last minute.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(f64::NAN)
}

#[derive(Debug, PartialEq, Eq)]
struct Cpu {
    parent: u32,
    own: Duration,
    waited_for: Duration,
}

fn cpu_of(pid: &str) -> Option<Cpu> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name of the program, in brackets, may contain anything; what follows is numbers.
fn parse_stat(text: &str) -> Option<Cpu> {
    let (_, numbers) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = numbers.split(' ').collect();
    let ticks = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Cpu {
        parent: fields.get(1)?.parse().ok()?,
        own: ticks_to_duration(ticks(11)? + ticks(12)?),
        waited_for: ticks_to_duration(ticks(13)? + ticks(14)?),
    })
}

fn processes() -> impl Iterator<Item = Cpu> {
    let folders = fs::read_dir("/proc").into_iter().flatten().flatten();
    folders.filter_map(|folder| {
        let name = folder.file_name();
        let pid = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))?;
        cpu_of(pid)
    })
}

fn ticks_to_duration(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_behind_any_name() {
        let line = "7 (a) b) S 3 7 7 0 -1 4194304 102 0 0 0 10 20 30 40 20 0 1 0 192586 3133440 418";
        let cpu = Cpu { parent: 3, own: Duration::from_millis(300), waited_for: Duration::from_millis(700) };
        assert_eq!(parse_stat(line), Some(cpu));
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident_kib() > 100);
    }
}
