//! How much memory a process and its descendants hold, as Linux tells it.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::watch;

/// How often somebody looks.
const LOOK: Duration = Duration::from_secs(1);

/// Looks until dropped by its task's owner; the channel holds the most bytes seen at once.
pub(crate) async fn watch_peak(root: u32, peak: watch::Sender<u64>) {
    loop {
        let now = resident(root);
        peak.send_if_modified(|peak| {
            let higher = now > *peak;
            *peak = now.max(*peak);
            higher
        });
        tokio::time::sleep(LOOK).await;
    }
}

/// Bytes in memory of `root` and everything it started; 0 where there is no /proc.
fn resident(root: u32) -> u64 {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return 0;
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let processes: HashMap<u32, (u32, u64)> = pids
        .filter_map(|pid| {
            Some((
                pid,
                parse(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)?,
            ))
        })
        .collect();
    processes
        .iter()
        .filter(|(pid, _)| descends(**pid, root, &processes))
        .map(|(_, (_, bytes))| bytes)
        .sum()
}

fn descends(pid: u32, root: u32, processes: &HashMap<u32, (u32, u64)>) -> bool {
    std::iter::successors(Some(pid), |pid| {
        processes.get(pid).map(|(parent, _)| *parent)
    })
    .any(|pid| pid == root)
}

/// Parent and resident bytes from the text of /proc/<pid>/status; None for kernel threads.
fn parse(status: &str) -> Option<(u32, u64)> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':')
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    };
    Some((u32::try_from(field("PPid")?).ok()?, field("VmRSS")? * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_linux_writes() {
        let status = "Name:\tretune\nPid:\t7\nPPid:\t3\nVmHWM:\t   2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(parse(status), Some((3, 1024 * 1024)));
        assert_eq!(parse("Name:\tkthreadd\nPPid:\t0\n"), None);
    }

    #[test]
    fn counts_descendants_alone() {
        let processes = HashMap::from([(1, (0, 1)), (2, (1, 10)), (3, (2, 100)), (4, (1, 1000))]);
        let of = |root| {
            processes
                .keys()
                .filter(|pid| descends(**pid, root, &processes))
                .count()
        };
        assert_eq!((of(1), of(2), of(4)), (4, 2, 1));
    }
}
