// What `clients/cluster` has this client do: for each line `PREFIX COUNT` it puts and gets as many keys, and says `done`.

import assert from "node:assert/strict";
import { createInterface } from "node:readline";

import { Client } from "../src/node.js";

/** A shard has no leader for a while after one was killed. */
const TIMEOUT_MS = 20_000;

const client = new Client({ timeoutMs: TIMEOUT_MS });
for await (const line of createInterface({ input: process.stdin })) {
  const [prefix, count] = line.split(" ");
  for (let number = 0; number < Number(count); number++) {
    const key = `${prefix}/${number}`;
    await client.put(key, number);
    assert.equal((await client.get(key))?.json(), number, key);
  }
  console.log("done");
}
client.close();
