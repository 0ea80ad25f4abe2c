// The quick start: KVSTORE_ENDPOINTS=http://127.0.0.1:9090 node examples/node.mjs
import { Client, KvError } from "@kvstore/client";

const kv = new Client();

const version = await kv.put("user/1", { name: "Ada", langs: ["en"] }, { ttl: 3600 });
const user = await kv.get("user/1");
console.log(`${user.key} is ${user.text}, version ${user.version}, ${user.ttl} s left`);
console.log(`a missing key is ${await kv.get("user/none")}`);

// Change it only if nobody else has in the meantime.
await kv.put("user/1", { ...user.json(), langs: ["en", "fr"] }, { ifVersion: version });
try {
  await kv.put("user/1", "too late", { ifVersion: version });
} catch (error) {
  if (!(error instanceof KvError)) throw error;
  console.log(`refused: ${error.kind}, ${error.reason}`);
}

await kv.batchPut({ "user/2": { name: "Grace" }, "user/3": { name: "Edsger" } });
for await (const entry of kv.range({ prefix: "user/" })) {
  console.log(`${entry.key}: ${entry.json().name}`);
}
for await (const entry of kv.scan({ prefix: "user/", reverse: true, keysOnly: true })) {
  console.log(`removed ${entry.key}: ${await kv.delete(entry.key)}`);
}

kv.close();
