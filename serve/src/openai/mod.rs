//! OpenAI's wire: what comes in, checked parameter by parameter, and what goes out.
//!
//! The shapes are ours: the engine's own response structs put the role into every delta and know finish reasons that no client does.

mod calls;
mod messages;
mod params;
mod request;
#[cfg(test)]
mod request_tests;
mod response;
mod tools;

pub(crate) use calls::{Delta, Reader};
pub(crate) use params::Params;
pub(crate) use request::{Ask, Chat, Request};
pub(crate) use response::{
    Choice, Envelope, Usage, calls as tool_calls, event, model_object, stored,
};
pub(crate) use tools::ToolChoice;
