// Use files and batches with OpenAI's client for Node: node_files.mjs URL KEY FILE prints what the calls return.
// This client sends the file before the other fields, in chunks, without a Content-Length.
import fs from "node:fs";
import OpenAI from "openai";

const [url, key, path] = process.argv.slice(1);
const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });

async function collect(pages) {
  const ids = [];
  for await (const item of pages) ids.push(item.id);
  return ids;
}

const files = [];
for (let number = 0; number < 3; number++) {
  const expiry = { anchor: "created_at", seconds: 7200 };
  files.push(await client.files.create({ file: fs.createReadStream(path), purpose: "batch", expires_after: expiry }));
}
const [file] = files;
const batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/embeddings",
  completion_window: "24h",
  metadata: { source: "node" },
});
const answer = {
  files,
  ready: (await client.files.waitForProcessing(file.id)).status,
  content: await (await client.files.content(file.id)).text(),
  listed: await collect(client.files.list({ limit: 2 })),
  batch,
  retrieved: await client.batches.retrieve(batch.id),
  batches: await collect(client.batches.list({ limit: 1 })),
  cancelled: (await client.batches.cancel(batch.id)).status,
  deleted: await client.files.delete(file.id),
};
try {
  await client.files.retrieve(file.id);
} catch (error) {
  answer.refusal = { status: error.status, message: error.message };
}
console.log(JSON.stringify(answer));
