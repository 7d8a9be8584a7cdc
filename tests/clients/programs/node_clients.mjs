// Embed texts with one client for Node: node_clients.mjs NAME REQUEST, as python_clients.py does.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { OpenAIEmbeddings } from "@langchain/openai";
import { embed, embedMany } from "ai";
import OpenAI from "openai";

const [name, { url, key, model, text, texts, too_long }] = [process.argv[1], JSON.parse(process.argv[2])];

function decode(vectors) {
  return vectors.map((vector) => Array.from(new Float32Array(new Uint8Array(Buffer.from(vector, "base64")).buffer)));
}

// OpenAI's client, whose default is base64.
function useOpenAI() {
  const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
  const create = async (input, options) =>
    (await client.embeddings.create({ model, input, ...options })).data.map((item) => item.embedding);
  return {
    single: async (text) => (await create(text))[0],
    list: create,
    float: (texts) => create(texts, { encoding_format: "float" }),
    base64: async (texts) => decode(await create(texts, { encoding_format: "base64" })),
    truncated: (texts) => create(texts, { truncate: "end" }),
  };
}

function useLangChain() {
  const create = (options) =>
    new OpenAIEmbeddings({ model, apiKey: key, configuration: { baseURL: url }, maxRetries: 0, ...options });
  return {
    single: (text) => create().embedQuery(text),
    list: (texts) => create().embedDocuments(texts),
    float: (texts) => create({ encodingFormat: "float" }).embedDocuments(texts),
    base64: async (texts) => decode(await create({ encodingFormat: "base64" }).embedDocuments(texts)),
  };
}

// Vercel's AI SDK, which always requests floats.
function useAiSdk(embedding) {
  return {
    single: async (value) => (await embed({ model: embedding, value, maxRetries: 0 })).embedding,
    list: async (values) => (await embedMany({ model: embedding, values, maxRetries: 0 })).embeddings,
  };
}

const clients = {
  openai: useOpenAI,
  langchain: useLangChain,
  "ai-sdk-openai": () => useAiSdk(createOpenAI({ baseURL: url, apiKey: key }).embeddingModel(model)),
  "ai-sdk-openai-compatible": () =>
    useAiSdk(createOpenAICompatible({ name: "vecmill", baseURL: url, apiKey: key }).embeddingModel(model)),
};

const { single, ...others } = clients[name]();
const answer = { single: await single(text) };
for (const [way, call] of Object.entries(others)) answer[way] = await call(way === "truncated" ? [too_long] : texts);
try {
  await single(too_long);
} catch (error) {
  // The AI SDK has `statusCode`, the others have `status`.
  answer.refusal = { status: error.status ?? error.statusCode, message: error.message };
}
console.log(JSON.stringify(answer));
