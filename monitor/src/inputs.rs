//! The input streams of the adapters that serve: who is watched, against which sample, and how far.
//!
//! Apart from the [`Book`](crate::book::Book), since prompts are most of a table and only those of who serves now are read, in their order
//! and once they are settled. A window may take seconds to test, so that is done on a thread of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use retune_ledger::{Cursor, Ledger, Reference, Table, Trigger, Window};
use retune_task::ModelName;

use crate::error::Error;
use crate::features::ngrams::Counts;
use crate::features::vectors::TokenVectors;
use crate::features::{Compared, Said, Space};
use crate::prompts::{self, Asked, Next};
use crate::seen::Seen;
use crate::streams::input::{Input, Prompt};
use crate::streams::told::{Key, without_reference};
use crate::streams::{Stream, StreamReport};

/// Whoever is watched.
pub(crate) struct Inputs {
    vectors: Option<Arc<TokenVectors>>,
    threshold_log: f64,
    watched: BTreeMap<Key, Watched>,
    seen: Option<Seen>,
}

/// One adapter.
struct Watched {
    /// When its reference was frozen, and when it came back, if it ever did: with other ones everything starts anew.
    by: (DateTime<Utc>, Option<DateTime<Utc>>),
    /// None while it is tested, and where that broke down.
    input: Option<Box<Input>>,
    after: Option<Cursor>,
    /// All prompts up to here were taken.
    read_to: Option<DateTime<Utc>>,
    last: Option<Compared>,
}

impl Inputs {
    /// With `vectors` what words mean is compared, too.
    pub(crate) fn new(vectors: Option<TokenVectors>, threshold_log: f64) -> Self {
        Self {
            vectors: vectors.map(Arc::new),
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

    /// Watches these adapters and no other, by their references and since they came back, and takes their prompts up to a time `until` that
    /// is settled now; rows of the history go to `windows`.
    pub(crate) async fn take(
        &mut self,
        ledger: &Ledger,
        serving: &BTreeMap<Key, (&Reference, Option<DateTime<Utc>>)>,
        until: DateTime<Utc>,
        now: DateTime<Utc>,
        windows: &mut Vec<Window>,
    ) -> Result<(), Error> {
        self.watched.retain(|key, watched| {
            let serves = serving.get(key);
            serves.is_some_and(|(reference, again)| watched.by == (reference.created, *again))
        });
        let mark = ledger.mark(Table::Exchanges).await?;
        let has_all = Seen::has_all(self.seen.as_ref(), &mark);
        for (key, (reference, again)) in serving {
            if !(has_all && self.watched.contains_key(key)) {
                self.read(ledger, key, reference, *again, until, windows)
                    .await?;
            }
        }
        self.seen = Some(Seen::after(self.seen.take(), mark, now, until));
        Ok(())
    }

    async fn read(
        &mut self,
        ledger: &Ledger,
        key: &Key,
        reference: &Reference,
        again: Option<DateTime<Utc>>,
        until: DateTime<Utc>,
        windows: &mut Vec<Window>,
    ) -> Result<(), Error> {
        let Some(span) = &reference.prompts else {
            return Ok(());
        };
        if !self.watched.contains_key(key) {
            let sample = prompts::sample(ledger, &key.0, span).await?;
            let training = training(ledger, key).await?;
            let input = self.begin(sample, training).await?;
            let watched = Watched {
                by: (reference.created, again),
                input: Some(Box::new(input)),
                after: None,
                read_to: None,
                last: None,
            };
            self.watched.insert(key.clone(), watched);
        }
        let mut rows = prompts::PAGE;
        loop {
            let Some(watched) = self.watched.get_mut(key) else {
                return Ok(());
            };
            if watched
                .input
                .as_ref()
                .is_some_and(|input| !input.has_sample())
            {
                return Ok(());
            }
            let next = Next {
                task: &key.0,
                adapter: &key.1,
                after: watched.after.as_ref().or(reference.last.as_ref()),
                behind: watched.read_to,
                from: again,
                until,
                rows,
            };
            let (page, more) = prompts::page(ledger, &next).await?;
            let Some(last) = page.last().map(|asked| asked.cursor.clone()) else {
                watched.read_to = Some(until);
                return Ok(());
            };
            rows = prompts::next_page(&page);
            let Some(input) = watched.input.take() else {
                return Err(Error::Broken);
            };
            let vectors = self.vectors.clone();
            let of = key.clone();
            let work = move || fold(input, &of, page, vectors.as_deref());
            let (input, ended, last_compared) = tokio::task::spawn_blocking(work)
                .await
                .map_err(|_| Error::Broken)?;
            windows.extend(ended);
            watched.last = last_compared.or(watched.last);
            watched.input = Some(input);
            watched.after = Some(last);
            if !more {
                return Ok(());
            }
        }
    }

    async fn begin(&self, sample: Vec<Vec<String>>, training: Vec<String>) -> Result<Input, Error> {
        let (vectors, threshold_log) = (self.vectors.clone(), self.threshold_log);
        let work = move || {
            let said = |conversation: &Vec<String>| {
                let mut said = Said::default();
                conversation
                    .iter()
                    .for_each(|prompt| said.add(prompt, vectors.as_deref()));
                said
            };
            let reference: Vec<Said> = sample.iter().map(said).collect();
            let input = Input::new(Space::new(&reference, vectors.clone()), threshold_log);
            let words = training
                .iter()
                .fold(Counts::default(), |mut counts, prompt| {
                    counts.add(prompt);
                    counts
                });
            input.trained_on((!training.is_empty()).then_some(words))
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Error::Broken)
    }

    /// The last window's p value.
    pub(crate) fn p_value(&self, key: &Key) -> Option<f64> {
        Some(self.watched.get(key)?.last?.p)
    }

    /// How far the last long window's words are from the training examples'.
    pub(crate) fn training_distance(&self, key: &Key) -> Option<f64> {
        let input = self.watched.get(key)?.input.as_ref()?;
        input.training_distance()
    }

    pub(crate) fn report(&self, key: &Key) -> StreamReport {
        let watched = self.watched.get(key);
        let input = watched.and_then(|watched| watched.input.as_ref());
        match input.filter(|input| input.has_sample()) {
            Some(input) => input.standing().report(key, Stream::Input, input.calls()),
            None => without_reference(key, Stream::Input, 0, None),
        }
    }

    /// The alarms that call somebody.
    pub(crate) fn alarms(&self) -> Vec<Trigger> {
        let of = |(key, watched): (&Key, &Watched)| {
            let input = watched.input.as_ref().filter(|input| input.calls())?;
            let (created, again) = watched.by;
            let since = again.unwrap_or(created);
            input.standing().trigger(key, Stream::Input, since)
        };
        self.watched.iter().filter_map(of).collect()
    }
}

/// The prompts that an adapter was trained on; none of the baseline, and of an adapter that came from elsewhere.
async fn training(ledger: &Ledger, (task, adapter): &Key) -> Result<Vec<String>, Error> {
    match ModelName::parse(adapter) {
        Some(ModelName::Adapter { number, .. }) => {
            let examples = ledger.examples(task, number).await?;
            prompts::of(ledger, &examples.unwrap_or_default().train).await
        }
        _ => Ok(Vec::new()),
    }
}

type Folded = (Box<Input>, Vec<Window>, Option<Compared>);

fn fold(
    mut input: Box<Input>,
    key: &Key,
    page: Vec<Asked>,
    vectors: Option<&TokenVectors>,
) -> Folded {
    let (mut windows, mut last) = (Vec::new(), None);
    for asked in page {
        let mut said = Said::default();
        said.add(&asked.prompt, vectors);
        let prompt = Prompt {
            cursor: asked.cursor,
            request_id: asked.request_id,
            conversation: asked.conversation,
            said: Arc::new(said),
        };
        if let Some(compared) = input.observe(&prompt).pop() {
            let standing = input.standing();
            windows.push(standing.window(key, Stream::Input, prompt.cursor.ts, input.calls()));
            last = Some(compared);
        }
    }
    (input, windows, last)
}
