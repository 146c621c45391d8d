//! How much memory this process has taken, and that it is the first to give way.

use crate::Error;

/// Fails where the process took more than it may. Only Linux tells.
pub(crate) fn within(allowed: Option<u64>) -> Result<(), Error> {
    let (Some(allowed), Some(used)) = (allowed, peak()) else {
        return Ok(());
    };
    if used <= allowed {
        return Ok(());
    }
    Err(Error::Memory {
        used_mib: used >> 20,
        allowed_mib: allowed >> 20,
    })
}

/// The most bytes that were in memory at once.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Has the system end this process before others where memory runs out: for one that only trains. Anybody may say that of himself.
pub fn goes_first() {
    #[cfg(target_os = "linux")]
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "1000") {
        tracing::debug!(%error, "the training is not the first to go where memory runs out");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn what_was_taken_is_known() {
        assert!(within(None).is_ok());
        assert!(within(Some(1 << 50)).is_ok());
        let error = within(Some(1 << 20)).map_err(|error| error.to_string());
        assert!(error.is_err_and(|error| error.contains("allows 1;")));
    }
}
