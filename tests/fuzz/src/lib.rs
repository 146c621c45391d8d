//! What holds for every request, whatever its bytes: it is read within the documented limits, or refused by the name of a parameter.

pub mod mutate;

use std::fmt::Debug;

use retune_wire::{Ask, Chat, Params, Refusal, Request, ResponseFormat, ToolChoice};
use serde_json::{Map, Value};

/// The reasons that a client may meet.
const CODES: [&str; 15] = [
    "array_above_max_length",
    "decimal_above_max_value",
    "decimal_below_min_value",
    "empty_array",
    "empty_string",
    "integer_above_max_value",
    "integer_below_min_value",
    "invalid_metadata",
    "invalid_parameter_combination",
    "invalid_type",
    "invalid_value",
    "missing_required_parameter",
    "unknown_parameter",
    "unsupported_parameter",
    "unsupported_value",
];
/// One that no API has.
const UNKNOWN: &str = "no such parameter";

/// Reads a body and checks what came of it; `accepted` checks what was let in.
pub fn request<T: PartialEq + Debug>(
    body: &[u8],
    read: fn(Params) -> Result<T, Refusal>,
    accepted: fn(&T),
) {
    let asked = |body: &[u8]| Params::parse(body).and_then(read);
    let members = serde_json::from_slice::<Map<String, Value>>(body).ok();
    match (asked(body), members) {
        (Err(refusal), members) => refused(&refusal, members.as_ref()),
        (Ok(_), None) => panic!("something else than an object was read"),
        (Ok(request), Some(mut members)) => {
            accepted(&request);
            let again = serde_json::to_vec(&members).unwrap();
            assert_eq!(
                asked(&again).as_ref(),
                Ok(&request),
                "the same JSON, written anew"
            );
            // Nothing is ignored.
            members.insert(UNKNOWN.to_owned(), Value::Null);
            let more = asked(&serde_json::to_vec(&members).unwrap()).unwrap_err();
            assert_eq!(more.param.as_deref(), Some(UNKNOWN));
            assert_eq!(more.code, Some("unknown_parameter"));
        }
    }
}

/// A refusal says what is wrong, and where: in a parameter that is there, or is missed.
fn refused(refusal: &Refusal, members: Option<&Map<String, Value>>) {
    assert!(!refusal.message.is_empty());
    let Some(members) = members else {
        assert_eq!((refusal.param.as_ref(), refusal.code), (None, None));
        return;
    };
    let param = refusal.param.as_deref().expect("a parameter's name");
    if let Some(code) = refusal.code {
        assert!(CODES.contains(&code), "{code}");
    }
    let names_it = |key: &String| {
        let inside = param.strip_prefix(key.as_str());
        inside.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let missing = refusal.code == Some("missing_required_parameter");
    assert!(missing || members.keys().any(names_it), "{refusal:?}");
    let types = refusal.message.rsplit_once(": expected ");
    let types = types.and_then(|(_, types)| types.strip_suffix(" instead."));
    if let Some((wanted, found)) = types.and_then(|types| types.split_once(", but got ")) {
        assert_ne!(wanted, found, "{refusal:?}");
    }
}

/// A request to a model that is read is what docs/api.md allows, and can be kept.
pub fn generation(request: &Request) {
    let within = |x: f64, from: f64, to: f64| assert!((from..=to).contains(&x), "{x}");
    let sampling = &request.sampling;
    within(sampling.temperature, 0.0, 2.0);
    within(sampling.top_p, 0.0, 1.0);
    within(sampling.presence_penalty.into(), -2.0, 2.0);
    within(sampling.frequency_penalty.into(), -2.0, 2.0);
    for (_, bias) in &sampling.logit_bias {
        within((*bias).into(), -100.0, 100.0);
    }
    assert!((1..=128).contains(&request.n));
    assert!(request.max_tokens.is_none_or(|most| most > 0));
    assert!(request.logprobs.is_none_or(|top| top <= 20));
    assert!(request.stop.len() <= 4 && request.stop.iter().all(|stop| !stop.is_empty()));
    assert!(request.stream || !request.include_usage);
    if let Some(metadata) = &request.metadata {
        let pairs = metadata.as_object().expect("an object");
        assert!(pairs.len() <= 16 && pairs.values().all(Value::is_string));
    }
    match &request.ask {
        Ask::Chat(chat) => conversation(chat),
        Ask::Completion(prompts) => assert!(!prompts.is_empty()),
    }
    // The log keeps messages as JSON text and reads them again.
    let messages = request.messages();
    let kept = serde_json::to_string(&messages).unwrap();
    assert_eq!(serde_json::from_str(&kept).ok(), Some(messages), "{kept}");
    let kept = request.parameters(1);
    assert_eq!(kept["max_tokens"], 1);
}

fn conversation(chat: &Chat) {
    assert!(!chat.messages.is_empty());
    for message in &chat.messages {
        let role = message.role.as_str();
        assert!(["system", "developer", "user", "assistant", "tool"].contains(&role));
        assert_eq!(role == "tool", message.tool_call_id.is_some());
        let Some(calls) = &message.tool_calls else {
            continue;
        };
        assert_eq!(role, "assistant");
        for call in calls.as_array().expect("a list") {
            assert!(call["id"].is_string() && call["function"]["name"].is_string());
        }
    }
    if let Some(tools) = &chat.tools {
        assert_eq!(tools.grammar().is_none(), tools.choice == ToolChoice::Auto);
        if let ToolChoice::Named(name) = &tools.choice {
            assert!(tools.names().contains(&name.as_str()));
            assert_eq!(tools.only(), Some(name.as_str()));
        }
    }
    if let Some(format) = &chat.response_format {
        assert_eq!(format.grammar().is_none(), *format == ResponseFormat::Text);
    }
}
