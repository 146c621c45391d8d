//! The quality streams of the adapters that serve: what people said of whose answers, and how far that was read.
//!
//! Apart from the [`Book`](crate::book::Book), since feedback has an order of its own. It is read once it is settled, each row once, and given to
//! whoever answered.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use retune_ledger::{Ledger, Ratings, Table, Trigger, Window};

use crate::book::{Stints, serving};
use crate::error::Error;
use crate::feedback::{self, Place};
use crate::seen::Seen;
use crate::streams::quality::Quality;
use crate::streams::told::{Key, without_reference};
use crate::streams::{Stream, StreamReport};

/// Whoever is watched.
pub(crate) struct Qualities {
    threshold_log: f64,
    watched: BTreeMap<Key, Watched>,
    seen: Option<Seen>,
}

/// One adapter.
struct Watched {
    again: Option<DateTime<Utc>>,
    quality: Quality,
    after: Option<Place>,
}

impl Qualities {
    pub(crate) fn new(threshold_log: f64) -> Self {
        Self {
            threshold_log,
            watched: BTreeMap::new(),
            seen: None,
        }
    }

    /// Everything is to be tested again.
    pub(crate) fn forget(&mut self) {
        self.watched.clear();
        self.seen = None;
    }

    /// Takes what was said of the answers of who serves, up to a time `until` that is settled now; rows of the history go to `windows`.
    pub(crate) async fn take(
        &mut self,
        ledger: &Ledger,
        stints: &Stints,
        until: DateTime<Utc>,
        now: DateTime<Utc>,
        windows: &mut Vec<Window>,
    ) -> Result<(), Error> {
        self.watched.retain(|key, watched| {
            let stint = stints.get(key);
            stint.is_some_and(|stint| stint.serves && stint.again == watched.again)
        });
        let mark = ledger.mark(Table::Feedback).await?;
        let has_all = Seen::has_all(self.seen.as_ref(), &mark);
        for (key, stint) in serving(stints) {
            if !(has_all && self.watched.contains_key(key)) {
                self.read(ledger, key, stint.again, until, windows).await?;
            }
        }
        self.seen = Some(Seen::after(self.seen.take(), mark, now, until));
        Ok(())
    }

    async fn read(
        &mut self,
        ledger: &Ledger,
        key: &Key,
        again: Option<DateTime<Utc>>,
        until: DateTime<Utc>,
        windows: &mut Vec<Window>,
    ) -> Result<(), Error> {
        let mut watched = match self.watched.remove(key) {
            Some(watched) => watched,
            None => Watched {
                again,
                quality: self.begin(key, ledger.ratings(&key.0, &key.1).await?),
                after: None,
            },
        };
        loop {
            let (page, more) = feedback::page(ledger, watched.after.as_ref(), until).await?;
            let names = (key.0.as_str(), key.1.as_str());
            let is_collecting = matches!(watched.quality, Quality::Collecting(_));
            // A reference may be of an earlier time, and what is tested is not.
            let from = again.filter(|_| !is_collecting);
            let theirs = feedback::answered_by(ledger, names, from, &page).await?;
            let mut due = Vec::new();
            for said in page.iter().filter(|said| theirs.contains(&said.request_id)) {
                if watched.quality.observe(said, self.threshold_log) {
                    let rates = watched.quality.rates();
                    due.extend(rates.and_then(|rates| rates.due(key, Stream::Quality, said.ts)));
                }
            }
            if let (true, Quality::Testing(testing)) = (is_collecting, &watched.quality) {
                // Somebody else's may have been there first; and whoever knows it from the start reads as this does now.
                ledger.put_ratings(&testing.0).await?;
                let reference = ledger.ratings(&key.0, &key.1).await?;
                watched.quality = self.begin(key, reference);
                watched.after = None;
                continue;
            }
            windows.extend(due);
            if let Some(last) = page.last() {
                watched.after = Some((last.ts, last.feedback_id.clone()));
            }
            if !more {
                break;
            }
        }
        self.watched.insert(key.clone(), watched);
        Ok(())
    }

    fn begin(&self, (task, adapter): &Key, reference: Option<Ratings>) -> Quality {
        Quality::new(task, adapter, reference, self.threshold_log)
    }

    pub(crate) fn report(&self, key: &Key) -> StreamReport {
        match self.watched.get(key).map(|watched| &watched.quality) {
            Some(Quality::Testing(testing)) => {
                testing.1.standing().report(key, Stream::Quality, true)
            }
            Some(Quality::Collecting(ratings)) => {
                without_reference(key, Stream::Quality, ratings.feedback, None)
            }
            None => without_reference(key, Stream::Quality, 0, None),
        }
    }

    /// The alarms of who serves.
    pub(crate) fn alarms(&self) -> Vec<Trigger> {
        let of = |(key, watched): (&Key, &Watched)| {
            let Quality::Testing(testing) = &watched.quality else {
                return None;
            };
            let since = watched.again.unwrap_or(testing.0.created);
            testing.1.standing().trigger(key, Stream::Quality, since)
        };
        self.watched.iter().filter_map(of).collect()
    }
}
