//! The load: blocking sockets, a thread each, of which all but one or two sleep at any time. Two ways to ask: as fast as answers come, and at
//! a constant rate, whatever becomes of the answers. wrk does the first as cheaply, but not the second.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::http::{Connection, find, request};
use serde_json::Value;

/// What is asked, and what the end of each answer has to hold.
pub(crate) struct Asking<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) body: &'a Value,
    pub(crate) expected: &'a str,
}

/// The bytes at the end of an answer that are looked at.
const END: usize = 1024;
/// Before the clock starts.
const WARM_UP: Duration = Duration::from_millis(300);

impl Asking<'_> {
    fn connections(&self, count: usize) -> Result<Vec<Connection>> {
        (0..count).map(|_| Connection::open(self.address)).collect()
    }

    fn ask(&self, connection: &mut Connection, request: &[u8]) -> Result<()> {
        let answer = connection.ask(request)?;
        let end = &answer[answer.len().saturating_sub(END)..];
        ensure!(
            find(end, self.expected.as_bytes()).is_some(),
            "an answer ends with {:?}",
            String::from_utf8_lossy(end)
        );
        Ok(())
    }

    /// Asks as fast as answers come, so many at once. Returns answers a second, and all that were asked.
    pub(crate) fn saturate(&self, at_once: usize, seconds: f64) -> Result<(f64, usize)> {
        let request = request(self.address, self.body);
        let begin = Instant::now() + WARM_UP;
        let end = begin + Duration::from_secs_f64(seconds);
        let work = |mut connection: Connection| {
            let (mut counted, mut all) = (0usize, 0usize);
            loop {
                self.ask(&mut connection, &request)?;
                let now = Instant::now();
                all += 1;
                if now >= end {
                    return Ok((counted, all));
                }
                counted += usize::from(now >= begin);
            }
        };
        let done = on_threads(self.connections(at_once)?, |_, c| work(c))?;
        let counted: usize = done.iter().map(|(counted, _)| counted).sum();
        let all = done.iter().map(|(_, all)| all).sum();
        Ok((counted as f64 / seconds, all))
    }

    /// Asks at a constant rate over so many connections. Returns each answer's milliseconds since the moment when it should have been asked,
    /// sorted: a request that waits for a connection has waited for the server.
    pub(crate) fn paced(&self, rate: f64, seconds: f64, connections: usize) -> Result<Vec<f64>> {
        let request = request(self.address, self.body);
        let begin = Instant::now() + WARM_UP;
        let count = (rate * seconds) as usize;
        let work = |first: usize, mut connection: Connection| {
            let mut waits = Vec::with_capacity(count / connections + 1);
            // Opens the way to the far end.
            self.ask(&mut connection, &request)?;
            for at in (first..count).step_by(connections) {
                let due = begin + Duration::from_secs_f64(at as f64 / rate);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                self.ask(&mut connection, &request)?;
                waits.push(due.elapsed().as_secs_f64() * 1000.0);
            }
            Ok(waits)
        };
        let mut waits = on_threads(self.connections(connections)?, work)?.concat();
        waits.sort_by(f64::total_cmp);
        Ok(waits)
    }
}

fn on_threads<T: Send>(
    connections: Vec<Connection>,
    work: impl Fn(usize, Connection) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = connections
            .into_iter()
            .enumerate()
            .map(|(i, connection)| scope.spawn(move || work(i, connection)))
            .collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect()
    })
}
