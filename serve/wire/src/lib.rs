//! OpenAI's wire: what comes in, checked parameter by parameter, and what goes out; and other servers' event streams, read.
//!
//! The shapes are ours: the engine's own response structs put the role into every delta and know finish reasons that no client does.
//!
//! No I/O, no engine and no HTTP: what reads bytes from elsewhere is small enough to be fuzzed by itself (tests/fuzz).

pub mod calls;
mod feedback;
mod fine_tuning;
mod messages;
mod pairs;
mod params;
mod refusal;
mod request;
#[cfg(test)]
mod request_tests;
mod response;
mod sampling;
pub mod sse;
mod tools;
mod training;

pub use feedback::Feedback;
pub use fine_tuning::{Hyperparameters, JobRequest, Method, purpose};
pub use pairs::Comparison;
pub use params::Params;
pub use refusal::Refusal;
pub use request::{Ask, Chat, Request};
pub use response::{
    Choice, Envelope, TokenLogprob, Usage, event, message, model_object, tool_calls,
};
pub use sampling::Sampling;
pub use tools::{ResponseFormat, ToolChoice, Tools};
pub use training::{ConversationLine, PreferenceLine, TrainingLine};
