//! The input streams of the adapters that serve: who is watched, against which sample, and how far.
//!
//! Apart from the [`Book`](crate::book::Book), since prompts are most of a table and only those of who serves now are read, in their order
//! and once they are settled. A window may take seconds to test, so that is done on a thread of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use retune_ledger::{Cursor, Ledger, Reference, Trigger, Window};

use crate::book::{Key, alarm};
use crate::error::Error;
use crate::features::vectors::TokenVectors;
use crate::features::{Compared, Said, Space};
use crate::prompts::{self, Asked, Next};
use crate::streams::input::{Input, Prompt, Tested};
use crate::streams::{State, Stream, StreamReport};

/// Whoever is watched.
pub(crate) struct Inputs {
    vectors: Option<Arc<TokenVectors>>,
    threshold_log: f64,
    watched: BTreeMap<Key, Watched>,
    windows: Vec<Window>,
}

/// One adapter.
struct Watched {
    /// When its reference was frozen, and when it came back, if it ever did: with other ones everything starts anew.
    by: (DateTime<Utc>, Option<DateTime<Utc>>),
    /// None while it is tested, and where that broke down.
    input: Option<Box<Input>>,
    after: Option<Cursor>,
    last: Option<Compared>,
}

impl Inputs {
    /// `model`: a folder whose vectors of words are compared, too.
    pub(crate) fn new(model: Option<&Path>, threshold_log: f64) -> Result<Self, Error> {
        let vectors = match model {
            Some(folder) => TokenVectors::open(folder)?,
            None => None,
        };
        if let (Some(folder), None) = (model, &vectors) {
            tracing::info!(model = %folder.display(), "no vectors of words were found in its files; prompts are compared by their words alone");
        }
        Ok(Self {
            vectors: vectors.map(Arc::new),
            threshold_log,
            watched: BTreeMap::new(),
            windows: Vec::new(),
        })
    }

    /// Everything is to be tested again.
    pub(crate) fn forget(&mut self) {
        self.watched.clear();
        self.windows.clear();
    }

    /// Watches these adapters and no other: their references, and when they came back.
    pub(crate) fn watch(&mut self, serving: &BTreeMap<Key, (&Reference, Option<DateTime<Utc>>)>) {
        self.watched.retain(|key, watched| {
            let now = serving.get(key);
            now.is_some_and(|(reference, again)| watched.by == (reference.created, *again))
        });
    }

    /// Takes an adapter's prompts up to a time.
    pub(crate) async fn take(
        &mut self,
        ledger: &Ledger,
        key: &Key,
        reference: &Reference,
        again: Option<DateTime<Utc>>,
        until: DateTime<Utc>,
    ) -> Result<(), Error> {
        let Some(span) = &reference.prompts else {
            return Ok(());
        };
        if !self.watched.contains_key(key) {
            let sample = prompts::sample(ledger, &key.0, span).await?;
            let input = self.begin(sample).await?;
            let watched = Watched {
                by: (reference.created, again),
                input: Some(Box::new(input)),
                after: None,
                last: None,
            };
            self.watched.insert(key.clone(), watched);
        }
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
                from: again,
                until,
            };
            let (page, more) = prompts::page(ledger, &next).await?;
            let Some(last) = page.last().map(|asked| asked.cursor.clone()) else {
                return Ok(());
            };
            let Some(input) = watched.input.take() else {
                return Err(Error::Broken);
            };
            let vectors = self.vectors.clone();
            let work = move || fold(input, page, vectors.as_deref());
            let (input, tested) = tokio::task::spawn_blocking(work)
                .await
                .map_err(|_| Error::Broken)?;
            for (tested, exchanges, log_e) in &tested {
                self.windows.push(Window {
                    ts: tested.ts,
                    task: key.0.clone(),
                    adapter: key.1.clone(),
                    stream: Stream::Input.to_string(),
                    state: if tested.crosses {
                        State::Alarm
                    } else {
                        state(&input)
                    }
                    .to_string(),
                    exchanges: *exchanges,
                    failures: 0,
                    log_e: *log_e,
                    threshold_log: input.threshold_log(),
                });
                watched.last = Some(tested.compared);
            }
            watched.input = Some(input);
            watched.after = Some(last);
            if !more {
                return Ok(());
            }
        }
    }

    async fn begin(&self, sample: Vec<Vec<String>>) -> Result<Input, Error> {
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
            Input::new(Space::new(&reference, vectors.clone()), threshold_log)
        };
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|_| Error::Broken)
    }

    /// The last window's p value.
    pub(crate) fn p_value(&self, key: &Key) -> Option<f64> {
        Some(self.watched.get(key)?.last?.p)
    }

    pub(crate) fn report(&self, key: &Key) -> StreamReport {
        let report = |state, exchanges, since| StreamReport {
            task: key.0.clone(),
            adapter: key.1.clone(),
            stream: Stream::Input,
            state,
            exchanges,
            log_e: None,
            threshold_log: None,
            since,
        };
        let watched = self.watched.get(key);
        let input = watched.and_then(|watched| watched.input.as_ref());
        let Some(input) = input.filter(|input| input.has_sample()) else {
            return report(State::NoReference, 0, None);
        };
        let (state, since) = match input.crossing() {
            Some(crossing) if input.calls() => (State::Alarm, Some(crossing.ts)),
            Some(crossing) => (State::Warning, Some(crossing.ts)),
            None => (state(input), input.first()),
        };
        StreamReport {
            log_e: Some(input.log_e()),
            threshold_log: Some(input.threshold_log()),
            ..report(state, input.exchanges(), since)
        }
    }

    /// The alarms that call somebody.
    pub(crate) fn alarms(&self) -> Vec<Trigger> {
        let mut triggers = Vec::new();
        for (key, watched) in &self.watched {
            let input = watched.input.as_ref().filter(|input| input.calls());
            let Some((input, crossing)) = input.and_then(|i| Some((i, i.crossing()?))) else {
                continue;
            };
            let (created, again) = watched.by;
            triggers.push(Trigger {
                alarm: alarm(&key.1, Stream::Input, again.unwrap_or(created)),
                task: key.0.clone(),
                adapter: key.1.clone(),
                kind: Stream::Input.kind(),
                ts: crossing.ts,
                request_id: crossing.request_id.clone(),
                exchanges: crossing.exchanges,
                log_e: crossing.log_e,
                threshold_log: input.threshold_log(),
                evidence: crossing.evidence.clone(),
            });
        }
        triggers
    }

    /// Rows of `windows` that are due.
    pub(crate) fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// They are in the table.
    pub(crate) fn windows_taken(&mut self) {
        self.windows.clear();
    }
}

fn state(input: &Input) -> State {
    match input.is_enough() {
        true => State::Ok,
        false => State::NotEnoughData,
    }
}

type Folded = (Box<Input>, Vec<(Tested, u64, f64)>);

fn fold(mut input: Box<Input>, page: Vec<Asked>, vectors: Option<&TokenVectors>) -> Folded {
    let mut tested = Vec::new();
    for asked in page {
        let mut said = Said::default();
        said.add(&asked.prompt, vectors);
        let prompt = Prompt {
            cursor: asked.cursor,
            request_id: asked.request_id,
            conversation: asked.conversation,
            said: Arc::new(said),
        };
        for window in input.observe(&prompt) {
            tested.push((window, input.exchanges(), input.log_e()));
        }
    }
    (input, tested)
}
