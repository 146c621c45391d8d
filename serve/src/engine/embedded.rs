//! mistralrs inside this process: a base and its adapters, each with an engine of its own, on the CPU, from local files.
//!
//! Each adapter is merged into its own copy of the weights when it is loaded. What the engine would do silently wrong is kept from it:
//! - Prompts are rendered and tokenised here, by the template that training uses, and handed over as tokens.
//! - Its prefix cache never evicts anything on a CPU: memory would grow with every answer. It is off.
//! - Its attention on a CPU mixes up the sequences of a batch while decoding: they share one scratch buffer
//!   (`flash_attn_cpu_single_q`). So a model gets one request at a time; on a CPU a batch would be hardly faster. Models, which are the
//!   base and each adapter, run beside each other.
//! - A closed response channel is an error to it, so the channel stays open until the engine has let go of the request.
//! - An engine that panicked is not used again: see `model.rs`. The base is loaded anew at once; an adapter is forgotten, and whoever
//!   asks for it next loads and proves it as one that was never there.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use mistralrs_core::{NormalRequest, Request, RequestMessage, SamplingParams};
use prometheus::IntCounter;
use retune_task::{ChatTemplate, base_folder};
use retune_wire::{Refusal, Sampling};
use tokenizers::Tokenizer;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::answer::Answer;
use super::base::BaseFolder;
use super::load::{Files, load};
use super::model::{Base, Handle, Model, told};
use super::peft;
use super::sampling::{Chooser, State};
use super::text::{Decoder, StopScanner};
use super::vocabulary::LazyVocabulary;
use super::{Constraint, Engine, Generating, Generation, Prompt};
use crate::error::Error;

/// Loaded adapters by engine name.
type Adapters = Mutex<HashMap<String, Model>>;

pub(crate) struct Embedded {
    files: Arc<Files>,
    template: ChatTemplate,
    tokenizer: Arc<Tokenizer>,
    /// Tokens that a prompt and its answer may have together.
    context: usize,
    end_of_turn: Arc<[u32]>,
    vocabulary: LazyVocabulary,
    base: Base,
    adapters: Arc<Adapters>,
    /// How many requests there were.
    requests: AtomicUsize,
    /// Engines that broke down.
    restarts: IntCounter,
    /// Owns the tasks that turn tokens into events.
    answers: TaskTracker,
    #[cfg(test)]
    pub(crate) fault: Arc<super::sampling::Fault>,
}

impl Embedded {
    /// Loads a base, a folder or a GGUF file in one; `restarts` counts engines that broke down.
    pub(crate) async fn start(base: &Path, restarts: IntCounter) -> Result<Self, Error> {
        let files = BaseFolder::open(base)?;
        let folder = base_folder(base);
        let template =
            ChatTemplate::from_folder(folder).map_err(|e| Error::Engine(e.to_string()))?;
        let files = Arc::new(Files::new(files, &template));
        let tokenizer = &files.base.tokenizer;
        let tokenizer = Tokenizer::from_file(tokenizer).map_err(|e| Error::ModelFile {
            path: tokenizer.clone(),
            what: format!("is no tokenizer: {e}"),
        })?;
        let loaded = load(&files, None).await?;
        let Some(&end) = loaded.end_of_turn.first() else {
            return Err(Error::ModelFile {
                path: folder.join("tokenizer_config.json"),
                what: "names no eos_token, so that no answer would ever end".to_owned(),
            });
        };
        let mut ends = loaded.end_of_turn;
        // A text's end ends an answer too, where a turn's is another token.
        let end_of_text = tokenizer.token_to_id(template.end_of_text());
        ends.extend(end_of_text.filter(|token| !ends.contains(token)));
        let tokenizer = Arc::new(tokenizer);
        Ok(Self {
            vocabulary: LazyVocabulary::new(Arc::clone(&tokenizer), end),
            base: Base::new(loaded.model, Arc::clone(&files), restarts.clone()),
            files,
            template,
            tokenizer,
            context: loaded.context,
            end_of_turn: ends.into(),
            adapters: Arc::default(),
            requests: AtomicUsize::default(),
            restarts,
            answers: TaskTracker::new(),
            #[cfg(test)]
            fault: Arc::default(),
        })
    }

    /// What a request to an adapter, or to the base, needs of it.
    fn handle(&self, adapter: Option<&str>) -> Result<Handle, Error> {
        let handle = match adapter {
            None => self.base.handle(),
            Some(name) => match held(&self.adapters).get(name) {
                Some(model) => model.handle(),
                None => return Err(Error::NotLoaded(name.to_owned())),
            },
        };
        if handle.alive() {
            Ok(handle)
        } else {
            Err(handle.broken())
        }
    }

    /// The prompt's tokens; of messages exactly those that the trainer makes of them.
    fn prompt(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
        let (text, special) = match prompt {
            Prompt::Text(text) => (text.clone(), true),
            Prompt::Messages { messages, tools } => {
                let text = self
                    .template
                    .render_with_tools(messages, tools.as_deref(), true);
                let text = text.map_err(|e| Refusal {
                    message: format!("These messages do not fit the model's chat template: {e}"),
                    param: Some("messages".to_owned()),
                    code: None,
                });
                (text?, false)
            }
        };
        let tokens = self
            .tokenizer
            .encode_fast(text, special)
            .map_err(|e| Error::Engine(format!("the prompt cannot be tokenised: {e}")))?;
        Ok(tokens.get_ids().to_vec())
    }

    /// The tokens that an answer to a prompt of this length may have.
    fn room(&self, prompt: &Prompt, prompt_tokens: usize) -> Result<usize, Error> {
        let (param, what) = match prompt {
            Prompt::Messages { .. } => ("messages", "messages"),
            Prompt::Text(_) => ("prompt", "prompt"),
        };
        if prompt_tokens == 0 {
            let message = format!("Invalid '{param}': there is nothing in it to continue.");
            return Err(Error::param(param, "empty_string", message));
        }
        match self.context.saturating_sub(prompt_tokens) {
            0 => Err(Refusal {
                message: format!(
                    "This model's maximum context length is {} tokens. However, your {what} resulted in {prompt_tokens} tokens. \
                     Please reduce the length of the {what}.",
                    self.context
                ),
                param: Some(param.to_owned()),
                code: Some("context_length_exceeded"),
            }
            .into()),
            room => Ok(room),
        }
    }

    /// Every token that is biased must be one.
    async fn check_bias(&self, sampling: &Sampling) -> Result<(), Error> {
        if sampling.logit_bias.is_empty() {
            return Ok(());
        }
        let size = self.vocabulary.get().await?.size();
        match sampling
            .logit_bias
            .iter()
            .find(|(token, _)| *token as usize >= size)
        {
            None => Ok(()),
            Some((token, _)) => Err(Error::param(
                "logit_bias",
                "invalid_value",
                format!(
                    "Invalid 'logit_bias': {token} is no token of this model, which has {size}."
                ),
            )),
        }
    }
}

#[async_trait]
impl Engine for Embedded {
    async fn load(&self, name: &str, folder: &Path) -> Result<(), Error> {
        let lora = peft::check(folder, &self.files.base)?;
        let model = load(&self.files, Some(lora)).await?.model;
        let ended = model.ended();
        held(&self.adapters).insert(name.to_owned(), model);
        let (adapters, restarts) = (Arc::clone(&self.adapters), self.restarts.clone());
        let name = name.to_owned();
        tokio::spawn(async move {
            if !ended.await {
                return;
            }
            told(&name, &restarts);
            let dead = held(&adapters).remove(&name);
            if let Some(dead) = dead
                && let Err(e) = dead.end().await
            {
                tracing::error!(model = name, error = %e, "a model whose engine broke down could not be freed");
            }
        });
        Ok(())
    }

    async fn unload(&self, name: &str) -> Result<(), Error> {
        let model = held(&self.adapters).remove(name);
        let alive = match model {
            Some(model) => model.end().await?,
            None => false,
        };
        if alive {
            Ok(())
        } else {
            Err(Error::NotLoaded(name.to_owned()))
        }
    }

    fn holds_adapter(&self, name: &str) -> bool {
        self.handle(Some(name)).is_ok()
    }

    async fn ready(&self) -> bool {
        self.base.handle().alive()
    }

    async fn generate(&self, generation: Generation) -> Result<Generating, Error> {
        let model = self.handle(generation.adapter.as_deref())?;
        let request = model.requests.token();
        let prompt = self.prompt(&generation.prompt)?;
        let prompt_tokens = prompt.len();
        let room = self.room(&generation.prompt, prompt_tokens)?;
        let max_tokens = generation.max_tokens.min(room);
        self.check_bias(&generation.sampling).await?;
        let allowed = match generation.constraint {
            Some(constraint) => Some(self.vocabulary.allowed(constraint).await?),
            None => None,
        };
        let vocabulary = match generation.logprobs {
            Some(_) => Some(self.vocabulary.get().await?),
            None => None,
        };
        // Nobody closes it; and where the engine broke down meanwhile, the request cannot be sent.
        let turn = Arc::clone(&model.turn);
        let turn = turn.acquire_owned().await.map_err(|_| model.broken())?;
        let stop = Arc::new(AtomicBool::new(false));
        let (chosen, tokens) = mpsc::unbounded_channel();
        let (response, responses) = mpsc::channel(4);
        let chooser = Chooser {
            prompt_tokens,
            logprobs: generation.logprobs,
            tokens: chosen,
            stop: Arc::clone(&stop),
            end_of_turn: self.end_of_turn.first().copied().unwrap_or_default(),
            state: Mutex::new(State::new(&generation.sampling, allowed)),
            sampling: generation.sampling,
            #[cfg(test)]
            fault: Arc::clone(&self.fault),
        };
        let order = NormalRequest {
            logits_processors: Some(vec![Arc::new(chooser)]),
            constraint: mistralrs_core::Constraint::None,
            ..NormalRequest::new_simple(
                RequestMessage::CompletionTokens(prompt),
                SamplingParams {
                    max_len: Some(max_tokens),
                    temperature: Some(0.0),
                    ..SamplingParams::neutral()
                },
                response,
                self.requests.fetch_add(1, Ordering::Relaxed),
                None,
                None,
            )
        };
        let sent = model.engine.send(Request::Normal(Box::new(order))).await;
        sent.map_err(|_| model.broken())?;
        let (events, receiver) = mpsc::unbounded_channel();
        let answer = Answer {
            decoder: Decoder::new(Arc::clone(&self.tokenizer)),
            scanner: StopScanner::new(generation.stop),
            end_of_turn: Arc::clone(&self.end_of_turn),
            vocabulary,
            max_tokens,
            count: 0,
            stop,
            events,
            model,
            _turn: turn,
            _request: request,
        };
        self.answers.spawn(answer.run(tokens, responses));
        Ok(Generating {
            prompt_tokens,
            events: receiver,
        })
    }

    async fn holds(&self, constraint: Constraint) -> Result<(), Error> {
        self.vocabulary.allowed(constraint).await.map(|_| ())
    }

    fn knows_tools(&self) -> bool {
        self.template.knows_tools()
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::panic, reason = "tests")]
impl Embedded {
    /// Makes the next forward pass of an adapter, or of the base, panic.
    pub(crate) fn poison(&self, adapter: Option<&str>) {
        match adapter {
            None => self.base.with_model(Model::poison),
            Some(name) => held(&self.adapters).get(name).map(Model::poison),
        }
        .expect("a loaded model");
    }
}

fn held(adapters: &Adapters) -> MutexGuard<'_, HashMap<String, Model>> {
    adapters.lock().unwrap_or_else(PoisonError::into_inner)
}
