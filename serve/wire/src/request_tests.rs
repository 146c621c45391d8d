//! Requests as apps send them: what is read, and what is refused by name.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use retune_task::{ChatMessage, conversation};
use serde_json::{Value, json};

use crate::{Ask, Params, Refusal, Request};

fn read(body: &Value) -> Result<Request, Refusal> {
    Request::chat(Params::parse(body.to_string().as_bytes())?)
}

fn with(key: &str, value: Value) -> Result<Request, Refusal> {
    let mut body = json!({"model": "triage", "messages": [{"role": "user", "content": "hello"}]});
    body[key] = value;
    read(&body)
}

#[test]
fn content_as_parts_and_an_answer_sent_back() {
    let request = with(
        "messages",
        json!([
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "annotations": [], "tool_calls": null},
        ]),
    );
    let messages = request.unwrap().messages();
    assert_eq!(messages[0].content, "ab");
    assert_eq!(messages[1].role, "assistant");
}

#[test]
fn what_is_wrong_is_named() {
    for (key, value, param, code) in [
        ("messages", json!([]), "messages", "empty_array"),
        ("messages", json!("hello"), "messages", "invalid_type"),
        ("messages", json!([3]), "messages[0]", "invalid_type"),
        (
            "messages",
            json!([{"role": "user"}]),
            "messages[0].content",
            "missing_required_parameter",
        ),
        (
            "messages",
            json!([{"role": "king", "content": ""}]),
            "messages[0].role",
            "invalid_value",
        ),
        (
            "messages",
            json!([{"role": "tool", "content": ""}]),
            "messages[0].tool_call_id",
            "missing_required_parameter",
        ),
        (
            "messages",
            json!([{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]}]),
            "messages[0].tool_calls[0].function.arguments",
            "missing_required_parameter",
        ),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            "temperature",
            json!(2.5),
            "temperature",
            "decimal_above_max_value",
        ),
        ("temperature", json!("hot"), "temperature", "invalid_type"),
        ("top_p", json!(-0.1), "top_p", "decimal_below_min_value"),
        (
            "max_tokens",
            json!(0),
            "max_tokens",
            "integer_below_min_value",
        ),
        ("max_tokens", json!(1.5), "max_tokens", "invalid_type"),
        (
            "stop",
            json!(["a", "b", "c", "d", "e"]),
            "stop",
            "array_above_max_length",
        ),
        ("stop", json!([""]), "stop", "empty_string"),
        ("metadata", json!({"a": 1}), "metadata.a", "invalid_type"),
        ("stream", json!("yes"), "stream", "invalid_type"),
        ("n", json!(0), "n", "integer_below_min_value"),
        ("seed", json!(u64::MAX), "seed", "integer_above_max_value"),
        ("logprobs", json!(1), "logprobs", "invalid_type"),
        (
            "top_logprobs",
            json!(2),
            "top_logprobs",
            "invalid_parameter_combination",
        ),
        ("logit_bias", json!({"x": 1}), "logit_bias", "invalid_value"),
        (
            "logit_bias",
            json!({"7": 101}),
            "logit_bias.7",
            "decimal_above_max_value",
        ),
        (
            "response_format",
            json!({"type": "json_schema"}),
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            "response_format",
            json!({"type": "yaml"}),
            "response_format.type",
            "invalid_value",
        ),
        (
            "tools",
            json!([{}]),
            "tools[0].type",
            "missing_required_parameter",
        ),
        (
            "tool_choice",
            json!("required"),
            "tool_choice",
            "invalid_parameter_combination",
        ),
        ("colour", json!("red"), "colour", "unknown_parameter"),
    ] {
        match with(key, value.clone()) {
            Err(Refusal {
                param: found,
                code: found_code,
                ..
            }) => {
                assert_eq!(
                    (found.as_deref(), found_code),
                    (Some(param), Some(code)),
                    "{key} = {value}"
                );
            }
            other => panic!("{key} = {value}: {other:?}"),
        }
    }
    let both = json!({"model": "m", "messages": [{"role": "user", "content": ""}], "max_tokens": 1, "max_completion_tokens": 1});
    assert!(read(&both).is_err());
    assert!(with("stream_options", json!({"include_usage": true})).is_err());
}

#[test]
fn values_that_ask_for_nothing_pass() {
    for (key, value) in [
        ("n", json!(1)),
        ("logprobs", json!(false)),
        ("logit_bias", json!({})),
        ("tools", json!([])),
        ("parallel_tool_calls", json!(true)),
        ("temperature", Value::Null),
        ("seed", json!(-7)),
        ("colour", Value::Null),
    ] {
        let outcome = with(key, value.clone());
        assert_eq!(outcome.is_ok(), key != "colour", "{key} = {value}");
    }
}

#[test]
fn the_person_first_then_the_conversation() {
    let hello = conversation(&[ChatMessage::new("user", "hello")]);
    assert_eq!(with("stop", json!("x")).unwrap().sticky_key(), hello);
    assert_eq!(with("user", json!("")).unwrap().sticky_key(), hello);
    assert_eq!(with("user", json!("u1")).unwrap().sticky_key(), "u1");
}

#[test]
fn a_system_message_that_all_requests_share_is_not_what_they_are_told_apart_by() {
    let key = |said: &str| {
        let body = json!({"model": "m", "messages": [{"role": "system", "content": "Sort."}, {"role": "user", "content": said}]});
        read(&body).unwrap().sticky_key().into_owned()
    };
    assert_ne!(key("one"), key("two"));
    assert_eq!(key("one"), key(" one "));
}

#[test]
fn a_raw_prompt_or_several() {
    let read = |prompt: Value| {
        let body = json!({"model": "m", "prompt": prompt, "logprobs": 2});
        Request::completion(Params::parse(body.to_string().as_bytes())?)
    };
    let request = read(json!(["a", "b"])).unwrap();
    assert_eq!(request.ask, Ask::Completion(vec!["a".into(), "b".into()]));
    assert_eq!((request.max_tokens, request.logprobs), (Some(16), Some(2)));
    assert!(request.has_own_form());
    for wrong in [
        json!([]),
        json!([1, 2]),
        json!([[1]]),
        json!(3),
        Value::Null,
    ] {
        assert!(read(wrong.clone()).is_err(), "{wrong}");
    }
}

#[test]
fn calls_come_back_with_their_arguments_parsed() {
    let request = with(
        "messages",
        json!([
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "get", "arguments": "{\"city\": \"Rome\"}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ]),
    );
    let messages = request.unwrap().messages();
    let calls = messages[1].tool_calls.as_ref().unwrap();
    assert_eq!(calls[0]["function"]["arguments"]["city"], "Rome");
    assert_eq!(messages[2].tool_call_id.as_deref(), Some("c1"));
}

#[test]
fn arguments_that_the_log_could_not_be_read_with_stay_text() {
    for (levels, parsed) in [(64, true), (65, false), (125, false), (200, false)] {
        let arguments = "[".repeat(levels) + &"]".repeat(levels);
        let call = json!({"id": "c1", "function": {"name": "get", "arguments": arguments}});
        let request = with(
            "messages",
            json!([{"role": "assistant", "tool_calls": [call]}]),
        );
        let messages = request.unwrap().messages();
        let call = &messages[0].tool_calls.as_ref().unwrap()[0];
        assert_eq!(call["function"]["arguments"].is_array(), parsed, "{levels}");
        let kept = serde_json::to_string(&messages).unwrap();
        let read: Vec<ChatMessage> = serde_json::from_str(&kept).unwrap();
        assert_eq!(read, messages);
    }
}
