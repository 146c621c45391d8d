//! mistralrs inside this process: a base and its adapters in one `MistralRs`, on the CPU, from local folders.
//!
//! Each adapter is merged into its own copy of the weights when it is loaded. What the engine would do silently wrong is kept from it:
//! - The adapters to merge wait in a thread-local that nothing empties, so each load has a fresh OS thread, where a panic ends as well.
//! - Prompts are rendered and tokenised here, by the template that training uses, and handed over as tokens.
//! - Its prefix cache never evicts anything on a CPU: memory would grow with every answer. It is off.
//! - Its attention on a CPU mixes up the sequences of a batch while decoding: they share one scratch buffer
//!   (`flash_attn_cpu_single_q`). So a model gets one request at a time; on a CPU a batch would be hardly faster. Models, which are the
//!   base and each adapter, run beside each other.
//! - A closed response channel is an error to it, so the channel stays open until the engine has let go of the request.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use mistralrs_core::{
    AdapterPaths, AddModelConfig, DefaultSchedulerMethod, DeviceMapSetting, EngineConfig,
    LocalModelPaths, LoraAdapterPaths, MistralRs, MistralRsBuilder, ModelDType, ModelPaths,
    NormalLoaderBuilder, NormalRequest, NormalSpecificConfig, Pipeline, Request, RequestMessage,
    SamplingParams, SchedulerConfig,
};
use retune_task::ChatTemplate;
use retune_wire::{Refusal, Sampling};
use tempfile::TempDir;
use tokenizers::Tokenizer;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::TaskTracker;

use super::answer::Answer;
use super::base::BaseFolder;
use super::peft::{self, Lora};
use super::sampling::{Chooser, State};
use super::text::{Decoder, StopScanner};
use super::vocabulary::LazyVocabulary;
use super::{Constraint, Engine, Generating, Generation, Prompt};
use crate::error::Error;

/// The base's name inside the engine; adapters' names contain an `@`.
const BASE: &str = "base";

type SharedPipeline = Arc<tokio::sync::Mutex<dyn Pipeline + Send + Sync>>;

pub(crate) struct Embedded {
    mistral: Arc<MistralRs>,
    files: Arc<Files>,
    template: ChatTemplate,
    tokenizer: Arc<Tokenizer>,
    /// Tokens that a prompt and its answer may have together.
    context: usize,
    end_of_turn: Arc<[u32]>,
    vocabulary: LazyVocabulary,
    base: Model,
    /// Loaded adapters by engine name.
    adapters: Mutex<HashMap<String, Model>>,
    /// Owns the tasks that turn tokens into events.
    answers: TaskTracker,
}

/// A loaded model's requests.
#[derive(Clone)]
struct Model {
    /// One request at a time; first come, first served.
    turn: Arc<Semaphore>,
    /// Those that run or wait.
    requests: TaskTracker,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            turn: Arc::new(Semaphore::new(1)),
            requests: TaskTracker::new(),
        }
    }
}

/// The base's files, as the engine reads them.
struct Files {
    base: BaseFolder,
    /// config.json and the special tokens in the engine's dialect.
    translated: TempDir,
}

impl Embedded {
    /// Loads the base in `folder`.
    pub(crate) async fn start(folder: &Path) -> Result<Self, Error> {
        let base = BaseFolder::open(folder)?;
        let tokenizer = Tokenizer::from_file(&base.tokenizer).map_err(|e| Error::ModelFile {
            path: base.tokenizer.clone(),
            what: format!("is no tokenizer: {e}"),
        })?;
        let template =
            ChatTemplate::from_folder(folder).map_err(|e| Error::Engine(e.to_string()))?;
        let files = Arc::new(Files {
            translated: written(&base, &template)?,
            base,
        });
        let loading = Arc::clone(&files);
        let (mistral, context, end_of_turn) = on_its_own_thread(move || {
            let pipeline = pipeline(&loading, None)?;
            let metadata = futures::executor::block_on(pipeline.lock()).get_metadata();
            let mistral = MistralRsBuilder::new(pipeline, scheduler(), false, None)
                .with_model_id(BASE)
                .with_no_prefix_cache(true)
                .build();
            Ok((
                futures::executor::block_on(mistral),
                metadata.max_seq_len,
                metadata.eos_tok.clone(),
            ))
        })
        .await?;
        let Some(&end) = end_of_turn.first() else {
            return Err(Error::ModelFile {
                path: folder.join("tokenizer_config.json"),
                what: "names no eos_token, so that no answer would ever end".to_owned(),
            });
        };
        let tokenizer = Arc::new(tokenizer);
        Ok(Self {
            vocabulary: LazyVocabulary::new(Arc::clone(&tokenizer), end),
            mistral,
            files,
            template,
            tokenizer,
            context,
            end_of_turn: end_of_turn.into(),
            base: Model::default(),
            adapters: Mutex::default(),
            answers: TaskTracker::new(),
        })
    }

    fn adapters(&self) -> MutexGuard<'_, HashMap<String, Model>> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
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
        let (files, mistral) = (Arc::clone(&self.files), Arc::clone(&self.mistral));
        let engine_name = name.to_owned();
        on_its_own_thread(move || {
            let pipeline = pipeline(&files, Some(lora))?;
            let config = AddModelConfig::new(EngineConfig {
                no_prefix_cache: true,
                throughput_logging_enabled: false,
                ..EngineConfig::default()
            });
            let added = mistral.add_model(engine_name, pipeline, scheduler(), config);
            futures::executor::block_on(added).map_err(Error::Engine)
        })
        .await?;
        self.adapters().insert(name.to_owned(), Model::default());
        Ok(())
    }

    async fn unload(&self, name: &str) -> Result<(), Error> {
        let Some(model) = self.adapters().remove(name) else {
            return Err(Error::NotLoaded(name.to_owned()));
        };
        model.requests.close();
        model.requests.wait().await;
        let (mistral, name) = (Arc::clone(&self.mistral), name.to_owned());
        on_its_own_thread(move || mistral.remove_model(&name).map_err(Error::Engine)).await
    }

    async fn generate(&self, generation: Generation) -> Result<Generating, Error> {
        let name = generation.adapter.as_deref().unwrap_or(BASE).to_owned();
        let (model, request) = {
            let adapters = self.adapters();
            let model = match &generation.adapter {
                None => &self.base,
                Some(name) => adapters
                    .get(name)
                    .ok_or_else(|| Error::NotLoaded(name.clone()))?,
            };
            (model.clone(), model.requests.token())
        };
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
        let turn = model
            .turn
            .acquire_owned()
            .await
            .map_err(|_| Error::NotLoaded(name.clone()))?;
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
        };
        let order = NormalRequest {
            model_id: Some(name.clone()),
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
                self.mistral.next_request_id(),
                None,
                None,
            )
        };
        // An engine thread that died is started anew here.
        let sender = self
            .mistral
            .get_sender(Some(&name))
            .map_err(|e| Error::Engine(e.to_string()))?;
        let sent = sender.send(Request::Normal(Box::new(order))).await;
        sent.map_err(|_| Error::Engine("the engine's thread has ended".to_owned()))?;
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

/// Runs `work` on a fresh OS thread; a panic there is an error here.
async fn on_its_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("retune-engine".to_owned())
        .spawn(move || {
            // The receiver is gone only if nobody waits any more.
            let _ = sender.send(work());
        });
    let thread = thread.map_err(|e| Error::Engine(format!("no thread could be started: {e}")))?;
    match receiver.await {
        Ok(result) => result,
        Err(_) => Err(Error::Engine(match thread.join() {
            Ok(()) => "the engine's thread ended without an answer".to_owned(),
            Err(panic) => format!("the engine panicked: {}", message(panic.as_ref())),
        })),
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned())
}

fn scheduler() -> SchedulerConfig {
    SchedulerConfig::DefaultScheduler {
        method: DefaultSchedulerMethod::Fixed(NonZeroUsize::MIN),
    }
}

/// Loads the base's weights, with `lora` merged into them. Only on a fresh thread: see the module's text.
fn pipeline(files: &Files, lora: Option<Lora>) -> Result<SharedPipeline, Error> {
    mistralrs_quant::clear_applied_loras();
    let translated = files.translated.path();
    let mut builder = NormalLoaderBuilder::new(
        NormalSpecificConfig::default(),
        None,
        None,
        Some(BASE.to_owned()),
        false,
        None,
    );
    let adapters = match lora {
        None => AdapterPaths::None,
        Some(lora) => {
            builder = builder.with_lora(vec![BASE.to_owned()]);
            AdapterPaths::Lora(vec![LoraAdapterPaths {
                lora_config: mistralrs_quant::LoraConfig {
                    rank: lora.r,
                    alpha: lora.alpha,
                    target_modules: lora.target_modules.into_iter().collect(),
                },
                adapter_path: lora.weights,
            }])
        }
    };
    let paths: Box<dyn ModelPaths> = Box::new(LocalModelPaths::<PathBuf>::new(
        files.base.tokenizer.clone(),
        translated.join("config.json"),
        translated.join("tokenizer_config.json"),
        files.base.weights.clone(),
        adapters,
        files.base.generation_config.clone(),
        None,
        None,
        None,
    ));
    let failed =
        |e: &dyn std::fmt::Display| Error::Engine(format!("the model cannot be loaded: {e:#}"));
    let loader = builder.build(None).map_err(|e| failed(&e))?;
    loader
        .load_model_from_path(
            &paths,
            &ModelDType::F32,
            &candle_core::Device::Cpu,
            true,
            DeviceMapSetting::Map(mistralrs_core::DeviceMapMetadata::dummy()),
            None,
            None,
        )
        .map_err(|e| failed(&e))
}

/// The engine's own config.json, and a tokenizer_config.json that holds the end of turn alone: rendering is Retune's, and a template
/// with tags for thoughts would make the engine hide parts of an answer.
fn written(base: &BaseFolder, template: &ChatTemplate) -> Result<TempDir, Error> {
    let unwritable =
        |e: std::io::Error| Error::Engine(format!("the temporary folder cannot be written: {e}"));
    let folder = tempfile::Builder::new()
        .prefix("retune-engine-")
        .tempdir()
        .map_err(unwritable)?;
    let config = serde_json::Value::Object(base.config.clone()).to_string();
    std::fs::write(folder.path().join("config.json"), config).map_err(unwritable)?;
    let special = serde_json::json!({ "eos_token": template.end_of_turn() }).to_string();
    std::fs::write(folder.path().join("tokenizer_config.json"), special).map_err(unwritable)?;
    Ok(folder)
}
