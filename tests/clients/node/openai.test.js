// OpenAI's client for Node against a live server.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";

const client = new OpenAI({
  baseURL: process.env.PAGEMILL_TEST_URL + "/v1",
  apiKey: "test-key",
  maxRetries: 0,
});
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Name one animal." }];
const schema = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 } },
  required: ["city"],
  additionalProperties: false,
};
const tools = [{ type: "function", function: { name: "weather", parameters: schema } }];

test("chat", async () => {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 8 });
  assert.ok(answer.choices[0].message.content);
  assert.equal(answer.usage.completion_tokens <= 8, true);
});

test("stream", async () => {
  const stream = await client.chat.completions.create({
    model, messages, max_tokens: 8, stream: true, stream_options: { include_usage: true },
  });
  let text = "";
  let usage = null;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.ok(text);
  assert.ok(usage.total_tokens > 8);
});

test("a stream that is left", async () => {
  const stream = await client.chat.completions.create({
    model, messages, max_tokens: 500, stream: true,
  });
  for await (const chunk of stream) {
    if (chunk.choices[0]?.delta?.content) break;
  }
  assert.equal(stream.controller.signal.aborted, true);
});

test("a forced tool call", async () => {
  const answer = await client.chat.completions.create({
    model, messages, tools, tool_choice: "required", max_tokens: 60,
  });
  const call = answer.choices[0].message.tool_calls[0];
  assert.equal(call.function.name, "weather");
  assert.equal(typeof JSON.parse(call.function.arguments).city, "string");
});

test("structured output", async () => {
  const answer = await client.chat.completions.create({
    model, messages, max_tokens: 60,
    response_format: { type: "json_schema", json_schema: { name: "place", schema, strict: true } },
  });
  assert.equal(typeof JSON.parse(answer.choices[0].message.content).city, "string");
});

test("the responses API", async () => {
  const first = await client.responses.create({ model, input: "Say hi.", max_output_tokens: 16 });
  assert.ok(first.output_text);
  const stream = await client.responses.create({
    model, input: "Again.", previous_response_id: first.id, max_output_tokens: 16, stream: true,
  });
  const types = new Set();
  for await (const event of stream) types.add(event.type);
  assert.ok(types.has("response.output_text.delta"));
  assert.ok(types.has("response.completed") || types.has("response.incomplete"));
});

test("embeddings", async () => {
  const baseURL = process.env.PAGEMILL_TEST_VECTORS_URL + "/v1";
  const vectors = new OpenAI({ baseURL, apiKey: "test-key", maxRetries: 0 });
  const made = await vectors.embeddings.create({ model: "all-MiniLM-L6-v2", input: ["a", "b"] });
  assert.deepEqual(made.data.map((row) => row.embedding.length), [384, 384]);
});

test("errors are the client's own", async () => {
  await assert.rejects(
    client.chat.completions.create({ model: "none", messages }), OpenAI.NotFoundError);
  const stranger = new OpenAI({ baseURL: client.baseURL, apiKey: "wrong", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), OpenAI.AuthenticationError);
});
