// What goes over the wire for each method, what comes back, and what is refused before it is sent.

import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { test, type TestContext } from "node:test";

import { Code } from "@connectrpc/connect";

import type { RangeRequest } from "../gen/kvstore/v1/kv_pb.js";
import { bounded } from "../src/channels.js";
import { Client, KvError } from "../src/node.js";
import { fake, hang, refusal, TestClient, TestClock, type Handlers } from "./fake.js";

const item = (key: string, value = "1") => ({ key, version: 1n, content: { case: "value", value } as const });

/** `count` keys, in pages of the size asked for (1000 if none). Collects the requests. */
function pages(count: number): { handlers: Handlers; requests: RangeRequest[] } {
  const requests: RangeRequest[] = [];
  const range: Handlers["range"] = (request) => {
    requests.push(request);
    const first = Number(request.pageToken || 0);
    const end = Math.min(first + (request.limit ?? 1000), count);
    const items = Array.from({ length: end - first }, (_, n) => item(`k${first + n}`));
    return { items, nextPageToken: end < count ? String(end) : "" };
  };
  return { handlers: { range }, requests };
}

async function count(entries: AsyncIterable<unknown>): Promise<number> {
  let n = 0;
  for await (const _ of entries) {
    n++;
  }
  return n;
}

/** How many timers of `ms` and more have been set since, and are still waiting. */
function watchTimers(t: TestContext, ms: number): { set: number; waiting: Set<NodeJS.Timeout> } {
  const seen = { set: 0, waiting: new Set<NodeJS.Timeout>() };
  const { setTimeout: set, clearTimeout: clear } = globalThis;
  t.mock.method(globalThis, "setTimeout", (callback: () => void, delay: number) => {
    const timer = set(callback, delay);
    if (delay >= ms) {
      seen.set++;
      seen.waiting.add(timer);
    }
    return timer;
  });
  t.mock.method(globalThis, "clearTimeout", (timer: NodeJS.Timeout) => {
    seen.waiting.delete(timer);
    clear(timer);
  });
  return seen;
}

test("a missing key is undefined, any other NOT_FOUND is an error", async () => {
  let reason = "KEY_NOT_FOUND";
  await using server = await fake({
    get: () => {
      throw refusal(Code.NotFound, reason);
    },
  });
  using client = new Client({ endpoints: server.url });
  assert.equal(await client.get("a"), undefined);
  reason = "UNKNOWN_PATH";
  await assert.rejects(client.get("a"), { name: "KvError", code: "NOT_FOUND", reason, kind: "other" });
});

test("an entry shows what was stored: text with its decoded view, or bytes", async () => {
  await using server = await fake({
    get: ({ key }) =>
      key === "raw"
        ? { key, version: 2n ** 64n - 1n, content: { case: "raw", value: Uint8Array.of(0, 255) } }
        : { key, version: 1n, ttl: 9, content: { case: "value", value: '{"n":  1.0}' } },
  });
  using client = new Client({ endpoints: server.url });
  const json = await client.get("json");
  assert.equal(json?.text, '{"n":  1.0}');
  assert.deepEqual(json?.json<{ n: number }>(), { n: 1 });
  assert.equal(json?.ttl, 9);
  assert.equal(json?.raw, undefined);
  const raw = await client.get("raw");
  assert.deepEqual(raw?.raw, Uint8Array.of(0, 255));
  assert.equal(raw?.version, 2n ** 64n - 1n);
  assert.equal(raw?.text, undefined);
  assert.throws(() => raw?.json(), { name: "TypeError", message: 'the entry of key "raw" holds raw bytes, not JSON' });
});

test("put encodes values as JSON, putText sends text as it is, putRaw bytes", async () => {
  const sent: unknown[] = [];
  await using server = await fake({
    put: ({ content, ttl, ifVersion }) => {
      sent.push([content.value, ttl, ifVersion]);
      return { version: 1n };
    },
  });
  using client = new Client({ endpoints: server.url });
  await client.put("a", { b: [1, null, "é"] }, { ttl: 60, ifVersion: 0n });
  await client.put("a", "text");
  await client.put("a", null);
  await client.putText("a", " [1.0] ");
  await client.putRaw("a", Uint8Array.of(1, 2), { ifVersion: 2n ** 64n - 1n });
  assert.deepEqual(sent, [
    ['{"b":[1,null,"é"]}', 60, 0n],
    ['"text"', undefined, undefined],
    ["null", undefined, undefined],
    [" [1.0] ", undefined, undefined],
    [Uint8Array.of(1, 2), undefined, 2n ** 64n - 1n],
  ]);
});

test("a batch takes an object or a map, and every key that a string can be", async () => {
  const sent: [string, string][][] = [];
  await using server = await fake({
    batchPut: ({ entries }) => {
      sent.push(Object.entries(entries));
      return { count: Object.keys(entries).length };
    },
  });
  using client = new Client({ endpoints: server.url });
  assert.equal(await client.batchPut({ a: 1, b: { c: 2 } }), 2);
  assert.equal(await client.batchPutText(new Map([["x", "1 "], ["constructor", "[]"]])), 2);
  assert.deepEqual(sent, [
    [["a", "1"], ["b", '{"c":2}']],
    [["x", "1 "], ["constructor", "[]"]],
  ]);
});

test("what protobuf cannot carry is refused before anything is sent", async () => {
  using client = new Client({ endpoints: "http://127.0.0.1:1", timeoutMs: 100 });
  const refused: [string, () => Promise<unknown>][] = [
    ["INVALID_KEY", () => client.get("half \ud83d of a pair")],
    ["INVALID_KEY", () => client.put(7 as unknown as string, 1)],
    ["INVALID_KEY", () => client.batchGet(["ok", "\udc00"])],
    ["INVALID_KEY", () => client.batchPut({ "\udc00": 1 })],
    ["INVALID_KEY", () => client.range({ prefix: "\udc00" }).next()],
    ["INVALID_KEY", () => client.scan({ start: "\udc00" }).next()],
    ["INVALID_JSON", () => client.put("a", undefined)],
    ["INVALID_JSON", () => client.put("a", () => 1)],
    ["INVALID_JSON", () => client.putText("a", '"\ud83d"')],
    ["INVALID_JSON", () => client.batchPutText({ a: 1 as unknown as string })],
    ["INVALID_VALUE", () => client.putRaw("a", "text" as unknown as Uint8Array)],
    ["INVALID_TTL", () => client.put("a", 1, { ttl: 1.5 })],
    ["INVALID_TTL", () => client.put("a", 1, { ttl: -1 })],
    ["INVALID_TTL", () => client.batchPut({ a: 1 }, { ttl: 2 ** 32 })],
    ["INVALID_VERSION", () => client.put("a", 1, { ifVersion: -1n })],
    ["INVALID_VERSION", () => client.delete("a", { ifVersion: 2n ** 64n })],
    ["INVALID_VERSION", () => client.delete("a", { ifVersion: 1 as unknown as bigint })],
    ["INVALID_REQUEST_ID", () => client.delete("a", { requestId: "\udc00" })],
    ["INVALID_LIMIT", () => client.range({ limit: 1.5 }).next()],
    ["INVALID_LIMIT", () => client.range({ pageSize: -1 }).next()],
    ["INVALID_LIMIT", () => client.scan({ limit: NaN }).next()],
    ["INVALID_CONSISTENCY", () => client.get("a", { consistency: "eventual" as "stale" })],
  ];
  for (const [reason, call] of refused) {
    await assert.rejects(call, { name: "KvError", kind: "invalid-argument", code: "INVALID_ARGUMENT", reason });
  }
  const cycle: unknown[] = [];
  cycle.push(cycle);
  await assert.rejects(client.put("a", cycle), { name: "TypeError" });
  await assert.rejects(client.put("a", 1n), { name: "TypeError" });
});

test("endpoints are urls or host:port; the environment stands in for them", async () => {
  await using server = await fake({ stats: () => ({ node: "n1" }) });
  const { host, port } = new URL(server.url);
  for (const endpoints of [server.url, `${server.url}/`, host, [host], `${host}, localhost:${port}`]) {
    using client = new Client({ endpoints });
    assert.equal((await client.stats()).node, "n1");
  }
  for (const endpoints of ["n1:80", "http://n1", "https://kv.example", "[::1]:9090"]) {
    new Client({ endpoints }).close();
  }
  for (const endpoints of ["", [], "ftp://x", "http://", "a b:1", "a", "a:port", "a:1,,b:2", "http://a:1/path", "http://u@a:1", "http://a:1?b"]) {
    assert.throws(() => new Client({ endpoints }), { name: "KvError", kind: "invalid-argument" });
  }
  const before = process.env["KVSTORE_ENDPOINTS"];
  process.env["KVSTORE_ENDPOINTS"] = host;
  try {
    using client = new Client();
    assert.equal((await client.stats()).node, "n1");
  } finally {
    if (before === undefined) {
      delete process.env["KVSTORE_ENDPOINTS"];
    } else {
      process.env["KVSTORE_ENDPOINTS"] = before;
    }
  }
});

test("a socket that does not get connected is given up, one that does is left alone", async (t) => {
  const timers = watchTimers(t, 50_000);
  await using server = await fake({});
  const socket = bounded(net.connect(Number(new URL(server.url).port), "127.0.0.1"), 60_000);
  assert.equal(timers.waiting.size, 1);
  await once(socket, "connect");
  assert.equal(timers.waiting.size, 0);
  const [error] = (await once(bounded(new net.Socket(), 5), "error")) as [NodeJS.ErrnoException];
  assert.equal(error.code, "ETIMEDOUT");
});

test("a range fetches a page only when the loop gets there", async () => {
  const { handlers, requests } = pages(10);
  await using server = await fake(handlers);
  using client = new Client({ endpoints: server.url });
  const seen: string[] = [];
  for await (const { key } of client.range({ prefix: "k", pageSize: 3 })) {
    seen.push(key);
    assert.equal(requests.length, Math.ceil(seen.length / 3));
    if (seen.length === 4) {
      break;
    }
  }
  assert.deepEqual(seen, ["k0", "k1", "k2", "k3"]);
  assert.deepEqual(requests.map(({ pageToken, limit, prefix }) => [pageToken, limit, prefix]), [["", 3, "k"], ["3", 3, "k"]]);
});

test("a limit counts entries over all pages and asks for no more than it needs", async () => {
  const { handlers, requests } = pages(5000);
  await using server = await fake(handlers);
  using client = new Client({ endpoints: server.url });
  assert.equal(await count(client.range()), 5000);
  assert.deepEqual(requests.splice(0).map(({ limit }) => limit), Array(5).fill(undefined));
  assert.equal(await count(client.range({ limit: 1001 })), 1001);
  assert.deepEqual(requests.splice(0).map(({ limit }) => limit), [undefined, 1]);
  assert.equal(await count(client.range({ limit: 25, pageSize: 10 })), 25);
  assert.deepEqual(requests.splice(0).map(({ limit }) => limit), [10, 10, 5]);
});

test("a server's large pages do not exceed the limit", async () => {
  const items = Array.from({ length: 700 }, (_, n) => item(`k${n}`));
  await using server = await fake({ range: () => ({ items, nextPageToken: "more" }) });
  using client = new Client({ endpoints: server.url });
  assert.equal(await count(client.range({ limit: 1300 })), 1300);
});

test("each page of a range is retried by itself", async () => {
  const { handlers, requests } = pages(4);
  const { range } = handlers;
  let failures = 0;
  handlers.range = (request, context) => {
    if (request.pageToken === "2" && failures++ === 0) {
      throw refusal(Code.Unavailable, "NO_LEADER");
    }
    return range!(request, context);
  };
  await using server = await fake(handlers);
  using client = new TestClient({ endpoints: server.url }, new TestClock());
  assert.equal(await count(client.range({ pageSize: 2 })), 4);
  assert.equal(failures, 2);
  assert.equal(requests.length, 2);
});

for (const transport of ["grpc", "grpc-web"] as const) {
  test(`${transport}: the client's deadline bounds the wait for each entry of a scan, the call's the whole scan`, async () => {
    let served = 0;
    await using server = await fake(
      {
        async *scan(request, context) {
          for (; served < 12; served++) {
            yield item(`k${served}`);
            await new Promise((resolve) => setTimeout(resolve, 50));
          }
          await hang(request, context);
        },
      },
      transport,
    );
    using client = new Client({ endpoints: server.url, transport, timeoutMs: 500 });
    const late = { name: "KvError", code: "DEADLINE_EXCEEDED", kind: "deadline-exceeded", reason: "" };
    await assert.rejects(count(client.scan()), late);
    assert.equal(served, 12, "600 ms in all, but never 500 ms without an entry");
    served = 0;
    await assert.rejects(count(client.scan({ timeoutMs: 250 })), late);
    assert.ok(served < 12);
  });

  test(`${transport}: leaving the loop of a scan closes its stream`, { timeout: 10_000 }, async (t) => {
    let closed!: () => void;
    const end = new Promise<void>((resolve) => (closed = resolve));
    await using server = await fake(
      {
        async *scan(_request, { signal }) {
          signal.addEventListener("abort", closed);
          for (let n = 0; ; n++) {
            yield item(`k${n}`);
            await new Promise(setImmediate);
          }
        },
      },
      transport,
      false,
    );
    using client = new Client({ endpoints: server.url, transport });
    const timers = watchTimers(t, 50_000);
    const seen: string[] = [];
    for await (const { key } of client.scan({ timeoutMs: 60_000 })) {
      seen.push(key);
      if (seen.length === 3) {
        break;
      }
    }
    assert.deepEqual(seen, ["k0", "k1", "k2"]);
    await end;
    assert.ok(timers.set > 0);
    const left = [...timers.waiting].filter((timer) => timer.hasRef());
    assert.equal(left.length, 0, "no timer of the deadline keeps the process running");
  });

  test(`${transport}: a signal ends a scan in its middle`, { timeout: 10_000 }, async () => {
    await using server = await fake(
      {
        async *scan(request, context) {
          yield item("a");
          await hang(request, context);
        },
      },
      transport,
    );
    using client = new Client({ endpoints: server.url, transport, timeoutMs: 60_000 });
    const abort = new AbortController();
    const entries = client.scan({ signal: abort.signal });
    await entries.next();
    const pending = entries.next();
    abort.abort(new Error("enough"));
    await assert.rejects(pending, (error: KvError) => {
      assert.deepEqual([error.code, error.kind, (error.cause as Error).message], ["CANCELLED", "other", "enough"]);
      return true;
    });
  });
}
