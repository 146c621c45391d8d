//! The async-openai crate, unmodified, against a running Retune: `client URL ENGINE`. Of all clients it reads answers most strictly:
//! a member that is missing or has another type ends it.

mod chat;
mod rest;

use std::error::Error;

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::{ApiError, OpenAIError};
use async_openai::types::chat::{
    ChatCompletionRequestUserMessage, CreateChatCompletionRequest, CreateChatCompletionRequestArgs,
};

/// What ends it.
type Failed = Box<dyn Error>;

/// What everything is asked with.
struct Asker {
    client: Client<OpenAIConfig>,
    /// `embedded`, `upstream` or `vllm`: only the last one's model chooses its tools itself.
    engine: String,
}

const QUESTION: &str = "I was charged twice for order 4711, please send one payment back.";

/// A greedy question to the task.
fn question() -> CreateChatCompletionRequestArgs {
    let mut args = CreateChatCompletionRequestArgs::default();
    args.model("triage")
        .messages(vec![
            ChatCompletionRequestUserMessage::from(QUESTION).into(),
        ])
        .temperature(0.0);
    args
}

/// The error that a refused request gets.
async fn refused(
    asker: &Asker,
    request: CreateChatCompletionRequest,
) -> Result<(u16, ApiError), Failed> {
    match asker.client.chat().create(request).await {
        Err(OpenAIError::ApiError(e)) => Ok((e.status_code.as_u16(), e.api_error)),
        Err(e) => Err(e.into()),
        Ok(answer) => Err(format!("no error, but {answer:?}").into()),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failed> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(engine)) = (arguments.next(), arguments.next()) else {
        return Err("expected the server's address and the engine's name".into());
    };
    let config = OpenAIConfig::new()
        .with_api_base(format!("{url}/v1"))
        .with_api_key("any");
    let asker = Asker {
        client: Client::with_config(config),
        engine,
    };
    let answer = chat::answers(&asker).await?;
    chat::streams(&asker, &answer).await?;
    chat::takes_every_parameter(&asker).await?;
    chat::holds_to_a_schema(&asker).await?;
    chat::calls_tools(&asker).await?;
    chat::fails_with_typed_errors(&asker).await?;
    rest::lists_models(&asker).await?;
    rest::completes(&asker).await?;
    rest::finds_stored(&asker).await?;
    println!(
        "async-openai, {}: chats, streams, parses, calls tools, completes, finds stored, gets typed errors",
        asker.engine
    );
    Ok(())
}
