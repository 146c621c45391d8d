//! The proof that an adapter is applied, before anybody gets an answer of it.
//!
//! An engine that ignores an adapter, or merges it twice, says nothing of it: only its answers tell. So they are compared, greedy ones
//! to a few fixed questions:
//! - An adapter that was trained here has in its manifest what it answered where it was made. The same has to come again, and
//!   where the base answered something else, it must not be what the base says here.
//! - Of one that was imported nobody knows what it should answer. It has to answer; if all its answers are the base's own, that
//!   may be so (of an adapter that learned next to nothing), and is a warning in the log.
//! - One that was proved before and is loaded again has to answer the first question as it did then.
//!
//! Other servers compute otherwise, so that an answer may differ by a letter from what it was. There the adapter has to differ from
//! the base somewhere, if it did where it was made: that it is ignored is what matters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use retune_ledger::{AdapterRef, Manifest, Probe};
use retune_task::{ChatMessage, Config, PROBE_TOKENS, Task};
use retune_wire::Sampling;

use crate::adapters::name_of;
use crate::engine::{Engine, Event, Generation, Prompt};
use crate::error::Error;
use crate::trace::Trail;

/// Asks adapters and the base for proof.
pub(crate) struct Prober {
    engine: Arc<dyn Engine>,
    config: Arc<Config>,
    /// What the base answered: it does not change while this process lives.
    base: Mutex<HashMap<String, String>>,
    /// What adapters that were proved answered to their first question, by name and digest.
    proved: Mutex<HashMap<String, String>>,
}

struct Question<'a> {
    messages: &'a [ChatMessage],
    max_tokens: usize,
}

impl Prober {
    pub(crate) fn new(engine: Arc<dyn Engine>, config: Arc<Config>) -> Self {
        Self {
            engine,
            config,
            base: Mutex::default(),
            proved: Mutex::default(),
        }
    }

    /// Fails unless the adapter, loaded as `engine_name`, answers as it must.
    pub(crate) async fn prove(&self, adapter: &AdapterRef, engine_name: &str) -> Result<(), Error> {
        let manifest = &adapter.manifest;
        let fixed = self.fixed(&adapter.task);
        let questions: Vec<Question<'_>> = if manifest.probes.is_empty() {
            let question = |messages| Question {
                messages,
                max_tokens: PROBE_TOKENS,
            };
            fixed.iter().map(Vec::as_slice).map(question).collect()
        } else {
            manifest.probes.iter().map(recorded).collect()
        };
        let Some(first) = questions.first() else {
            return Ok(());
        };
        let answer = self.ask(Some(engine_name), first).await?;
        let key = format!("{} {}", name_of(adapter), manifest.digest);
        let repeats = self.engine.repeats();
        let before = held(&self.proved).get(&key).cloned();
        let before = before.filter(|_| repeats);
        if let Some(before) = before {
            return if answer == before {
                Ok(())
            } else {
                Err(refused(
                    adapter,
                    "it answers a probe otherwise than when it was loaded before".to_owned(),
                ))
            };
        }
        let mut answers = vec![answer.clone()];
        for question in questions.iter().skip(1) {
            answers.push(self.ask(Some(engine_name), question).await?);
        }
        if manifest.probes.is_empty() {
            self.warn_if_base(adapter, &questions, &answers).await?;
        } else if !repeats {
            self.differs_somewhere(adapter, &answers).await?;
        } else {
            self.compare(adapter, manifest, &answers).await?;
        }
        held(&self.proved).insert(key, answer);
        Ok(())
    }

    /// What is asked where nothing is recorded.
    fn fixed(&self, task: &str) -> Vec<Vec<ChatMessage>> {
        let configured = self.config.tasks.iter().find(|t| t.name == task);
        match configured {
            Some(task) => task.probes(),
            None => Task::of_job(task).probes(),
        }
    }

    async fn compare(
        &self,
        adapter: &AdapterRef,
        manifest: &Manifest,
        answers: &[String],
    ) -> Result<(), Error> {
        let pairs = || manifest.probes.iter().zip(answers);
        let wrong = pairs().filter(|(p, a)| p.answer != **a).count();
        if let Some((probe, answer)) = pairs().find(|(p, a)| p.answer != **a) {
            let alone = self.base_answer(&recorded(probe)).await? == *answer;
            return Err(refused(
                adapter,
                format!(
                    "{wrong} of the {} probes in its manifest are answered otherwise than where it was made{}; it was made for the \
                     base {}: is this that base, with the same weights and the same chat template?",
                    answers.len(),
                    if alone {
                        ", namely as by the base without it"
                    } else {
                        ""
                    },
                    manifest.base,
                ),
            ));
        }
        if let Some((probe, answer)) = pairs().find(|(p, _)| p.differs)
            && self.base_answer(&recorded(probe)).await? == *answer
        {
            return Err(refused(
                adapter,
                format!(
                    "the base answers a probe as the adapter does, and did not where it was made, for the base {}: is this that base?",
                    manifest.base
                ),
            ));
        }
        Ok(())
    }

    /// Of the answers that differed from the base's where the adapter was made, one has to differ here.
    async fn differs_somewhere(
        &self,
        adapter: &AdapterRef,
        answers: &[String],
    ) -> Result<(), Error> {
        let probes = adapter.manifest.probes.iter().zip(answers);
        let mut compared = 0;
        for (probe, answer) in probes.filter(|(p, _)| p.differs) {
            if self.base_answer(&recorded(probe)).await? != *answer {
                return Ok(());
            }
            compared += 1;
        }
        if compared == 0 {
            return Ok(());
        }
        Err(refused(
            adapter,
            format!(
                "the server answers {compared} probes as by the base alone, which it did not where it was made, for the base {}: \
                 is this that base, and does the server apply the adapter?",
                adapter.manifest.base
            ),
        ))
    }

    async fn warn_if_base(
        &self,
        adapter: &AdapterRef,
        questions: &[Question<'_>],
        answers: &[String],
    ) -> Result<(), Error> {
        for (question, answer) in questions.iter().zip(answers) {
            if self.base_answer(question).await? != *answer {
                return Ok(());
            }
        }
        tracing::warn!(
            task = adapter.task,
            adapter = adapter.number,
            probes = answers.len(),
            "an adapter answers every probe as the base does: it learned next to nothing, or is not applied"
        );
        Ok(())
    }

    async fn base_answer(&self, question: &Question<'_>) -> Result<String, Error> {
        let key = serde_json::json!([question.messages, question.max_tokens]).to_string();
        let known = held(&self.base).get(&key).cloned();
        match known {
            Some(answer) => Ok(answer),
            None => {
                let answer = self.ask(None, question).await?;
                held(&self.base).insert(key, answer.clone());
                Ok(answer)
            }
        }
    }

    /// The greedy answer of an adapter, by its engine name, or of the base.
    async fn ask(&self, adapter: Option<&str>, question: &Question<'_>) -> Result<String, Error> {
        let generation = Generation {
            adapter: adapter.map(str::to_owned),
            prompt: Prompt::Messages {
                messages: question.messages.to_vec(),
                tools: None,
            },
            sampling: Sampling::GREEDY,
            max_tokens: question.max_tokens,
            stop: Vec::new(),
            logprobs: None,
            constraint: None,
            trail: Trail::default(),
        };
        let mut generating = self.engine.generate(generation).await?;
        let mut answer = String::new();
        loop {
            match generating.events.recv().await {
                Some(Event::Text { text, .. }) => answer.push_str(&text),
                Some(Event::Done { .. }) => return Ok(answer),
                Some(Event::Failed(e)) => return Err(e),
                None => {
                    return Err(Error::Engine("a probe got no whole answer".to_owned()));
                }
            }
        }
    }
}

fn recorded(probe: &Probe) -> Question<'_> {
    Question {
        messages: &probe.messages,
        max_tokens: probe.max_tokens,
    }
}

fn refused(adapter: &AdapterRef, problems: String) -> Error {
    Error::Adapter {
        folder: adapter.folder.clone(),
        problems,
    }
}

fn held<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
