// Scans that break: they go on behind their last key, until that does not help.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Code } from "@connectrpc/connect";

import type { ScanRequest } from "../gen/kvstore/v1/kv_pb.js";
import type { ScanOptions } from "../src/client.js";
import type { KvError } from "../src/node.js";
import { fake, refusal, TestClient, TestClock, type Handlers } from "./fake.js";

const item = (key: string) => ({ key, version: 1n, content: { case: "value", value: "1" } as const });
const noLeader = (retryAfterMs?: number) => refusal(Code.Unavailable, "NO_LEADER", retryAfterMs);

interface Script {
  keys: string;
  failure?: Error;
}

/** Serves streams one after the other, each with its keys and then its failure; the last one for all that follow. */
function streams(...scripts: Script[]): { handlers: Handlers; asked: string[] } {
  const asked: string[] = [];
  async function* scan({ startKey, endKey, limit }: ScanRequest) {
    asked.push(`[${startKey},${endKey}) ${limit ?? "all"}`);
    const { keys, failure } = scripts[Math.min(asked.length, scripts.length) - 1] as Script;
    for (const key of keys) {
      yield item(key);
    }
    if (failure !== undefined) {
      throw failure;
    }
  }
  return { handlers: { scan }, asked };
}

/** The keys of a scan, and what it ended with. */
async function walk(client: TestClient, options?: ScanOptions): Promise<{ keys: string; error?: KvError }> {
  let keys = "";
  try {
    for await (const { key } of client.scan(options)) {
      keys += key;
    }
    return { keys };
  } catch (error) {
    return { keys, error: error as KvError };
  }
}

const cases: [string, ScanOptions, Script[], string, string[]][] = [
  ["before its first entry", {}, [{ keys: "", failure: noLeader() }, { keys: "a" }], "a", ["[,) all", "[,) all"]],
  [
    "forward",
    { start: "a", end: "z", limit: 4 },
    [{ keys: "ab", failure: noLeader() }, { keys: "bcd" }],
    "abcd",
    ["[a,z) 4", "[b,z) 3"],
  ],
  ["when its last key is gone", { limit: 4 }, [{ keys: "ab", failure: noLeader() }, { keys: "cde" }], "abcd", ["[,) 4", "[b,) 3"]],
  [
    "in reverse",
    { start: "a", end: "e", limit: 4, reverse: true },
    [{ keys: "dc", failure: noLeader() }, { keys: "ba" }],
    "dcba",
    ["[a,e) 4", "[a,c) 2"],
  ],
  ["behind its last entry", { limit: 2 }, [{ keys: "ab", failure: noLeader() }], "ab", ["[,) 2"]],
  [
    "twice, once without coming further",
    {},
    [{ keys: "a", failure: noLeader() }, { keys: "a", failure: noLeader() }, { keys: "ab" }],
    "ab",
    ["[,) all", "[a,) all", "[a,) all"],
  ],
];

for (const transport of ["grpc", "grpc-web"] as const) {
  for (const [name, options, scripts, keys, requests] of cases) {
    test(`${transport}: a scan that breaks ${name} skips and repeats nothing`, async () => {
      const { handlers, asked } = streams(...scripts);
      await using server = await fake(handlers, transport);
      using client = new TestClient({ endpoints: server.url, transport }, new TestClock());
      assert.deepEqual(await walk(client, options), { keys });
      assert.deepEqual(asked, requests);
    });
  }

  test(`${transport}: a scan whose connection is cut goes on at the next endpoint`, async () => {
    let arrived!: () => void;
    const gate = new Promise<void>((resolve) => (arrived = resolve));
    await using first = await fake(
      {
        async *scan() {
          yield item("a");
          await gate;
          first.crash();
        },
      },
      transport,
    );
    const { handlers, asked } = streams({ keys: "ab" });
    await using second = await fake(handlers, transport);
    using client = new TestClient({ endpoints: [first.url, second.url], transport }, new TestClock());
    let keys = "";
    for await (const { key } of client.scan()) {
      keys += key;
      arrived();
    }
    assert.equal(keys, "ab");
    assert.deepEqual(asked, ["[a,) all"]);
  });
}

test("a scan that comes no further is given up after 10 retries", async () => {
  const { handlers, asked } = streams({ keys: "a", failure: noLeader() });
  await using server = await fake(handlers);
  const clock = new TestClock();
  using client = new TestClient({ endpoints: server.url, timeoutMs: 60_000 }, clock);
  const { keys, error } = await walk(client);
  assert.deepEqual([keys, error?.kind, error?.reason], ["a", "unavailable", "NO_LEADER"]);
  assert.equal(asked.length, 11, "with its first entry, that stream begins anew");
  assert.equal(clock.sleeps.at(-1), 2000);
});

test("every entry gives a scan all retries and its whole time again", async () => {
  const letters = [..."abcdefghijklmnopqrstuvwxyz"];
  const { handlers } = streams(...letters.map((keys) => ({ keys, failure: noLeader() })), { keys: "" });
  await using server = await fake(handlers);
  const clock = new TestClock();
  using client = new TestClient({ endpoints: server.url, timeoutMs: 200 }, clock);
  assert.deepEqual(await walk(client), { keys: letters.join("") });
  assert.deepEqual(new Set(clock.sleeps), new Set([50]));
});

test("the deadline of a whole scan is not renewed", async () => {
  const letters = [..."abcdefghijklmnopqrstuvwxyz"];
  const { handlers } = streams(...letters.map((keys) => ({ keys, failure: noLeader() })), { keys: "" });
  await using server = await fake(handlers);
  const clock = new TestClock();
  using client = new TestClient({ endpoints: server.url }, clock);
  const { keys, error } = await walk(client, { timeoutMs: 1_000 });
  // 19 waits of 50 ms fit into 1000 ms.
  assert.deepEqual([keys, error?.kind], [letters.slice(0, 20).join(""), "unavailable"]);
});

for (const timeoutMs of [undefined, 60_000]) {
  test(`a broken scan does not wait beyond its deadline (timeoutMs: ${timeoutMs})`, async () => {
    const { handlers, asked } = streams({ keys: "a", failure: noLeader(3_600_000) });
    await using server = await fake(handlers);
    const clock = new TestClock();
    using client = new TestClient({ endpoints: server.url }, clock);
    const { keys, error } = await walk(client, { timeoutMs });
    assert.deepEqual([keys, error?.kind, clock.sleeps.length, asked.length], ["a", "unavailable", 0, 1]);
  });
}

for (const [code, reason, kind] of [
  [Code.DataLoss, "CORRUPTION", "corruption"],
  [Code.InvalidArgument, "INVALID_RANGE", "invalid-argument"],
  [Code.Internal, "INTERNAL", "other"],
] as const) {
  test(`${reason} ends a scan`, async () => {
    const { handlers, asked } = streams({ keys: "ab", failure: refusal(code, reason) }, { keys: "b" });
    await using server = await fake(handlers);
    using client = new TestClient({ endpoints: server.url }, new TestClock());
    const { keys, error } = await walk(client);
    assert.deepEqual([keys, error?.kind, error?.reason, asked.length], ["ab", kind, reason, 1]);
  });
}
