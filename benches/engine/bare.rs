//! The peer: mistralrs in this process, asked directly. It chooses the tokens itself; there is no HTTP, no log, no prefix cache.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};
use mistralrs_core::{
    AdapterPaths, DefaultSchedulerMethod, DeviceMapMetadata, DeviceMapSetting, LocalModelPaths,
    MistralRs, MistralRsBuilder, ModelDType, ModelPaths, NormalLoaderBuilder, NormalRequest,
    NormalSpecificConfig, Request, RequestMessage, Response, SamplingParams, SchedulerConfig,
};

use crate::Answer;

pub(crate) struct Bare {
    mistral: Arc<MistralRs>,
    /// Whose turn it is, where one sequence is computed at a time: asked for a second one meanwhile, its scheduler goes back and forth
    /// between the two, and gives wrong answers to both.
    turn: Option<Mutex<()>>,
}

impl Bare {
    /// The model in `folder`, of whose requests so many are computed at once.
    pub(crate) fn load(folder: &Path, at_once: usize) -> Result<Self> {
        let paths: Box<dyn ModelPaths> = Box::new(LocalModelPaths::<PathBuf>::new(
            folder.join("tokenizer.json"),
            folder.join("config.json"),
            folder.join("tokenizer_config.json"),
            vec![folder.join("model.safetensors")],
            AdapterPaths::None,
            Some(folder.join("generation_config.json")),
            None,
            None,
            None,
        ));
        let method = DefaultSchedulerMethod::Fixed(
            NonZeroUsize::new(at_once).context("an engine that computes nothing")?,
        );
        let pipeline = NormalLoaderBuilder::new(
            NormalSpecificConfig::default(),
            None,
            None,
            Some("pocket".to_owned()),
            false,
            None,
        )
        .build(None)?
        .load_model_from_path(
            &paths,
            &ModelDType::F32,
            &candle_core::Device::Cpu,
            true,
            DeviceMapSetting::Map(DeviceMapMetadata::dummy()),
            None,
            None,
        )?;
        let built = MistralRsBuilder::new(
            pipeline,
            SchedulerConfig::DefaultScheduler { method },
            false,
            None,
        )
        .with_no_prefix_cache(true)
        .build();
        Ok(Self {
            mistral: futures::executor::block_on(built),
            turn: (at_once == 1).then(Mutex::default),
        })
    }

    /// Waits for the whole answer.
    pub(crate) fn ask(&self, prompt: &str, max_tokens: usize) -> Result<Answer> {
        let turn = self.turn.as_ref();
        let _turn = turn.map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
        let (response, mut responses) = tokio::sync::mpsc::channel(4);
        let request = NormalRequest::new_simple(
            RequestMessage::Completion {
                text: prompt.to_owned(),
                echo_prompt: false,
                best_of: None,
            },
            SamplingParams {
                max_len: Some(max_tokens),
                ..SamplingParams::deterministic()
            },
            response,
            self.mistral.next_request_id(),
            None,
            None,
        );
        let sender = self
            .mistral
            .get_sender(None)
            .map_err(|e| anyhow!("the bare engine is gone: {e}"))?;
        sender
            .blocking_send(Request::Normal(Box::new(request)))
            .map_err(|_| anyhow!("the bare engine has ended"))?;
        match responses.blocking_recv() {
            Some(Response::CompletionDone(done)) => {
                let choice = done.choices.first().context("an answer without a choice")?;
                Ok(Answer {
                    text: choice.text.clone(),
                    tokens: done.usage.completion_tokens,
                    prompt_tokens: done.usage.prompt_tokens,
                })
            }
            Some(Response::InternalError(e) | Response::ValidationError(e)) => {
                bail!("the bare engine failed: {e}")
            }
            Some(Response::CompletionModelError(e, _)) => bail!("the bare engine failed: {e}"),
            _ => bail!("the bare engine gave something else than an answer"),
        }
    }
}
