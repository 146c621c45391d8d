//! OpenAI's wire: what comes in, checked parameter by parameter, and what goes out.
//!
//! The shapes are ours: the engine's own response structs put the role into every delta and know finish reasons that no client does.

mod params;
mod request;
mod response;

pub(crate) use params::Params;
pub(crate) use request::ChatRequest;
pub(crate) use response::{Chunks, completion, event, model_object};
