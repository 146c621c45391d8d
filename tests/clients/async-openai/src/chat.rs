//! `/v1/chat/completions`.

use std::collections::HashMap;

use async_openai::types::chat::{
    ChatCompletionMessageToolCall, ChatCompletionMessageToolCalls, ChatCompletionNamedToolChoice,
    ChatCompletionRequestAssistantMessageArgs, ChatCompletionRequestDeveloperMessage,
    ChatCompletionRequestMessageContentPartText, ChatCompletionRequestToolMessage,
    ChatCompletionRequestUserMessage, ChatCompletionRequestUserMessageContentPart,
    ChatCompletionStreamOptions, ChatCompletionTool, ChatCompletionToolChoiceOption,
    ChatCompletionTools, CreateChatCompletionResponse, FinishReason, FunctionObject,
    ResponseFormat, ResponseFormatJsonSchema, Role, StopConfiguration, ToolChoiceOptions,
};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::{Asker, Failed, QUESTION, question, refused};

/// What a choice says.
fn said(answer: &CreateChatCompletionResponse, choice: usize) -> &str {
    answer.choices[choice]
        .message
        .content
        .as_deref()
        .unwrap_or_default()
}

pub(crate) async fn answers(asker: &Asker) -> Result<CreateChatCompletionResponse, Failed> {
    let answer = asker.client.chat().create(question().build()?).await?;
    assert_eq!(answer.model, "triage@base");
    assert_eq!(answer.object, "chat.completion");
    let choice = &answer.choices[0];
    assert_eq!(choice.message.role, Role::Assistant);
    assert!(!said(&answer, 0).is_empty());
    assert!(choice.finish_reason.is_some());
    let usage = answer.usage.as_ref().ok_or("no usage")?;
    assert_eq!(
        usage.total_tokens,
        usage.prompt_tokens + usage.completion_tokens
    );
    assert!(usage.prompt_tokens > 0 && usage.completion_tokens > 0);
    Ok(answer)
}

pub(crate) async fn streams(
    asker: &Asker,
    answer: &CreateChatCompletionResponse,
) -> Result<(), Failed> {
    let options = ChatCompletionStreamOptions {
        include_usage: Some(true),
        include_obfuscation: None,
    };
    let request = question().stream_options(options).build()?;
    let mut stream = asker.client.chat().create_stream(request).await?;
    let (mut text, mut roles, mut finish, mut usage) = (String::new(), 0, None, None);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        assert_eq!(chunk.object, "chat.completion.chunk");
        assert!(usage.is_none(), "something came after the usage");
        usage = chunk.usage;
        for choice in chunk.choices {
            roles += usize::from(choice.delta.role.is_some());
            text.push_str(choice.delta.content.as_deref().unwrap_or_default());
            finish = choice.finish_reason.or(finish);
        }
    }
    assert_eq!(text, said(answer, 0));
    assert_eq!(roles, 1);
    assert_eq!(finish, answer.choices[0].finish_reason);
    assert_eq!(usage, answer.usage);
    Ok(())
}

#[allow(
    deprecated,
    reason = "seed, user and max_tokens are what most apps still send"
)]
pub(crate) async fn takes_every_parameter(asker: &Asker) -> Result<(), Failed> {
    let chat = asker.client.chat();
    let drawn = || {
        question()
            .temperature(1.5)
            .top_p(0.9)
            .seed(5)
            .n(2)
            .max_tokens(24u32)
            .build()
    };
    let (one, two) = (chat.create(drawn()?).await?, chat.create(drawn()?).await?);
    assert_eq!(
        (said(&one, 0), said(&one, 1)),
        (said(&two, 0), said(&two, 1))
    );
    assert_ne!(said(&one, 0), said(&one, 1));

    let told = question()
        .logprobs(true)
        .top_logprobs(2)
        .max_completion_tokens(5u32)
        .build()?;
    let told = chat.create(told).await?;
    assert_eq!(told.choices[0].finish_reason, Some(FinishReason::Length));
    let tokens = told.choices[0]
        .logprobs
        .as_ref()
        .and_then(|l| l.content.as_ref())
        .ok_or("no probabilities")?;
    assert_eq!(tokens.len(), 5);
    let text: String = tokens.iter().map(|t| t.token.as_str()).collect();
    assert_eq!(text, said(&told, 0));
    for token in tokens {
        assert_eq!(token.top_logprobs.len(), 2);
        assert_eq!(token.top_logprobs[0].token, token.token);
        assert!(token.bytes.is_some());
    }

    let part = ChatCompletionRequestMessageContentPartText::from(QUESTION);
    let parts = ChatCompletionRequestUserMessage {
        content: vec![ChatCompletionRequestUserMessageContentPart::Text(part)].into(),
        name: None,
    };
    let rest = question()
        .messages(vec![
            ChatCompletionRequestDeveloperMessage::from("Be short.").into(),
            parts.into(),
        ])
        .stop(StopConfiguration::StringArray(vec![",".to_owned()]))
        .presence_penalty(0.5)
        .frequency_penalty(0.5)
        .logit_bias(HashMap::from([("70".to_owned(), -100i8)]))
        .user("u1")
        .safety_identifier("s1")
        .metadata(json!({"shop": "a"}))
        .store(true)
        .response_format(ResponseFormat::Text)
        .build()?;
    let answer = chat.create(rest).await?;
    assert!(!said(&answer, 0).contains(','));
    Ok(())
}

pub(crate) async fn holds_to_a_schema(asker: &Asker) -> Result<(), Failed> {
    let schema = json!({
        "type": "object",
        "properties": {"team": {"enum": ["billing", "shipping"]}, "urgent": {"type": "boolean"}},
        "required": ["team", "urgent"],
        "additionalProperties": false,
    });
    let format = |schema: Value| ResponseFormat::JsonSchema {
        json_schema: ResponseFormatJsonSchema {
            description: None,
            name: "complaint".to_owned(),
            schema,
            strict: Some(true),
        },
    };
    let chat = asker.client.chat();
    let answer = chat
        .create(question().response_format(format(schema)).build()?)
        .await?;
    let object: Value = serde_json::from_str(said(&answer, 0))?;
    assert!(
        object["team"].is_string() && object["urgent"].is_boolean(),
        "{object}"
    );
    let request = question()
        .response_format(ResponseFormat::JsonObject)
        .max_completion_tokens(200u32)
        .build()?;
    assert!(said(&chat.create(request).await?, 0).starts_with('{'));
    let impossible = question()
        .response_format(format(json!({"type": "nothing"})))
        .build()?;
    let (status, error) = refused(asker, impossible).await?;
    assert_eq!(
        (status, error.param.as_deref()),
        (400, Some("response_format"))
    );
    Ok(())
}

fn track() -> ChatCompletionTools {
    ChatCompletionTools::Function(ChatCompletionTool {
        function: FunctionObject {
            name: "track".to_owned(),
            description: Some("Where an order is.".to_owned()),
            parameters: Some(json!({
                "type": "object",
                "properties": {"order": {"type": "string", "pattern": "^[0-9]{4}$"}},
                "required": ["order"],
                "additionalProperties": false,
            })),
            strict: Some(true),
        },
    })
}

fn call(answer: &CreateChatCompletionResponse) -> Result<&ChatCompletionMessageToolCall, Failed> {
    let calls = answer.choices[0]
        .message
        .tool_calls
        .as_deref()
        .unwrap_or_default();
    match calls {
        [ChatCompletionMessageToolCalls::Function(call)] => Ok(call),
        _ => Err(format!("no call of one function in {answer:?}").into()),
    }
}

/// Whether arguments are those of the function.
fn fits(arguments: &str) -> bool {
    let order = serde_json::from_str(arguments).ok();
    order.is_some_and(|a: Value| a["order"].as_str().is_some_and(|order| order.len() == 4))
}

pub(crate) async fn calls_tools(asker: &Asker) -> Result<(), Failed> {
    let chat = asker.client.chat();
    let named =
        ChatCompletionToolChoiceOption::Function(ChatCompletionNamedToolChoice::from("track"));
    let mode = ChatCompletionToolChoiceOption::Mode;
    for choice in [named.clone(), mode(ToolChoiceOptions::Required)] {
        let request = question()
            .tools(vec![track()])
            .tool_choice(choice)
            .build()?;
        let answer = chat.create(request).await?;
        let call = call(&answer)?;
        assert!(
            call.function.name == "track" && fits(&call.function.arguments),
            "{call:?}"
        );
        assert_eq!(answer.choices[0].finish_reason, Some(FinishReason::Stop));

        // What it called is told, and so is what came of it.
        let asked = ChatCompletionRequestAssistantMessageArgs::default()
            .tool_calls(vec![ChatCompletionMessageToolCalls::from(call.clone())])
            .build()?;
        let result = ChatCompletionRequestToolMessage {
            tool_call_id: call.id.clone(),
            content: "lost".into(),
        };
        let user = ChatCompletionRequestUserMessage::from(QUESTION);
        let history = vec![user.into(), asked.into(), result.into()];
        assert!(
            chat.create(question().messages(history).build()?)
                .await?
                .choices[0]
                .message
                .content
                .is_some()
        );
    }

    let request = question().tools(vec![track()]).tool_choice(named).build()?;
    let mut stream = chat.create_stream(request).await?;
    let (mut name, mut arguments) = (String::new(), String::new());
    while let Some(chunk) = stream.next().await {
        for choice in chunk?.choices {
            for call in choice.delta.tool_calls.into_iter().flatten() {
                let function = call.function.ok_or("a call of no function")?;
                name.push_str(function.name.as_deref().unwrap_or_default());
                arguments.push_str(function.arguments.as_deref().unwrap_or_default());
            }
        }
    }
    assert!(name == "track" && fits(&arguments), "{name} {arguments}");

    let free = question()
        .tools(vec![track()])
        .tool_choice(mode(ToolChoiceOptions::Auto))
        .build()?;
    if asker.engine == "vllm" {
        let answer = chat.create(free).await?;
        let call = call(&answer)?;
        assert!(fits(&call.function.arguments), "{call:?}");
        assert_eq!(
            answer.choices[0].finish_reason,
            Some(FinishReason::ToolCalls)
        );
    } else {
        // The pocket model's template tells it nothing of tools.
        let (status, error) = refused(asker, free).await?;
        assert_eq!((status, error.param.as_deref()), (400, Some("tool_choice")));
    }
    let none = question()
        .tools(vec![track()])
        .tool_choice(mode(ToolChoiceOptions::None))
        .build()?;
    assert!(
        chat.create(none).await?.choices[0]
            .message
            .tool_calls
            .is_none()
    );
    Ok(())
}

pub(crate) async fn fails_with_typed_errors(asker: &Asker) -> Result<(), Failed> {
    let (status, error) = refused(asker, question().model("nobody").build()?).await?;
    assert_eq!(
        (status, error.code.as_deref()),
        (404, Some("model_not_found"))
    );
    assert_eq!(error.r#type.as_deref(), Some("invalid_request_error"));
    let long = ChatCompletionRequestUserMessage::from("word ".repeat(3000));
    let wrong = [
        (
            question().temperature(3.0).build()?,
            "temperature",
            Some("decimal_above_max_value"),
        ),
        (question().messages(Vec::new()).build()?, "messages", None),
        (
            question()
                .logit_bias(HashMap::from([("9999999".to_owned(), 1i8)]))
                .build()?,
            "logit_bias",
            None,
        ),
        (
            question().messages(vec![long.into()]).build()?,
            "messages",
            Some("context_length_exceeded"),
        ),
    ];
    for (request, param, code) in wrong {
        let (status, error) = refused(asker, request).await?;
        assert_eq!(
            (status, error.param.as_deref()),
            (400, Some(param)),
            "{error}"
        );
        if code.is_some() {
            assert_eq!(error.code.as_deref(), code, "{error}");
        }
    }
    Ok(())
}
