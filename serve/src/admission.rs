//! Who may run now, who waits, who is sent away: a bounded queue that fails fast.
//!
//! Waiting in the engine instead would have no bound, and a client that left would keep its place.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// Places for running requests, and a count of those that wait for one.
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    max_running: usize,
    max_queue: usize,
    running_gauge: IntGauge,
    waiting_gauge: IntGauge,
}

/// A place in the queue; dropping it gives it up.
pub(crate) struct Ticket {
    places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    running_gauge: IntGauge,
    waiting_gauge: IntGauge,
}

/// The right to run; dropping it lets the next one in.
pub(crate) struct Admitted {
    _place: OwnedSemaphorePermit,
    running_gauge: IntGauge,
}

impl Admission {
    pub(crate) fn new(
        max_running: usize,
        max_queue: usize,
        running_gauge: IntGauge,
        waiting_gauge: IntGauge,
    ) -> Self {
        let max_running = max_running.max(1);
        Self {
            places: Arc::new(Semaphore::new(max_running)),
            waiting: Arc::default(),
            max_running,
            max_queue,
            running_gauge,
            waiting_gauge,
        }
    }

    /// A place in the queue, or [`Error::Busy`] at once.
    pub(crate) fn enter(&self) -> Result<Ticket, Error> {
        // Those with a place free in front of them wait for a moment only and do not count against the queue.
        let limit = self.max_queue + self.places.available_permits();
        let entered = self
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
                (n < limit).then_some(n + 1)
            });
        if entered.is_err() {
            return Err(Error::Busy {
                running: self.max_running,
                queued: self.max_queue,
            });
        }
        self.waiting_gauge.inc();
        Ok(Ticket {
            places: Arc::clone(&self.places),
            waiting: Arc::clone(&self.waiting),
            running_gauge: self.running_gauge.clone(),
            waiting_gauge: self.waiting_gauge.clone(),
        })
    }
}

impl Ticket {
    /// Waits for its turn; first come, first served.
    pub(crate) async fn admitted(self) -> Result<Admitted, Error> {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .map_err(|_| Error::Stopping)?;
        self.running_gauge.inc();
        Ok(Admitted {
            _place: place,
            running_gauge: self.running_gauge.clone(),
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.waiting_gauge.dec();
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.running_gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn admission(running: usize, queue: usize) -> Admission {
        let gauge = |name| IntGauge::new(name, name).unwrap();
        Admission::new(running, queue, gauge("running"), gauge("waiting"))
    }

    #[tokio::test]
    async fn the_one_too_many_is_sent_away_and_places_come_back() {
        let admission = admission(2, 1);
        let first = admission.enter().unwrap().admitted().await.unwrap();
        let _second = admission.enter().unwrap().admitted().await.unwrap();
        let waiting = admission.enter().unwrap();
        assert!(matches!(
            admission.enter(),
            Err(Error::Busy {
                running: 2,
                queued: 1
            })
        ));
        assert_eq!(
            (admission.running_gauge.get(), admission.waiting_gauge.get()),
            (2, 1)
        );
        drop(first);
        let _third = waiting.admitted().await.unwrap();
        let gives_up = admission.enter().unwrap();
        drop(gives_up);
        assert!(admission.enter().is_ok());
        assert_eq!(admission.running_gauge.get(), 2);
    }

    #[tokio::test]
    async fn without_a_queue_free_places_are_still_given() {
        let admission = admission(1, 0);
        let running = admission.enter().unwrap().admitted().await.unwrap();
        assert!(admission.enter().is_err());
        drop(running);
        assert!(admission.enter().unwrap().admitted().await.is_ok());
    }
}
