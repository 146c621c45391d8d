//! Models, raw prompts, and completions that were stored.

use async_openai::error::OpenAIError;
use async_openai::traits::RequestOptionsBuilder;
use async_openai::types::chat::{Prompt, Role};
use async_openai::types::completions::CreateCompletionRequestArgs;
use futures::StreamExt;
use serde_json::json;

use crate::{Asker, Failed, QUESTION, question};

pub(crate) async fn lists_models(asker: &Asker) -> Result<(), Failed> {
    let models = asker.client.models();
    let list = models.list().await?;
    let ids: Vec<&str> = list.data.iter().map(|m| m.id.as_str()).collect();
    assert_eq!(ids, ["pocket", "triage", "triage@base"]);
    for id in ids {
        let model = models.retrieve(id).await?;
        assert_eq!((model.id.as_str(), model.object.as_str()), (id, "model"));
    }
    match models.retrieve("nobody").await {
        Err(OpenAIError::ApiError(e)) if e.status_code == 404 => Ok(()),
        other => Err(format!("no 404, but {other:?}").into()),
    }
}

pub(crate) async fn completes(asker: &Asker) -> Result<(), Failed> {
    let prompt =
        "<|im_start|>user\nWhich month comes after May?<|im_end|>\n<|im_start|>assistant\n";
    let request = || {
        let mut args = CreateCompletionRequestArgs::default();
        args.model("pocket").temperature(0.0);
        args
    };
    let completions = asker.client.completions();
    let prompts = Prompt::StringArray(vec![prompt.to_owned(), prompt.to_owned()]);
    let answer = completions
        .create(request().prompt(prompts).n(2).logprobs(2).build()?)
        .await?;
    assert_eq!(answer.object, "text_completion");
    assert_eq!(answer.choices.len(), 4);
    let first = &answer.choices[0];
    assert!(!first.text.is_empty() && answer.choices.iter().all(|c| c.text == first.text));
    let logprobs = first.logprobs.as_ref().ok_or("no probabilities")?;
    assert_eq!(logprobs.tokens.concat(), first.text);
    assert_eq!(logprobs.tokens.len(), logprobs.text_offset.len());

    let prompt = Prompt::String(prompt.to_owned());
    let mut stream = completions
        .create_stream(request().prompt(prompt).build()?)
        .await?;
    let mut text = String::new();
    while let Some(chunk) = stream.next().await {
        text.extend(chunk?.choices.into_iter().map(|c| c.text));
    }
    assert_eq!(text, first.text);
    Ok(())
}

pub(crate) async fn finds_stored(asker: &Asker) -> Result<(), Failed> {
    let chat = asker.client.chat();
    let request = question()
        .metadata(json!({"mark": "async-openai"}))
        .store(true)
        .build()?;
    let answer = chat.create(request).await?;
    let stored = chat.retrieve(&answer.id).await?;
    assert_eq!(
        stored.choices[0].message.content,
        answer.choices[0].message.content
    );
    assert_eq!(
        stored.metadata,
        Some(json!({"mark": "async-openai"}).into())
    );
    let messages = chat.messages(&answer.id).await?;
    let first = &messages.data[0];
    assert_eq!(
        (first.role, first.content.as_deref()),
        (Role::User, Some(QUESTION))
    );
    let newest = asker
        .client
        .chat()
        .query(&[("order", "desc"), ("limit", "1")])?;
    let list = newest.list().await?;
    assert_eq!(list.first_id.as_deref(), Some(answer.id.as_str()));
    assert!(list.has_more && list.data.len() == 1);
    Ok(())
}
