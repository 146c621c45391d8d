// The openai npm package, unmodified, against a running Retune: node openai_client.mjs URL ENGINE, with the package in node_modules.
import assert from "node:assert/strict";

import OpenAI from "openai";

const [url, engine] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
const text = "I was charged twice for order 4711, please send one payment back.";
const messages = [{ role: "user", content: text }];
const prompt = "<|im_start|>user\nWhich month comes after May?<|im_end|>\n<|im_start|>assistant\n";
const parameters = {
  type: "object",
  properties: { order: { type: "string", pattern: "^[0-9]{4}$" } },
  required: ["order"],
  additionalProperties: false,
};
const track = { type: "function", function: { name: "track", parameters } };
const create = (changes) => client.chat.completions.create({ model: "triage", messages, temperature: 0, ...changes });
const contents = (answer) => answer.choices.map((choice) => choice.message.content);
const refused = (promise, param) =>
  assert.rejects(promise, (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError, String(error));
    assert.equal(error.param, param);
    assert.equal(error.type, "invalid_request_error");
    return true;
  });

// A chat, whole and streamed.
const answer = await create({});
assert.equal(answer.model, "triage@base");
const said = answer.choices[0].message.content;
assert.ok(said);
let streamed = "";
let usage = null;
for await (const chunk of await create({ stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, said);
assert.deepEqual(usage, answer.usage);
assert.equal(await client.chat.completions.stream({ model: "triage", messages, temperature: 0 }).finalContent(), said);

// Models.
const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.deepEqual(models, ["pocket", "triage", "triage@base"]);
assert.equal((await client.models.retrieve("triage@base")).object, "model");

// Every parameter.
const drawn = { temperature: 1.5, top_p: 0.9, seed: 5, n: 2, max_tokens: 24 };
const [one, two] = [contents(await create(drawn)), contents(await create(drawn))];
assert.deepEqual(one, two);
assert.notEqual(one[0], one[1]);
const told = await create({ logprobs: true, top_logprobs: 2, max_completion_tokens: 5 });
assert.equal(told.choices[0].finish_reason, "length");
const tokens = told.choices[0].logprobs.content;
assert.equal(tokens.map((token) => token.token).join(""), contents(told)[0]);
assert.ok(tokens.every((token) => token.top_logprobs.length === 2));
const rest = await create({
  messages: [{ role: "developer", content: "Be short." }, { role: "user", content: [{ type: "text", text }] }],
  stop: [","],
  presence_penalty: 0.5,
  frequency_penalty: 0.5,
  logit_bias: { 70: -100 },
  user: "u1",
  safety_identifier: "s1",
  metadata: { shop: "a" },
  store: true,
  response_format: { type: "text" },
});
assert.ok(!contents(rest)[0].includes(","));

// Formats.
const schema = { type: "object", properties: { urgent: { type: "boolean" } }, required: ["urgent"], additionalProperties: false };
const format = (schema) => ({ type: "json_schema", json_schema: { name: "s", strict: true, schema } });
const shaped = await client.chat.completions.parse({ model: "triage", messages, response_format: format(schema) });
assert.equal(typeof JSON.parse(contents(shaped)[0]).urgent, "boolean");
const object = await create({ response_format: { type: "json_object" }, max_tokens: 200 });
assert.equal(typeof JSON.parse(contents(object)[0]), "object");
await refused(create({ response_format: format({ type: "nothing" }) }), "response_format");

// Tools.
const called = (message) => JSON.parse(message.tool_calls[0].function.arguments).order.length;
for (const choice of ["required", { type: "function", function: { name: "track" } }]) {
  const asked = { tools: [track], tool_choice: choice };
  const { message } = (await create(asked)).choices[0];
  assert.equal(called(message), 4);
  const result = { role: "tool", tool_call_id: message.tool_calls[0].id, content: "lost" };
  assert.equal(typeof contents(await create({ messages: [...messages, message, result] }))[0], "string");
  const stream = client.chat.completions.stream({ model: "triage", messages, ...asked });
  assert.equal(called((await stream.finalChatCompletion()).choices[0].message), 4);
}
if (engine === "vllm") {
  const free = (await create({ tools: [track] })).choices[0];
  assert.equal(free.finish_reason, "tool_calls");
  assert.equal(called(free.message), 4);
} else {
  // The pocket model's template tells it nothing of tools.
  await refused(create({ tools: [track] }), "tool_choice");
}

// Raw prompts.
const raw = await client.completions.create({ model: "pocket", prompt, temperature: 0, logprobs: 1 });
assert.equal(raw.object, "text_completion");
assert.equal(raw.choices[0].logprobs.tokens.join(""), raw.choices[0].text);
let continued = "";
for await (const chunk of await client.completions.create({ model: "pocket", prompt, temperature: 0, stream: true })) {
  continued += chunk.choices[0].text;
}
assert.equal(continued, raw.choices[0].text);

// Stored completions.
const kept = await create({ metadata: { mark: "node" }, store: true });
const found = [];
for await (const stored of client.chat.completions.list({ metadata: { mark: "node" } })) found.push(stored.id);
assert.deepEqual(found, [kept.id]);
assert.deepEqual(contents(await client.chat.completions.retrieve(kept.id)), contents(kept));
for await (const message of client.chat.completions.messages.list(kept.id)) assert.equal(message.content, text);

// Errors.
await assert.rejects(create({ model: "nobody" }), OpenAI.NotFoundError);
await refused(create({ temperature: 3 }), "temperature");
await refused(create({ messages: [] }), "messages");
await refused(create({ logit_bias: { 9999999: 1 } }), "logit_bias");
await refused(create({ messages: [{ role: "user", content: "word ".repeat(3000) }], stream: true }), "messages");
console.log(`openai for Node, ${engine}: chats, streams, draws, parses, calls tools, completes, finds stored, gets typed errors`);
