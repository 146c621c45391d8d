//! Loading a model into mistralrs from local files: the base, or the base with an adapter merged into a copy of its weights.
//!
//! The adapters to merge wait in a thread-local that nothing empties, so each load has a fresh OS thread, where a panic ends as well.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use mistralrs_core::{
    AdapterPaths, DeviceMapSetting, GGUFLoaderBuilder, GGUFSpecificConfig, Loader, LocalModelPaths,
    LoraAdapterPaths, ModelDType, ModelPaths, NormalLoaderBuilder, NormalSpecificConfig, Pipeline,
};
use retune_task::ChatTemplate;
use tempfile::TempDir;

use super::base::{BaseFolder, WeightsKind};
use super::model::Model;
use super::peft::Lora;
use crate::error::Error;

/// Every model's name inside its engine.
pub(super) const NAME: &str = "base";

pub(super) type SharedPipeline = Arc<tokio::sync::Mutex<dyn Pipeline + Send + Sync>>;

/// The base's files, and what the engine reads in place of two of them.
pub(super) struct Files {
    pub(super) base: BaseFolder,
    /// config.json in the engine's dialect.
    config: String,
    /// A tokenizer_config.json that holds the end of turn alone: rendering is Retune's, and a template with tags for thoughts would make
    /// the engine hide parts of an answer.
    special_tokens: String,
}

impl Files {
    pub(super) fn new(base: BaseFolder, template: &ChatTemplate) -> Self {
        let end_of_turn = template.end_of_turn();
        Self {
            config: serde_json::Value::Object(base.config.clone()).to_string(),
            special_tokens: serde_json::json!({ "eos_token": end_of_turn }).to_string(),
            base,
        }
    }

    /// The two as files, for the time of one load: a folder kept for later would outlive a killed process, and a system that sweeps its
    /// temporary files would take it from a long-lived one.
    fn translated(&self) -> Result<TempDir, Error> {
        let unwritable = |e: std::io::Error| {
            Error::Engine(format!("the temporary folder cannot be written: {e}"))
        };
        let folder = tempfile::Builder::new()
            .prefix("retune-engine-")
            .tempdir()
            .map_err(unwritable)?;
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
        write("config.json", &self.config).map_err(unwritable)?;
        write("tokenizer_config.json", &self.special_tokens).map_err(unwritable)?;
        Ok(folder)
    }
}

/// A model, and what its files say of it.
pub(super) struct Loaded {
    pub(super) model: Model,
    /// Tokens that a prompt and its answer may have together.
    pub(super) context: usize,
    pub(super) end_of_turn: Vec<u32>,
}

/// Loads the base, with `lora` merged into it.
pub(super) async fn load(files: &Arc<Files>, lora: Option<Lora>) -> Result<Loaded, Error> {
    let files = Arc::clone(files);
    on_its_own_thread(move || {
        let begun = Instant::now();
        let pipeline = pipeline(&files, lora)?;
        let metadata = futures::executor::block_on(pipeline.lock()).get_metadata();
        Ok(Loaded {
            model: Model::new(pipeline, begun)?,
            context: metadata.max_seq_len,
            end_of_turn: metadata.eos_tok.clone(),
        })
    })
    .await
}

/// Runs `work` on a fresh OS thread; a panic there is an error here.
pub(super) async fn on_its_own_thread<T: Send + 'static>(
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

/// Loads the base's weights, with `lora` merged into them. Only on a fresh thread: see the module's text.
fn pipeline(files: &Files, lora: Option<Lora>) -> Result<SharedPipeline, Error> {
    mistralrs_quant::clear_applied_loras();
    let failed =
        |e: &dyn std::fmt::Display| Error::Engine(format!("the model cannot be loaded: {e:#}"));
    let loader = match files.base.kind {
        WeightsKind::Gguf => gguf_loader(&files.base),
        WeightsKind::Safetensors => normal_loader(lora.is_some()).map_err(|e| failed(&e))?,
    };
    let adapters = match lora {
        None => AdapterPaths::None,
        Some(lora) => AdapterPaths::Lora(vec![LoraAdapterPaths {
            lora_config: mistralrs_quant::LoraConfig {
                rank: lora.r,
                alpha: lora.alpha,
                target_modules: lora.target_modules.into_iter().collect(),
            },
            adapter_path: lora.weights,
        }]),
    };
    let translated = files.translated()?;
    let paths: Box<dyn ModelPaths> = Box::new(LocalModelPaths::<PathBuf>::new(
        files.base.tokenizer.clone(),
        translated.path().join("config.json"),
        translated.path().join("tokenizer_config.json"),
        files.base.weights.clone(),
        adapters,
        files.base.generation_config.clone(),
        None,
        None,
        None,
    ));
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

fn normal_loader(with_lora: bool) -> anyhow::Result<Box<dyn Loader>> {
    let builder = NormalLoaderBuilder::new(
        NormalSpecificConfig::default(),
        None,
        None,
        Some(NAME.to_owned()),
        false,
        None,
    );
    if with_lora {
        builder.with_lora(vec![NAME.to_owned()]).build(None)
    } else {
        builder.build(None)
    }
}

/// With the tokenizer beside the file: the engine makes none of what the file says.
fn gguf_loader(base: &BaseFolder) -> Box<dyn Loader> {
    let names = base.weights.iter().map(|path| path.display().to_string());
    GGUFLoaderBuilder::new(
        None,
        None,
        NAME.to_owned(),
        names.collect(),
        GGUFSpecificConfig::default(),
        false,
        None,
    )
    .build()
}
