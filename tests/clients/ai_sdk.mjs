// Vercel's AI SDK over its provider for OpenAI-compatible servers.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, embedMany, generateText, isStepCount, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { MODEL, URL_V1, expect, isWeather, refused, report } from "./checks.mjs";

const options = { name: "realign", baseURL: URL_V1, apiKey: "none", includeUsage: true };
const provider = createOpenAICompatible({ ...options, supportsStructuredOutputs: true });
const ask = { model: provider(MODEL), temperature: 0, maxOutputTokens: 80, maxRetries: 0 };
const schema = z.object({ city: z.enum(["Oslo", "Rome", "Lima"]), days: z.number().int().min(1).max(7) });
const prompt = "How is the weather in Oslo for 2 days?";
const steps = isStepCount ?? stepCountIs;

async function generates() {
  const { text, usage, finishReason } = await generateText({ ...ask, prompt: "Say hello." });
  expect(text && usage.totalTokens > 0, { text, usage });
  expect(["stop", "length"].includes(finishReason), finishReason);
}

async function streams() {
  const whole = await generateText({ ...ask, prompt: "Say hello." });
  const result = streamText({ ...ask, prompt: "Say hello." });
  let text = "";
  for await (const part of result.textStream) text += part;
  expect(text === whole.text, `${text} != ${whole.text}`);
  expect((await result.usage).totalTokens === whole.usage.totalTokens, await result.usage);
}

function weather(ran) {
  const execute = async (given) => {
    isWeather(given);
    ran.push(given);
    return { degrees: 12 };
  };
  return { get_weather: tool({ description: "The weather.", inputSchema: schema, execute }) };
}

async function usesTools() {
  const ran = [];
  const both = { ...ask, prompt, tools: weather(ran), stopWhen: steps(2) };
  const named = { type: "tool", toolName: "get_weather" };
  for (const toolChoice of ["required", named]) {
    const before = ran.length;
    const { steps: done } = await generateText({ ...both, toolChoice });
    expect(done.length === 2 && ran.length > before, `${done.length} steps, ${ran.length} calls`);
  }
  await generateText({ ...both, toolChoice: "auto" });
}

async function streamsTools() {
  const ran = [];
  const result = streamText({ ...ask, prompt, tools: weather(ran), toolChoice: "required", stopWhen: steps(2) });
  const kinds = new Set();
  for await (const part of result.fullStream) {
    expect(part.type !== "error", `${part.error?.stack ?? part.error} ${part.error?.responseBody}`);
    kinds.add(part.type);
  }
  expect(ran.length > 0 && kinds.has("tool-call") && kinds.has("tool-result"), [...kinds]);
}

async function objects() {
  const output = Output.object({ schema });
  isWeather((await generateText({ ...ask, prompt, output })).output);
  const list = Output.array({ element: schema });
  const few = "One visit to Oslo.";
  const found = await generateText({ ...ask, maxOutputTokens: 400, prompt: few, output: list }).catch((e) => e);
  // A small model may fill the array up to the limit; anything else is a fault.
  expect(found.output || /No (object|output)/.test(`${found}`), `${found}`);
  const choice = Output.choice({ options: ["sunny", "rainy"] });
  const { output: chosen } = await generateText({ ...ask, prompt, output: choice });
  expect(["sunny", "rainy"].includes(chosen), chosen);
  const stream = streamText({ ...ask, prompt, output });
  let last;
  for await (const partial of stream.partialOutputStream) last = partial;
  isWeather(last);
}

async function embeds() {
  const model = (provider.embeddingModel ?? provider.textEmbeddingModel)(MODEL);
  const { embeddings } = await embedMany({ model, values: ["a", "b"] });
  expect(embeddings.length === 2 && embeddings[0].length > 10, "no vectors");
}

async function completes() {
  const { text } = await generateText({ ...ask, model: provider.completionModel(MODEL), prompt: "The sky is" });
  expect(text, "no text");
}

async function errors() {
  const missing = { ...ask, model: provider("gpt-none"), prompt };
  const error = await refused(() => generateText(missing), "gpt-none");
  expect(error.statusCode === 404, `${error.statusCode}`);
  const providerOptions = { realign: { temprature: 1 } };
  await refused(() => generateText({ ...ask, prompt, providerOptions }), "temprature");
}

async function aborts() {
  const providerOptions = { realign: { ignore_eos: true } };
  const endless = { ...ask, maxOutputTokens: 1500, prompt, providerOptions };
  await refused(() => generateText({ ...endless, abortSignal: AbortSignal.timeout(300) }));
  expect((await generateText({ ...ask, prompt: "Say hello." })).text, "no answer afterwards");
}

await report([generates, streams, usesTools, streamsTools, objects, embeds, completes, errors, aborts]);
