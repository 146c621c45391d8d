//! Changes to a request that leave it JSON: bytes changed at random hardly ever do, and the fuzzer would see the parser's errors alone.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Value, json};

/// Members that requests have at some depth.
const NAMES: [&str; 45] = [
    "arguments",
    "audio",
    "best_of",
    "content",
    "description",
    "echo",
    "frequency_penalty",
    "function",
    "function_call",
    "functions",
    "id",
    "include_obfuscation",
    "include_usage",
    "json_schema",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "modalities",
    "model",
    "n",
    "name",
    "parallel_tool_calls",
    "parameters",
    "presence_penalty",
    "prompt",
    "refusal",
    "response_format",
    "role",
    "safety_identifier",
    "schema",
    "seed",
    "stop",
    "store",
    "stream",
    "stream_options",
    "strict",
    "suffix",
    "temperature",
    "tool_call_id",
    "tool_calls",
    "tool_choice",
    "tools",
];
/// Words that mean something in some place.
const WORDS: [&str; 15] = [
    "",
    "assistant",
    "auto",
    "developer",
    "function",
    "image_url",
    "json_object",
    "json_schema",
    "none",
    "required",
    "system",
    "text",
    "tool",
    "type",
    "user",
];
/// Numbers at the edges of what some parameter allows.
const NUMBERS: [&str; 16] = [
    "-0.0",
    "-1",
    "0",
    "0.1",
    "1",
    "1.5",
    "2",
    "4",
    "5",
    "20",
    "100",
    "128",
    "129",
    "4294967296",
    "9223372036854775808",
    "1e308",
];

/// One input of the fuzzer made another; returns its length.
pub fn json(data: &mut [u8], size: usize, most: usize, seed: u32) -> usize {
    let mut random = Random(seed.into());
    let read = serde_json::from_slice::<Value>(&data[..size]).ok();
    let Some(mut value) = read.filter(|_| random.below(8) > 0) else {
        return fuzzer_mutate(data, size, most);
    };
    for _ in 0..=random.below(3) {
        let mut place = random.below(nodes(&value));
        if let Some(node) = find(&mut value, &mut place) {
            change(node, &mut random);
        }
    }
    let text = value.to_string();
    if text.len() > most {
        return fuzzer_mutate(data, size, most);
    }
    data[..text.len()].copy_from_slice(text.as_bytes());
    text.len()
}

/// As random as the fuzzer's seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn one_of(&mut self, list: &[&'static str]) -> &'static str {
        list[self.below(list.len())]
    }
}

/// How many values there are in this one, itself included.
fn nodes(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(nodes).sum(),
        Value::Object(members) => members.values().map(nodes).sum(),
        _ => 0,
    }
}

fn find<'a>(value: &'a mut Value, place: &mut usize) -> Option<&'a mut Value> {
    if *place == 0 {
        return Some(value);
    }
    *place -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|one| find(one, place)),
        Value::Object(members) => members.values_mut().find_map(|one| find(one, place)),
        _ => None,
    }
}

fn change(node: &mut Value, random: &mut Random) {
    match (node, random.below(4)) {
        (Value::Array(list), 1) if !list.is_empty() => {
            list.remove(random.below(list.len()));
        }
        (Value::Array(list), 2) if !list.is_empty() => {
            list.push(list[random.below(list.len())].clone());
        }
        (Value::Array(list), 3) => list.push(anything(random)),
        (Value::Object(members), 1) if !members.is_empty() => {
            let key = members.keys().nth(random.below(members.len())).cloned();
            key.map(|key| members.remove(&key));
        }
        (Value::Object(members), 2 | 3) => {
            members.insert(name(random), anything(random));
        }
        (Value::String(text), 1 | 2) => {
            let mut bytes = text.clone().into_bytes();
            let size = bytes.len();
            bytes.resize(size + 16, 0);
            let size = fuzzer_mutate(&mut bytes, size, size + 16);
            *text = String::from_utf8_lossy(&bytes[..size]).into_owned();
        }
        (node, 3) => *node = json!([node.take()]),
        (node, _) => *node = anything(random),
    }
}

fn name(random: &mut Random) -> String {
    match random.below(16) {
        0 => random.one_of(&NUMBERS).to_owned(),
        1 | 2 => random.one_of(&WORDS).to_owned(),
        _ => random.one_of(&NAMES).to_owned(),
    }
}

fn anything(random: &mut Random) -> Value {
    match random.below(8) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 | 3 => serde_json::from_str(random.one_of(&NUMBERS)).unwrap(),
        4 | 5 => json!(name(random)),
        6 => json!([anything(random)]),
        _ => json!({ name(random): anything(random) }),
    }
}
