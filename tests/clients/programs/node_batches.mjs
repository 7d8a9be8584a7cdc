// Run batches with OpenAI's client for Node: node_batches.mjs REQUEST. Prints what the client returns to its user.
import fs from "node:fs";
import OpenAI from "openai";

const { url, key, path } = JSON.parse(process.argv[1]);
const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const ended = ["completed", "failed", "expired", "cancelled"];

// The client sends a stream in chunks, before the other fields.
const upload = () => client.files.create({ file: fs.createReadStream(path), purpose: "batch" });

async function create(file) {
  return client.batches.create({
    input_file_id: file.id,
    endpoint: "/v1/embeddings",
    completion_window: "24h",
    metadata: { team: "search" },
  });
}

async function wait(batch) {
  while (!ended.includes(batch.status)) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    batch = await client.batches.retrieve(batch.id);
  }
  return batch;
}

async function collect(pages) {
  const ids = [];
  for await (const item of pages) ids.push(item.id);
  return ids;
}

const file = await client.files.waitForProcessing((await upload()).id);
const batch = await wait(await create(file));
const output = await (await client.files.content(batch.output_file_id)).text();
const second = await create(file);
const cancelled = await wait(await client.batches.cancel(second.id));
const batches = await collect(client.batches.list({ limit: 1 }));
const files = await collect(client.files.list({ purpose: "batch", limit: 1 }));
const deleted = await client.files.delete(file.id);
const refusal = await client.files.retrieve(file.id).catch((error) => ({ status: error.status }));
console.log(JSON.stringify({ file, batch, output, second, cancelled, batches, files, deleted, refusal }));
