// Operations on one key go to the node that leads its shard; nothing waits for that, and nothing depends on it.

import assert from "node:assert/strict";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import net, { type AddressInfo } from "node:net";
import { test } from "node:test";

import { create } from "@bufbuild/protobuf";
import { Code, createRouterTransport, type ConnectError, type HandlerContext } from "@connectrpc/connect";
import xxhash from "xxhash-wasm";

import { GetRingResponseSchema, KvService, type GetRingResponse, type PutRequest } from "../gen/kvstore/v1/kv_pb.js";
import { Calls, SYSTEM_CLOCK, type Channel } from "../src/calls.js";
import { grpc } from "../src/channels.js";
import type { ClientOptions } from "../src/client.js";
import { Client } from "../src/node.js";
import { LEADERS_MAX, RING_KEPT_MS, Router, shardOf, UNUSED_KEPT_MS } from "../src/routing.js";
import { fake, refusal, TestClient, TestClock, type Fake } from "./fake.js";

const SHARDS = 4;
/** How long a test waits for what must happen. */
const PATIENCE_MS = 10_000;

const hashes = await xxhash();

/** A node of a cluster that the test makes up. */
class Node {
  calls = 0;
  rings = 0;
  readonly requestIds: (string | undefined)[] = [];
  /** What came with each put. */
  readonly epochs: (string | null)[] = [];
  /** How the next puts fail, each once. */
  readonly failures: ConnectError[] = [];
  readonly #cluster: Cluster;
  server!: Fake;

  constructor(cluster: Cluster) {
    this.#cluster = cluster;
  }

  async start(): Promise<void> {
    const count = <T>(answer: T): T => {
      this.calls++;
      return answer;
    };
    this.server = await fake({
      getRing: () => {
        this.rings++;
        return this.#cluster.tell();
      },
      put: (request, context) => this.#put(request, context),
      get: ({ key }) => count({ key, version: 7n }),
      batchPut: () => count({ count: 1 }),
    });
  }

  get address(): string {
    return this.server.url.replace("http://", "");
  }

  #put({ requestId }: PutRequest, { requestHeader, responseHeader }: HandlerContext): { version: bigint } {
    const known = requestHeader.get("kvstore-epoch");
    this.calls++;
    this.requestIds.push(requestId);
    this.epochs.push(known);
    const failure = this.failures.shift();
    if (known !== null && known !== this.#cluster.epoch) {
      (failure?.metadata ?? responseHeader).set("kvstore-epoch", this.#cluster.epoch);
    }
    if (failure !== undefined) {
      throw failure;
    }
    return { version: 7n };
  }
}

/** Two nodes that tell one ring, in which each leads every other shard. */
class Cluster implements AsyncDisposable {
  readonly first = new Node(this);
  readonly second = new Node(this);
  epoch = "1";
  tell: () => GetRingResponse | Promise<GetRingResponse> = () => ringOf(1, this.first.address, this.second.address);

  static async start(): Promise<Cluster> {
    const cluster = new Cluster();
    await cluster.first.start();
    await cluster.second.start();
    return cluster;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.first.server[Symbol.asyncDispose]();
    await this.second.server[Symbol.asyncDispose]();
  }
}

/** A ring in which the nodes lead in turn. */
function ringOf(epoch: number, ...addresses: string[]): GetRingResponse {
  const placements = Array.from({ length: SHARDS }, (_, shard) => ({ shard, leader: shard % addresses.length }));
  return create(GetRingResponseSchema, {
    epoch: BigInt(epoch),
    shards: SHARDS,
    nodes: addresses.map((address) => ({ address })),
    placements,
  });
}

/** A key that node 0 or 1 of two leads. */
function keyOf(leader: number): string {
  let n = 0;
  while (shardOf(hashes, `key/${n}`, SHARDS) % 2 !== leader) {
    n++;
  }
  return `key/${n}`;
}

/** A client that knows one endpoint, and asks for the ring again at once. */
function routed(endpoint: Node, options: ClientOptions = {}): TestClient {
  return new TestClient({ endpoints: endpoint.server.url, ...options }, SYSTEM_CLOCK, (calls) => new Router(calls, 0));
}

async function until(reached: () => boolean, call: () => Promise<unknown>): Promise<void> {
  for (const end = Date.now() + PATIENCE_MS; !reached(); ) {
    assert.ok(Date.now() < end, "it never came to that");
    await call();
  }
}

/** Puts a key until the node is the one that answers. */
async function untilAt(node: Node, client: TestClient, key: string): Promise<void> {
  const before = node.calls;
  await until(() => node.calls > before, () => client.put(key, 1));
}

test("shards of keys are those of the vectors that all share", async () => {
  const text = await readFile(new URL("../../../../tests/data/shard_of.json", import.meta.url), "utf8");
  const vectors = JSON.parse(text) as { key: string; shards: Record<string, number> }[];
  assert.ok(vectors.length > 10);
  for (const { key, shards } of vectors) {
    for (const [count, shard] of Object.entries(shards)) {
      assert.equal(shardOf(hashes, key, Number(count)), shard, `${key} of ${count}`);
    }
  }
});

test("a key goes to its leader, and the rest to the endpoint", async () => {
  await using cluster = await Cluster.start();
  const { first, second } = cluster;
  using client = routed(first);
  await untilAt(second, client, keyOf(1));
  const before = [first.calls, second.calls] as const;
  for (let n = 0; n < 5; n++) {
    await client.put(keyOf(0), 1);
    await client.put(keyOf(1), 1);
    await client.get(keyOf(1));
    await client.get(keyOf(1), { consistency: "stale" });
    await client.batchPut({ [keyOf(1)]: 1 });
  }
  assert.deepEqual([first.calls - before[0], second.calls - before[1]], [15, 10]);
  assert.equal(second.epochs.at(-1), "1");
});

for (const toldBy of ["answer", "error"]) {
  test(`another epoch is noticed in an ${toldBy}`, async () => {
    await using cluster = await Cluster.start();
    const { first, second } = cluster;
    using client = routed(first);
    await untilAt(second, client, keyOf(1));
    const asked = first.rings;
    cluster.epoch = "2";
    cluster.tell = () => ringOf(2, first.address);
    if (toldBy === "error") {
      second.failures.push(refusal(Code.FailedPrecondition, "FAILED_PRECONDITION"));
      await assert.rejects(client.put(keyOf(1), 1));
      // A batch tells nothing here, so that what makes the client ask can only have been the error.
      await until(() => first.rings > asked, () => client.batchPut({ a: 1 }));
    }
    await untilAt(first, client, keyOf(1));
    for (let n = 0; n < 5; n++) {
      await client.put(keyOf(1), 1);
    }
    assert.equal(first.rings, asked + 1);
  });
}

test("a dead leader is passed over with the same request id", async () => {
  await using cluster = await Cluster.start();
  const { first, second } = cluster;
  using client = routed(first);
  await untilAt(second, client, keyOf(1));
  await second.server[Symbol.asyncDispose]();
  const before = first.requestIds.length;
  for (const requestId of ["id-0", "id-1", "id-2"]) {
    assert.equal(await client.put(keyOf(1), 1, { requestId }), 7n);
  }
  assert.deepEqual(first.requestIds.slice(before), ["id-0", "id-1", "id-2"]);
  second.server[Symbol.asyncDispose] = async () => undefined;
});

for (const failure of [refusal(Code.Unavailable, "NOT_SERVING"), refusal(Code.DeadlineExceeded, "OUTCOME_UNKNOWN")]) {
  test(`a leader that fails with ${failure.rawMessage} is left alone until the ring is known again`, async () => {
    await using cluster = await Cluster.start();
    const { first, second } = cluster;
    using client = routed(first);
    await untilAt(second, client, keyOf(1));
    const { tell } = cluster;
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => (release = resolve));
    cluster.tell = () => held.then(tell);
    const before = [first.calls, second.calls] as const;
    const asked = first.rings;
    second.failures.push(failure);
    for (let n = 0; n < 3; n++) {
      assert.equal(await client.put(keyOf(1), 1), 7n);
    }
    assert.deepEqual([first.calls - before[0], second.calls - before[1]], [3, 1]);
    assert.equal(first.rings, asked + 1, "one question at a time");
    release();
    await untilAt(second, client, keyOf(1));
  });
}

test("an overloaded leader stays the leader", async () => {
  await using cluster = await Cluster.start();
  const { first, second } = cluster;
  using client = routed(first);
  await untilAt(second, client, keyOf(1));
  const [calls, rings] = [second.calls, first.rings];
  second.failures.push(refusal(Code.ResourceExhausted, "OVERLOADED"));
  await client.put(keyOf(1), 1);
  await client.put(keyOf(1), 1);
  assert.deepEqual([second.calls - calls, first.rings - rings], [2, 0]);
});

test("a leader that is starting is not used", async () => {
  await using cluster = await Cluster.start();
  const { first, second } = cluster;
  second.server.serving = false;
  using client = routed(first);
  await until(() => first.rings === 3, () => client.put(keyOf(1), 1));
  assert.equal(second.calls, 0);
  second.server.serving = true;
  await untilAt(second, client, keyOf(1));
});

test("a leader that cannot be reached costs no call anything", async () => {
  await using cluster = await Cluster.start();
  const { first } = cluster;
  // Takes connections and says nothing, like a network that swallows packets.
  const silent = net.createServer().listen(0, "127.0.0.1");
  await once(silent, "listening");
  const open = new Set<net.Socket>();
  silent.on("connection", (socket) => open.add(socket));
  cluster.tell = () => ringOf(1, first.address, `127.0.0.1:${(silent.address() as AddressInfo).port}`);
  using client = routed(first);
  let slowest = 0;
  await until(() => first.rings === 2, async () => {
    const started = performance.now();
    assert.equal(await client.put(keyOf(1), 1), 7n);
    slowest = Math.max(slowest, performance.now() - started);
  });
  assert.ok(slowest < 1_000, `a call took ${slowest} ms`);
  open.forEach((socket) => socket.destroy());
  silent.close();
});

const broken: Record<string, () => GetRingResponse> = {
  "is not implemented": () => {
    throw refusal(Code.Unimplemented, "");
  },
  "is refused": () => {
    throw refusal(Code.Unavailable, "NOT_SERVING");
  },
  "has no shards": () => create(GetRingResponseSchema, { epoch: 1n }),
  "has no placements": () => create(GetRingResponseSchema, { epoch: 1n, shards: 9 }),
  "names a node that is none": () => create(GetRingResponseSchema, { shards: 1, placements: [{ shard: 0, leader: 4 }] }),
  "names a shard that is none": () => create(GetRingResponseSchema, { shards: 1, placements: [{ shard: 4 }] }),
};

for (const [what, tell] of Object.entries(broken)) {
  test(`everything is as it was where the ring ${what}`, async () => {
    await using cluster = await Cluster.start();
    const { first, second } = cluster;
    cluster.tell = tell;
    using client = routed(first);
    await until(() => first.rings === 2, () => client.put(keyOf(1), 1));
    assert.deepEqual([second.calls, new Set(first.epochs)], [0, new Set([null])]);
  });
}

test("an address that is none is not used", async () => {
  await using cluster = await Cluster.start();
  const { first } = cluster;
  cluster.tell = () => ringOf(1, first.address, "nowhere at all");
  using client = routed(first);
  await until(() => first.rings === 3, () => client.put(keyOf(1), 1));
});

test("a node without an address is not connected", async () => {
  const { calls, opened, tell } = offline();
  tell(ringOf(0, "h:2", ""));
  const router = new Router(calls, 0);
  await until(() => router.target(keyOf(0)) !== undefined, settled);
  assert.deepEqual(opened, ["http://h:1", "http://h:2"]);
});

test("a client that is closed while it learns opens nothing more", async () => {
  for (const turns of [0, 1, 5, 20]) {
    const { calls, asked, opened, closed } = offline();
    const router = new Router(calls, 0);
    router.target("a");
    for (let n = 0; n < turns; n++) {
      await new Promise(setImmediate);
    }
    calls.close();
    await settled();
    assert.deepEqual(closed, opened);
    const questions = asked.length;
    router.heard(new Headers({ "kvstore-epoch": "another" }));
    router.target("a");
    await settled();
    assert.equal(asked.length, questions);
  }
});

test("routing can be switched off, and is where endpoints are reached in another way", async () => {
  await using cluster = await Cluster.start();
  const { first, second } = cluster;
  for (const options of [{ routing: false }, { connect: grpc }]) {
    using client = routed(first, options);
    for (let n = 0; n < 20; n++) {
      await client.put(keyOf(1), 1);
    }
  }
  assert.deepEqual([first.rings, second.calls, new Set(first.epochs)], [0, 0, new Set([null])]);
});

test("a client of Node routes over gRPC, and never where it wants TLS", async () => {
  await using cluster = await Cluster.start();
  const { first } = cluster;
  using client = new Client({ endpoints: first.server.url });
  await until(() => first.rings > 0, () => client.put("a", 1));
  let routers = 0;
  const route = (calls: Calls): Router => {
    routers++;
    return new Router(calls);
  };
  new TestClient({ endpoints: "http://h:1,https://h:2" }, SYSTEM_CLOCK, route).close();
  assert.equal(routers, 0);
  new TestClient({ endpoints: "http://h:1,h:2" }, SYSTEM_CLOCK, route).close();
  assert.equal(routers, 1);
});

/** Calls of a client that reaches every node at once. Time passes in the test's sleeps. */
function offline() {
  const clock = new TestClock();
  const asked: string[] = [];
  const opened: string[] = [];
  const closed: string[] = [];
  let told = ringOf(0, "h:1", "h:2");
  const open = (url: string): Channel => {
    opened.push(url);
    const transport = createRouterTransport(({ service }) => {
      service(KvService, {
        getRing: () => {
          asked.push(url);
          return told;
        },
      });
    });
    return { transport, serves: async () => true, close: () => closed.push(url) };
  };
  const calls = new Calls(["http://h:1"], open, 1_000, clock);
  return { clock, calls, asked, opened, closed, tell: (ring: GetRingResponse) => (told = ring) };
}

test("the ring is asked for less often while it stays the same", async () => {
  const { clock, calls, asked, tell } = offline();
  const router = new Router(calls);
  for (const [epoch, seconds] of [1, 2, 4, 8, 15, 15, 1].entries()) {
    tell(ringOf(epoch, epoch === 6 ? "h:3" : "h:2")); // Only the epoch is another one, until a leader is.
    router.target("a");
    router.target("a");
    await until(() => asked.length === epoch + 1, settled);
    router.heard(new Headers({ "kvstore-epoch": "another" }));
    await clock.sleep(seconds * 1_000 - 1);
    router.target("a");
    await settled();
    assert.equal(asked.length, epoch + 1, `not before ${seconds} s`);
    await clock.sleep(1);
  }
});

test("an old ring is asked for again, as leaders move without another epoch", async () => {
  const { clock, calls, asked, tell } = offline();
  const router = new Router(calls, 0);
  const key = "a";
  await until(() => router.target(key) !== undefined, settled);
  tell(ringOf(0, "h:3"));
  await clock.sleep(RING_KEPT_MS - 1);
  router.target(key);
  await settled();
  assert.equal(asked.length, 1);
  await clock.sleep(1);
  await until(() => router.target(key)?.endpoint === "http://h:3", settled);
  assert.equal(asked.length, 2);
});

test("no more leaders are connected than allowed, and those that lead nothing any more are closed when no call can be under way", async () => {
  const { clock, calls, asked, closed, tell } = offline();
  const router = new Router(calls, 0);
  const learn = async (): Promise<void> => {
    const before = asked.length;
    router.heard(new Headers({ "kvstore-epoch": "another" }));
    router.target(undefined);
    await until(() => asked.length > before, settled);
    await settled();
  };
  const ring = create(GetRingResponseSchema, {
    shards: 200,
    nodes: Array.from({ length: 200 }, (_, n) => ({ address: `n${n}:1` })),
    placements: Array.from({ length: 200 }, (_, n) => ({ shard: n, leader: n })),
  });
  tell(ring);
  await learn();
  assert.equal(calls.others().length, LEADERS_MAX);
  await learn();
  assert.equal(calls.others().length, LEADERS_MAX);
  ring.placements.slice(0, 10).forEach((placement) => delete placement.leader);
  await learn();
  assert.deepEqual([calls.others().length, closed.length], [LEADERS_MAX + 10, 0]);
  await clock.sleep(UNUSED_KEPT_MS + 1);
  await learn();
  assert.equal(calls.others().length, LEADERS_MAX);
  assert.deepEqual(closed, Array.from({ length: 10 }, (_, n) => `http://n${n}:1`));
});

/** Lets what was begun go on until it waits for more than the next turn of the loop. */
async function settled(): Promise<void> {
  for (let n = 0; n < 20; n++) {
    await new Promise(setImmediate);
  }
}
