//! Threads for work that nobody waits for: their turns come after those of threads that answer somebody.

use std::io;

use tokio::runtime::{Builder, Runtime};

/// The priority, where 0 is everybody's and 19 the lowest: a fifth of their share of a core that is fought over.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 7;

/// A thread with low priority.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let work = move || {
        give_way();
        work();
    };
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)?;
    Ok(())
}

/// A runtime whose threads have low priority: one worker beside the thread that waits, since tables' handles expect workers.
pub(crate) fn runtime(name: &str) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .on_thread_start(give_way)
        .enable_all()
        .build()
}

/// Only Linux has priorities of single threads.
fn give_way() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "a thread in the background keeps its priority");
    }
}
