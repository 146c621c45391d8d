//! Who may run now, who waits, who is sent away: a bounded queue that fails fast.
//!
//! Waiting in the engine instead would have no bound, and a client that left would keep its place. What nobody waits for, an
//! examination or a probe, stands in a queue of its own and runs when no user is waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus::IntGauge;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// Places for running requests, and counts of those that wait for one.
pub(crate) struct Admission {
    queue: Arc<Queue>,
    max_running: usize,
    max_queue: usize,
}

struct Queue {
    places: Arc<Semaphore>,
    users: AtomicUsize,
    background: AtomicUsize,
    /// A place was given back, or a user stopped waiting.
    changed: Notify,
    running_gauge: IntGauge,
    waiting_gauge: IntGauge,
}

/// A place in the queue; dropping it gives it up.
pub(crate) struct Ticket {
    queue: Arc<Queue>,
    background: bool,
}

/// The right to run; dropping it lets the next one in.
pub(crate) struct Admitted {
    place: Option<OwnedSemaphorePermit>,
    queue: Arc<Queue>,
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
            queue: Arc::new(Queue {
                places: Arc::new(Semaphore::new(max_running)),
                users: AtomicUsize::new(0),
                background: AtomicUsize::new(0),
                changed: Notify::new(),
                running_gauge,
                waiting_gauge,
            }),
            max_running,
            max_queue,
        }
    }

    /// A place in the queue, or [`Error::Busy`] at once. `background`: behind all users.
    pub(crate) fn enter(&self, background: bool) -> Result<Ticket, Error> {
        // Those with a place free in front of them wait for a moment only and do not count against the queue.
        let limit = self.max_queue + self.queue.places.available_permits();
        let waiting = self.queue.waiting(background);
        let entered = waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| {
            (n < limit).then_some(n + 1)
        });
        if entered.is_err() {
            return Err(Error::Busy {
                running: self.max_running,
                queued: self.max_queue,
            });
        }
        self.queue.waiting_gauge.inc();
        Ok(Ticket {
            queue: Arc::clone(&self.queue),
            background,
        })
    }
}

impl Queue {
    fn waiting(&self, background: bool) -> &AtomicUsize {
        if background {
            &self.background
        } else {
            &self.users
        }
    }

    /// A place that no user waits for.
    async fn left_over(&self) -> Result<OwnedSemaphorePermit, Error> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Before looking, so that nothing that happens meanwhile is missed.
            changed.as_mut().enable();
            if self.users.load(Ordering::Acquire) == 0
                && let Ok(place) = Arc::clone(&self.places).try_acquire_owned()
            {
                return Ok(place);
            }
            changed.await;
        }
    }
}

impl Ticket {
    /// Waits for its turn; first come, first served.
    pub(crate) async fn admitted(self) -> Result<Admitted, Error> {
        let place = if self.background {
            self.queue.left_over().await?
        } else {
            Arc::clone(&self.queue.places)
                .acquire_owned()
                .await
                .map_err(|_| Error::Stopping)?
        };
        self.queue.running_gauge.inc();
        Ok(Admitted {
            place: Some(place),
            queue: Arc::clone(&self.queue),
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.queue
            .waiting(self.background)
            .fetch_sub(1, Ordering::AcqRel);
        self.queue.waiting_gauge.dec();
        self.queue.changed.notify_waiters();
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.queue.running_gauge.dec();
        // Given back before it is said.
        drop(self.place.take());
        self.queue.changed.notify_waiters();
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
        let first = admission.enter(false).unwrap().admitted().await.unwrap();
        let _second = admission.enter(false).unwrap().admitted().await.unwrap();
        let waiting = admission.enter(false).unwrap();
        assert!(matches!(
            admission.enter(false),
            Err(Error::Busy {
                running: 2,
                queued: 1
            })
        ));
        assert_eq!(
            (
                admission.queue.running_gauge.get(),
                admission.queue.waiting_gauge.get()
            ),
            (2, 1)
        );
        drop(first);
        let _third = waiting.admitted().await.unwrap();
        let gives_up = admission.enter(false).unwrap();
        drop(gives_up);
        assert!(admission.enter(false).is_ok());
        assert_eq!(admission.queue.running_gauge.get(), 2);
    }

    #[tokio::test]
    async fn without_a_queue_free_places_are_still_given() {
        let admission = admission(1, 0);
        let running = admission.enter(false).unwrap().admitted().await.unwrap();
        assert!(admission.enter(false).is_err());
        drop(running);
        assert!(admission.enter(false).unwrap().admitted().await.is_ok());
    }

    #[tokio::test]
    async fn what_nobody_waits_for_runs_when_no_user_waits() {
        let admission = admission(1, 2);
        let running = admission.enter(false).unwrap().admitted().await.unwrap();
        let behind = tokio::spawn(admission.enter(true).unwrap().admitted());
        tokio::task::yield_now().await;
        let user = tokio::spawn(admission.enter(false).unwrap().admitted());
        tokio::task::yield_now().await;
        drop(running);
        let user = user.await.unwrap().unwrap();
        assert!(!behind.is_finished());
        drop(user);
        assert!(behind.await.unwrap().is_ok());
    }
}
