// The openai npm package, unmodified, against a running Retune: node openai_client.mjs URL, with the package in node_modules.
import assert from "node:assert/strict";

import OpenAI from "openai";

const url = process.argv[2];
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: "I was charged twice for order 4711, please send one payment back." }];
const track = {
  type: "function",
  function: {
    name: "track",
    parameters: { type: "object", properties: { order: { type: "string", pattern: "^[0-9]{4}$" } }, required: ["order"], additionalProperties: false },
  },
};

const answer = await client.chat.completions.create({ model: "triage", messages, temperature: 0 });
assert.equal(answer.model, "triage@base");
const said = answer.choices[0].message.content;
assert.ok(said);

let streamed = "";
let usage = null;
const stream = await client.chat.completions.create({
  model: "triage", messages, temperature: 0, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, said);
assert.deepEqual(usage, answer.usage);

const models = [];
for await (const model of client.models.list()) models.push(model.id);
assert.deepEqual(models, ["pocket", "triage", "triage@base"]);

const called = await client.chat.completions.create({ model: "triage", messages, tools: [track], tool_choice: "required" });
assert.equal(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).order.length, 4);

const schema = { type: "object", properties: { urgent: { type: "boolean" } }, required: ["urgent"], additionalProperties: false };
const shaped = await client.chat.completions.create({
  model: "triage", messages, response_format: { type: "json_schema", json_schema: { name: "s", strict: true, schema } },
});
assert.equal(typeof JSON.parse(shaped.choices[0].message.content).urgent, "boolean");

const raw = await client.completions.create({ model: "pocket", prompt: "Hello", max_tokens: 4 });
assert.equal(raw.object, "text_completion");

await assert.rejects(client.chat.completions.create({ model: "nobody", messages }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ model: "triage", messages, temperature: 3 }), (error) => {
  assert.ok(error instanceof OpenAI.BadRequestError);
  assert.equal(error.param, "temperature");
  return true;
});
console.log("openai for Node: chats, streams, parses, calls tools, completes, gets typed errors");
