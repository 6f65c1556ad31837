// openai-node: requests, its helpers for streams, tools and zod, errors, aborts.

import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { HELLO, MODEL, URL_V1, expect, isWeather, refused, report } from "./checks.mjs";

const client = new OpenAI({ baseURL: URL_V1, apiKey: "none", maxRetries: 0 });
const chat = client.chat.completions;
const ask = { model: MODEL, temperature: 0, max_tokens: 80 };
const Visit = z.object({ city: z.enum(["Oslo", "Rome", "Lima"]), days: z.number().int().min(1).max(7) });
const question = [{ role: "user", content: "How is the weather in Oslo for 2 days?" }];
const weather = { name: "get_weather", description: "The weather.", parameters: z.toJSONSchema(Visit) };
const tools = [{ type: "function", function: weather }];

async function wholeAndStreamed() {
  const whole = await chat.create({ ...ask, messages: HELLO });
  let text = "";
  const stream = await chat.create({ ...ask, messages: HELLO, stream: true });
  for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
  expect(text === whole.choices[0].message.content, `${text} is streamed`);
}

async function helperStreams() {
  const stream = chat.stream({ ...ask, messages: question, tools, tool_choice: "required" });
  let deltas = 0;
  stream.on("tool_calls.function.arguments.delta", () => (deltas += 1));
  const final = await stream.finalChatCompletion();
  expect(deltas > 0, "no deltas of arguments");
  for (const call of final.choices[0].message.tool_calls) isWeather(call.function.arguments);
  expect((await stream.totalUsage()) !== undefined, "no usage");
}

async function runTools() {
  let asked = 0;
  const run = (given) => {
    asked += 1;
    isWeather(given);
    return "12 degrees";
  };
  const tool = { type: "function", function: { ...weather, parse: JSON.parse, function: run } };
  const named = { type: "function", function: { name: "get_weather" } };
  const runner = chat.runTools({ ...ask, messages: question, tools: [tool], tool_choice: named });
  await runner.done();
  expect(asked === 1, `the function ran ${asked} times`);
  // The helper takes an answer that is cut for a fault, and a small model may write without end: what is no
  // call has a schema.
  const response_format = zodResponseFormat(Visit, "visit");
  const bounded = { ...ask, messages: question, tools: [tool], response_format };
  const free = chat.runTools({ ...bounded, stream: true }, { maxChatCompletions: 3 });
  await free.done();
  const called = free.messages.filter((message) => message.role === "tool").length;
  const content = free.messages.at(-1).content;
  expect(asked === 1 + called && (called > 0 || content), `${asked} runs of ${called} calls`);
  if (content && free.messages.at(-1).role === "assistant") isWeather(content);
}

async function zodParses() {
  const response_format = zodResponseFormat(Visit, "visit");
  const answer = await chat.parse({ ...ask, messages: question, response_format });
  isWeather(answer.choices[0].message.parsed);
}

async function responses() {
  const request = { model: MODEL, temperature: 0, max_output_tokens: 120 };
  const whole = await client.responses.create({ ...request, input: "Say hello." });
  expect(whole.output_text, whole);
  const input = [...question, ...whole.output, { role: "user", content: "Go on." }];
  expect((await client.responses.create({ ...request, input })).output_text, "its output as input");
  const stream = client.responses.stream({ ...request, input: "Say hello." });
  const kinds = [];
  for await (const event of stream) kinds.push(event.type);
  expect(kinds.at(-1) === "response.completed" || kinds.at(-1) === "response.incomplete", kinds);
  const text = { format: zodTextFormat(Visit, "visit") };
  isWeather((await client.responses.parse({ ...request, input: question, text })).output_parsed);
}

async function embeddings() {
  const { data } = await client.embeddings.create({ model: MODEL, input: ["a", "b"] });
  expect(data.length === 2 && typeof data[0].embedding[0] === "number", "no vectors");
}

async function errors() {
  const missing = await refused(() => chat.create({ model: "gpt-none", messages: HELLO }), "gpt-none");
  expect(missing instanceof OpenAI.NotFoundError, missing.constructor.name);
  const bad = await refused(() => chat.create({ ...ask, messages: HELLO, temprature: 1 }), "temprature");
  expect(bad instanceof OpenAI.BadRequestError && bad.param === "temprature", bad.constructor.name);
}

async function abortsAndTimeouts() {
  const endless = { model: MODEL, messages: HELLO, max_tokens: 1500, ignore_eos: true };
  const late = await refused(() => chat.create(endless, { timeout: 300 }));
  expect(late instanceof OpenAI.APIConnectionTimeoutError, late.constructor.name);
  const stream = await chat.create({ ...endless, stream: true });
  for await (const _ of stream) break;
  const abort = new AbortController();
  const pending = chat.create(endless, { signal: abort.signal });
  setTimeout(() => abort.abort(), 200);
  const aborted = await refused(() => pending);
  expect(aborted instanceof OpenAI.APIUserAbortError, aborted.constructor.name);
  expect((await chat.create({ ...ask, messages: HELLO })).choices.length === 1, "no answer afterwards");
}

async function models() {
  const found = [];
  for await (const model of client.models.list()) found.push(model.id);
  expect(found.includes(MODEL), found);
}

await report([
  wholeAndStreamed,
  helperStreams,
  runTools,
  zodParses,
  responses,
  embeddings,
  errors,
  abortsAndTimeouts,
  models,
]);
