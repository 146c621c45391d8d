//! Events as servers send them, right and wrong.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use super::*;

/// The text, how it ended, and the tokens of answer and prompt.
fn read(events: &[Value]) -> Result<(String, Finish, usize, Option<usize>), String> {
    let mut reply = Reply::new(None);
    let mut answer = String::new();
    let mut add = |event: Option<Event>| {
        if let Some(Event::Text { text, .. }) = event {
            answer.push_str(&text);
        }
    };
    for event in events {
        let data = match event {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        add(reply.take(&data).map_err(|f| f.told())?.event);
    }
    let end = reply.end().map_err(|f| f.told())?;
    add(end.calls);
    Ok((answer, end.finish, end.tokens, end.prompt_tokens))
}

fn delta(delta: Value) -> Value {
    json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn finish(reason: &str) -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
}

#[test]
fn a_stream_as_openai_has_it() {
    let events = [
        delta(json!({"role": "assistant", "content": ""})),
        delta(json!({"content": "Hel"})),
        delta(json!({"content": "lo"})),
        finish("length"),
        json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}}),
        json!("[DONE]"),
    ];
    let expected = ("Hello".to_owned(), Finish::Length, 3, Some(5));
    assert_eq!(read(&events), Ok(expected));
}

#[test]
fn a_role_alone_is_no_beginning() {
    let mut reply = Reply::new(None);
    let begun = |reply: &mut Reply, event: Value| reply.take(&event.to_string()).unwrap().begun;
    assert!(!begun(
        &mut reply,
        delta(json!({"role": "assistant", "content": ""}))
    ));
    assert!(!begun(&mut reply, json!({"choices": [], "usage": null})));
    assert!(begun(&mut reply, delta(json!({"reasoning_content": "hm"}))));
    assert!(!reply.is_finished());
    assert!(begun(&mut reply, finish("stop")));
    assert!(reply.is_finished() && !reply.is_closed());
}

#[test]
fn without_usage_the_pieces_count_and_the_prompt_is_unknown() {
    let piece = delta(json!({"role": "assistant", "content": "a"}));
    let expected = ("aa".to_owned(), Finish::Stop, 2, None);
    assert_eq!(
        read(&[piece.clone(), piece.clone(), finish("eos")]),
        Ok(expected.clone())
    );
    let zero = json!({"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}});
    assert_eq!(
        read(&[piece.clone(), piece, finish("stop"), zero]),
        Ok(expected)
    );
}

#[test]
fn an_answer_in_one_piece_counts() {
    let whole = json!({
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 1},
    });
    let expected = ("Hello".to_owned(), Finish::Stop, 1, Some(2));
    assert_eq!(read(&[whole]), Ok(expected));
    let completion = json!({"choices": [{"text": "Once", "finish_reason": "stop"}]});
    let expected = ("Once".to_owned(), Finish::Stop, 1, None);
    assert_eq!(read(&[completion]), Ok(expected));
}

#[test]
fn what_is_no_end_is_a_failure() {
    let text = delta(json!({"content": "a"}));
    for (events, told) in [
        (vec![text.clone()], "before the answer's end"),
        (vec![json!("[DONE]")], "before the answer's end"),
        (vec![text.clone(), finish("abort")], "gave up"),
        (vec![finish("canceled")], "gave up"),
        (vec![finish("whatever")], "without a text"),
        (vec![json!("{\"choices\": [")], "not JSON"),
        (
            vec![
                text.clone(),
                json!({"error": {"message": "a secret", "type": "Oops", "code": 500}}),
            ],
            "answered 500 (Oops) inside a stream",
        ),
    ] {
        let failure = read(&events).unwrap_err();
        assert!(
            failure.contains(told) && !failure.contains("secret"),
            "{failure}"
        );
    }
    // Known enough: there is a text, and an end.
    assert!(read(&[text.clone(), finish("whatever")]).is_ok());
    assert!(read(&[text, json!("[DONE]")]).is_ok());
}

#[test]
fn calls_of_tools_become_text() {
    let call = |index: u64, function: Value| {
        delta(json!({"tool_calls": [{"index": index, "function": function}]}))
    };
    let events = [
        delta(json!({"content": "I look."})),
        call(0, json!({"name": "find", "arguments": ""})),
        call(0, json!({"arguments": "{\"order\":"})),
        call(0, json!({"arguments": " 7}"})),
        call(
            1,
            json!({"name": "now", "arguments": "{\"mark\": \"</tool_call>\"}"}),
        ),
        finish("tool_calls"),
    ];
    let (text, finish, ..) = read(&events).unwrap();
    let expected = "I look.<tool_call>{\"name\":\"find\",\"arguments\":{\"order\":7}}</tool_call>\n<tool_call>{\"name\":\"now\",\"arguments\":{\"mark\":\"<\\/tool_call>\"}}</tool_call>";
    assert_eq!((text.as_str(), finish), (expected, Finish::Stop));
}

#[test]
fn probabilities_of_chats_and_of_completions() {
    let chat = json!({"choices": [{"delta": {"content": "é"}, "logprobs": {"content": [
        {"token": "é", "bytes": [195, 169], "logprob": -0.5, "top_logprobs": [
            {"token": "e", "bytes": null, "logprob": -2.0}, {"token": "é", "bytes": [195, 169], "logprob": -0.5}]}]}}]});
    let completion = json!({"choices": [{"text": "é", "logprobs": {
        "tokens": ["é"], "token_logprobs": [-0.5], "top_logprobs": [{"e": -2.0, "é": -0.5}], "text_offset": [0]}}]});
    let expected = vec![TokenLogprob {
        bytes: "é".as_bytes().to_vec(),
        logprob: -0.5,
        top: vec![("é".as_bytes().to_vec(), -0.5), (b"e".to_vec(), -2.0)],
    }];
    for event in [chat, completion] {
        match Reply::new(None).take(&event.to_string()).unwrap().event {
            Some(Event::Text { logprobs, .. }) => assert_eq!(logprobs, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_end_of_the_turn_is_none_of_the_answers_tokens() {
    let told = |text: &str, tokens: &[&str], reason: Value| {
        let tokens: Vec<Value> = tokens
            .iter()
            .map(|token| json!({"token": token, "bytes": token.as_bytes(), "logprob": -0.5, "top_logprobs": []}))
            .collect();
        json!({"choices": [{"delta": {"content": text}, "logprobs": {"content": tokens}, "finish_reason": reason}]})
    };
    for (event, kept) in [
        (told("", &["<|im_end|>"], json!("stop")), ""),
        (told("lo", &["l", "o", "<|im_end|>"], json!("stop")), "lo"),
        (told("lo", &["lo"], json!("stop")), "lo"),
        // Text that was held back comes with the last token, which is its own.
        (told("hello", &["lo"], json!("stop")), "lo"),
        (told("", &["lo"], json!("length")), "lo"),
        (told("", &["lo"], Value::Null), "lo"),
    ] {
        let taken = Reply::new(None).take(&event.to_string()).unwrap();
        let tokens = match taken.event {
            Some(Event::Text { logprobs, .. }) => logprobs,
            _ => Vec::new(),
        };
        let bytes: Vec<u8> = tokens.into_iter().flat_map(|t| t.bytes).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), kept, "{event}");
    }
}
