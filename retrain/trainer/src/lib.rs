//! Training a language model on the CPU: all of its weights, or a LoRA over frozen ones.
//!
//! The matrix products are candle's; what lies between them, and every backward pass, is written by hand over slices
//! (`ops`, `forward`): nothing is padded, no graph is kept, and a frozen weight gets no gradient. It reads and writes
//! the formats everybody else reads: a Hugging Face folder for a base, PEFT's two files for an adapter. It knows
//! nothing of tasks, logs or servers: tokens and loss weights come in, weights come out.
//!
//! The same seed, examples and number of threads give the same weights on the same machine.

mod batch;
mod block;
mod checkpoint;
mod config;
mod error;
mod files;
mod fine_tune;
mod forward;
mod generate;
mod items;
mod linear;
mod lora;
mod model;
mod ops;
mod optimizer;
#[cfg(test)]
mod parity;
mod peft;
mod preference;
#[cfg(test)]
mod reference;
mod settings;
#[cfg(test)]
mod test_support;
mod train;
mod workers;

pub use batch::Example;
pub use candle_core::DType;
pub use checkpoint::Checkpoints;
pub use config::{Family, ModelConfig};
pub use error::{Error, Result};
pub use fine_tune::{LoraOutcome, Observer, Sets, train_lora};
pub use generate::Said;
pub use lora::LoraAdapter;
pub use model::Model;
pub use preference::{DpoSettings, Preference, train_preferences};
pub use settings::{Decay, LoraSettings, recommended_learning_rate};
pub use train::{FullSettings, Progress, train_full};
