// Embeds TEXTS with each client as its documentation shows, and prints {client: vectors} as JSON.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embed, embedMany } from "ai";
import OpenAI from "openai";

const { BASE_URL: baseURL, API_KEY: apiKey, MODEL: model } = process.env;
const texts = JSON.parse(process.env.TEXTS);

const openai = new OpenAI({ baseURL, apiKey });
const vectors = async (options) =>
  (await openai.embeddings.create({ model, input: texts, ...options })).data.map((item) => Array.from(item.embedding));
const compatible = createOpenAICompatible({ name: "udever", baseURL, apiKey });
const vercel = createOpenAI({ baseURL, apiKey });

const result = {
  "openai, its default (base64)": await vectors({}),
  "openai, float": await vectors({ encoding_format: "float" }),
  "AI SDK, openai-compatible": (await embedMany({ model: compatible.embeddingModel(model), values: texts })).embeddings,
  "AI SDK, openai": (await embedMany({ model: vercel.embeddingModel(model), values: texts })).embeddings,
  "AI SDK, one at a time": await Promise.all(
    texts.map(async (value) => (await embed({ model: compatible.embeddingModel(model), value })).embedding),
  ),
};

let refusal = null;
try {
  await new OpenAI({ baseURL, apiKey: "udk-wrong", maxRetries: 0 }).embeddings.create({ model, input: texts });
} catch (error) {
  refusal = { name: error.constructor.name, status: error.status, code: error.code };
}
process.stdout.write(JSON.stringify({ result, refusal }));
