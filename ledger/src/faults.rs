//! Steps at which a test lets the process die, or the step fail: `FAILPOINTS="publish-committed=return(die)"`, with the feature
//! `failpoints` alone. Without it they do nothing.

/// Fails, or dies, if a test wants it at this step.
#[cfg(feature = "failpoints")]
pub(crate) fn at(step: &'static str) -> std::io::Result<()> {
    fail::fail_point!(step, |what| match what.as_deref() {
        Some("die") => std::process::abort(),
        _ => Err(std::io::Error::other(format!("{step} was made to fail"))),
    });
    Ok(())
}

/// Nothing.
#[cfg(not(feature = "failpoints"))]
#[inline]
#[allow(clippy::unnecessary_wraps, reason = "with the feature it fails")]
pub(crate) fn at(_: &'static str) -> std::io::Result<()> {
    Ok(())
}
