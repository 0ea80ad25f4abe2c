// When a call is repeated, where it goes, how long it waits, and what is thrown in the end.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Code, ConnectError } from "@connectrpc/connect";

import { backoffMs, SYSTEM_CLOCK, type Clock } from "../src/calls.js";
import { Client, KvError } from "../src/node.js";
import { deadUrl, fake, hang, refusal, TestClient, TestClock, type Handlers } from "./fake.js";

/** Answers the calls of `put` one after the other; the last answer is kept. Collects the request ids. */
function puts(...answers: (Error | bigint)[]): { handlers: Handlers; ids: (string | undefined)[] } {
  const ids: (string | undefined)[] = [];
  const put: Handlers["put"] = (request) => {
    ids.push(request.requestId);
    const answer = answers[Math.min(ids.length, answers.length) - 1];
    if (answer instanceof Error) {
      throw answer;
    }
    return { version: answer ?? 0n };
  };
  return { handlers: { put }, ids };
}

async function failureOf(promise: Promise<unknown>): Promise<KvError> {
  const thrown = await promise.then(
    (value) => assert.fail(`expected a failure, got ${String(value)}`),
    (error: unknown) => error,
  );
  assert.ok(thrown instanceof KvError, `expected a KvError, got ${String(thrown)}`);
  return thrown;
}

const noLeader = (retryAfterMs?: number) => refusal(Code.Unavailable, "NO_LEADER", retryAfterMs);
const outcomeUnknown = () => refusal(Code.DeadlineExceeded, "OUTCOME_UNKNOWN");
const mismatch = () => refusal(Code.Aborted, "VERSION_MISMATCH");

test("the wait before a retry doubles from 50 ms up to 2 s and is random below that", () => {
  const bounds = Array.from({ length: 8 }, (_, n) => backoffMs(n + 1, 1));
  assert.deepEqual(bounds, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
  assert.equal(backoffMs(4, 0), 0);
  assert.equal(backoffMs(4, 0.25), 100);
});

test("a write that nobody could serve is repeated with the same request id until it is answered", async () => {
  const { handlers, ids } = puts(noLeader(), refusal(Code.ResourceExhausted, "OVERLOADED"), 7n);
  await using server = await fake(handlers);
  const clock = new TestClock();
  using client = new TestClient({ endpoints: server.url }, clock);

  assert.equal(await client.put("a", 1), 7n);
  assert.equal(ids.length, 3);
  assert.match(ids[0] ?? "", /^[0-9a-f]{32}$/);
  assert.deepEqual(new Set(ids).size, 1);
  assert.deepEqual(clock.sleeps, [50, 100]);

  await client.put("a", 1);
  assert.equal(new Set(ids).size, 2, "another call is another write");
});

test("the caller's request id is sent as it is", async () => {
  const { handlers, ids } = puts(noLeader(), 1n);
  await using server = await fake(handlers);
  using client = new TestClient({ endpoints: server.url }, new TestClock());
  await client.put("a", 1, { requestId: "order-17" });
  assert.deepEqual(ids, ["order-17", "order-17"]);
});

test("the server's RetryInfo is waited for when it asks for more than chance says", async () => {
  const { handlers } = puts(noLeader(700), noLeader(1), 1n);
  await using server = await fake(handlers);
  const clock = new TestClock();
  using client = new TestClient({ endpoints: server.url }, clock);
  await client.put("a", 1);
  assert.deepEqual(clock.sleeps, [700, 100]);
});

test("a call is given up after 10 retries with the last error", async () => {
  const { handlers, ids } = puts(noLeader());
  await using server = await fake(handlers);
  using client = new TestClient({ endpoints: server.url, timeoutMs: 60_000 }, new TestClock());
  const error = await failureOf(client.put("a", 1));
  assert.equal(ids.length, 11);
  assert.deepEqual([error.kind, error.code, error.reason], ["unavailable", "UNAVAILABLE", "NO_LEADER"]);
  assert.equal(error.message, "refused with NO_LEADER");
  assert.deepEqual(error.metadata, { max: "7" });
});

test("no retry begins after the deadline", async () => {
  const { handlers, ids } = puts(noLeader());
  await using server = await fake(handlers);
  const clock = new TestClock();
  using client = new TestClient({ endpoints: server.url, timeoutMs: 60_000 }, clock);
  // 50 + 100 + 200 fit into 400 ms, 400 more do not.
  assert.equal((await failureOf(client.put("a", 1, { timeoutMs: 400 }))).reason, "NO_LEADER");
  assert.equal(ids.length, 4);
  assert.deepEqual(clock.sleeps, [50, 100, 200]);
});

test("a wait that the server asks for beyond the deadline is not begun", async () => {
  const { handlers, ids } = puts(noLeader(5_000));
  await using server = await fake(handlers);
  using client = new Client({ endpoints: server.url });
  assert.equal((await failureOf(client.put("a", 1))).reason, "NO_LEADER");
  assert.equal(ids.length, 1);
});

for (const [code, reason, kind] of [
  [Code.InvalidArgument, "LIMIT_EXCEEDED", "invalid-argument"],
  [Code.InvalidArgument, "INVALID_JSON", "invalid-argument"],
  [Code.Aborted, "VERSION_MISMATCH", "version-mismatch"],
  [Code.DataLoss, "CORRUPTION", "corruption"],
  [Code.Internal, "INTERNAL", "other"],
  [Code.FailedPrecondition, "FAILED_PRECONDITION", "other"],
] as const) {
  test(`${reason} is ${kind} and final`, async () => {
    const { handlers, ids } = puts(refusal(code, reason), 1n);
    await using server = await fake(handlers);
    using client = new TestClient({ endpoints: server.url }, new TestClock());
    const error = await failureOf(client.put("a", 1));
    assert.deepEqual([error.kind, error.reason], [kind, reason]);
    assert.equal(ids.length, 1);
  });
}

test("an unknown outcome is repeated, for writes and for reads", async () => {
  const { handlers, ids } = puts(outcomeUnknown(), 3n);
  let gets = 0;
  handlers.get = () => {
    if (gets++ === 0) {
      throw outcomeUnknown();
    }
    return { key: "a", version: 3n, content: { case: "value", value: "1" } };
  };
  await using server = await fake(handlers);
  using client = new TestClient({ endpoints: server.url }, new TestClock());
  assert.equal(await client.put("a", 1), 3n);
  assert.equal(new Set(ids).size, 1);
  assert.equal((await client.get("a"))?.version, 3n);
});

const cut = () => new ConnectError("connection reset", Code.Unavailable);

for (const [name, first, then, kind, attempts] of [
  // Tells of its own attempt only.
  ["NO_LEADER", cut, noLeader, "outcome-unknown", 11],
  ["OVERLOADED", outcomeUnknown, () => refusal(Code.ResourceExhausted, "OVERLOADED"), "outcome-unknown", 11],
  ["UNAUTHENTICATED", cut, () => refusal(Code.Unauthenticated, "UNAUTHENTICATED"), "outcome-unknown", 2],
  ["PERMISSION_DENIED", outcomeUnknown, () => refusal(Code.PermissionDenied, "PERMISSION_DENIED"), "outcome-unknown", 2],
  ["INTERNAL", outcomeUnknown, () => refusal(Code.Internal, "INTERNAL"), "outcome-unknown", 2],
  ["CORRUPTION", outcomeUnknown, () => refusal(Code.DataLoss, "CORRUPTION"), "outcome-unknown", 2],
  ["DEADLINE_EXCEEDED", outcomeUnknown, () => refusal(Code.DeadlineExceeded, "DEADLINE_EXCEEDED"), "outcome-unknown", 2],
  ["a proxy's INVALID_ARGUMENT", cut, () => new ConnectError("no", Code.InvalidArgument), "outcome-unknown", 2],
  ["a proxy's FAILED_PRECONDITION", cut, () => new ConnectError("no", Code.FailedPrecondition), "outcome-unknown", 2],
  // The server has looked at the request: it answers for the first attempt, too.
  ["VERSION_MISMATCH", cut, mismatch, "version-mismatch", 2],
  ["INVALID_ARGUMENT", outcomeUnknown, () => refusal(Code.InvalidArgument, "LIMIT_EXCEEDED"), "invalid-argument", 2],
  ["FAILED_PRECONDITION", outcomeUnknown, () => refusal(Code.FailedPrecondition, "READ_ONLY"), "other", 2],
] as const) {
  test(`an unknown outcome followed by ${name} is ${kind}`, async () => {
    const { handlers, ids } = puts(first(), then());
    await using server = await fake(handlers);
    using client = new TestClient({ endpoints: server.url, timeoutMs: 60_000 }, new TestClock());
    const error = await failureOf(client.put("a", 1));
    assert.equal(error.kind, kind);
    assert.equal(ids.length, attempts);
    assert.equal(new Set(ids).size, 1);
    if (kind === "outcome-unknown") {
      const unknown = first === cut ? ["UNAVAILABLE", ""] : ["DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN"];
      assert.deepEqual([error.code, error.reason], unknown, "it is told of the attempt that left it open");
      assert.ok(error.cause instanceof KvError && error.cause.kind !== "outcome-unknown", "and of the last one");
    }
  });
}

test("attempts that were certainly not applied leave nothing open", async () => {
  const { handlers } = puts(noLeader(), refusal(Code.ResourceExhausted, "OVERLOADED"));
  await using server = await fake(handlers);
  using client = new TestClient({ endpoints: server.url }, new TestClock());
  assert.equal((await failureOf(client.put("a", 1))).kind, "overloaded");
});

for (const [code, called, read] of [
  [Code.Unavailable, "UNAVAILABLE", "unavailable"],
  [Code.Canceled, "UNAVAILABLE", "unavailable"],
  [Code.Unknown, "UNAVAILABLE", "unavailable"],
  [Code.Internal, "UNAVAILABLE", "unavailable"],
  [Code.Aborted, "UNAVAILABLE", "unavailable"],
  [Code.ResourceExhausted, "RESOURCE_EXHAUSTED", "overloaded"],
  [Code.DeadlineExceeded, "DEADLINE_EXCEEDED", "deadline-exceeded"],
] as const) {
  test(`a bare ${Code[code]} is a failure of the transport`, async () => {
    const bare = (): never => {
      throw new ConnectError("made by the transport", code);
    };
    await using server = await fake({ put: bare, get: bare });
    using client = new TestClient({ endpoints: server.url }, new TestClock());
    for (const [call, kind] of [
      [() => client.put("a", 1), "outcome-unknown"],
      [() => client.get("a"), read],
    ] as const) {
      const error = await failureOf(call());
      assert.deepEqual([error.kind, error.code, error.reason], [kind, called, ""]);
    }
  });
}

test("a call stays with an endpoint that refuses it", async () => {
  const refusing = puts(refusal(Code.InvalidArgument, "INVALID_KEY"), new ConnectError("log in", Code.Unauthenticated));
  const other = puts(1n);
  await using first = await fake(refusing.handlers);
  await using second = await fake(other.handlers);
  using client = new TestClient({ endpoints: [first.url, second.url] }, new TestClock());
  for (const code of ["INVALID_ARGUMENT", "UNAUTHENTICATED", "UNAUTHENTICATED"]) {
    assert.equal((await failureOf(client.put("a", 1))).code, code);
  }
  assert.equal(other.ids.length, 0);
});

test("a call goes to the next endpoint after a failure, and the next call stays there", async () => {
  const bad = puts(noLeader());
  const good = puts(1n);
  await using first = await fake(bad.handlers);
  await using second = await fake(good.handlers);
  using client = new TestClient({ endpoints: [first.url, second.url] }, new TestClock());
  await client.put("a", 1);
  await client.put("b", 1);
  assert.equal(bad.ids.length, 1);
  assert.equal(good.ids.length, 2);
  assert.equal(bad.ids[0], good.ids[0]);
});

test("an endpoint where nobody listens is passed over, also by a write, and each has one connection", async () => {
  const good = puts(1n);
  await using server = await fake(good.handlers);
  using client = new TestClient({ endpoints: [await deadUrl(), server.url] }, new TestClock());
  await Promise.all(Array.from({ length: 20 }, (_, n) => client.put(`k${n}`, n)));
  assert.equal(good.ids.length, 20);
  assert.equal(server.connections(), 1);
});

for (const transport of ["grpc", "grpc-web"] as const) {
  test(`${transport}: a bare failure of the transport during a write is an unknown outcome, during a read unavailable`, async () => {
    await using server = await fake({ put: () => crash(), get: () => crash() }, transport);
    const crash = (): never => {
      server.crash();
      throw new Error("never arrives");
    };
    using client = new TestClient({ endpoints: server.url, transport }, new TestClock());
    for (const [call, kind] of [
      [() => client.put("a", 1), "outcome-unknown"],
      [() => client.get("a"), "unavailable"],
    ] as const) {
      const error = await failureOf(call());
      assert.deepEqual([error.kind, error.code, error.reason], [kind, "UNAVAILABLE", ""]);
      assert.ok(error.cause instanceof Error);
    }
  });

  test(`${transport}: a write that was cut off is repeated with its id on the next endpoint`, async () => {
    const ids: (string | undefined)[] = [];
    const good = puts(5n);
    await using first = await fake({ put: (request) => cut(request.requestId) }, transport);
    const cut = (id: string | undefined): never => {
      ids.push(id);
      first.crash();
      throw new Error("never arrives");
    };
    await using second = await fake(good.handlers, transport);
    using client = new TestClient({ endpoints: [first.url, second.url], transport }, new TestClock());
    assert.equal(await client.put("a", 1), 5n);
    assert.deepEqual(ids, good.ids);
  });

  test(`${transport}: a server that never answers costs the deadline, and the next call goes elsewhere`, async () => {
    const timeouts: (string | null)[] = [];
    const hanging: Handlers = {
      put: (request, context) => {
        timeouts.push(context.requestHeader.get("grpc-timeout"));
        return hang(request, context);
      },
      get: hang,
    };
    const good = puts(1n);
    await using first = await fake(hanging, transport);
    await using second = await fake({ ...good.handlers, get: hang, stats: () => ({ node: "second" }) }, transport);
    using client = new Client({ endpoints: [first.url, second.url], transport, timeoutMs: 60_000 });

    const write = await failureOf(client.put("a", 1, { timeoutMs: 80 }));
    assert.deepEqual([write.kind, write.code, write.reason], ["outcome-unknown", "DEADLINE_EXCEEDED", ""]);
    assert.match(timeouts[0] ?? "", /^([1-7]?\d|80)m$/, "the server is told what is left of the deadline");
    assert.equal(await client.put("a", 1), 1n);

    const read = await failureOf(client.get("a", { timeoutMs: 80 }));
    assert.deepEqual([read.kind, read.code], ["deadline-exceeded", "DEADLINE_EXCEEDED"]);
    // The second has not answered that one: the next call goes to the first again, which serves no stats.
    assert.equal((await failureOf(client.stats())).code, "UNIMPLEMENTED");
  });

  test(`${transport}: a signal cancels the call; a write that was on its way is unknown`, async () => {
    const abort = new AbortController();
    const arrived = (request: unknown, context: Parameters<typeof hang>[1]) => {
      abort.abort(new Error("changed my mind"));
      return hang(request, context);
    };
    await using server = await fake({ put: arrived }, transport);
    using client = new Client({ endpoints: server.url, transport });
    const write = await failureOf(client.put("a", 1, { signal: abort.signal }));
    assert.deepEqual([write.kind, write.code], ["outcome-unknown", "CANCELLED"]);
    assert.equal((write.cause as Error).message, "changed my mind");

    const late = await failureOf(client.put("a", 1, { signal: abort.signal }));
    assert.deepEqual([late.kind, late.code], ["other", "CANCELLED"], "this one was never sent");
  });
}

test("what breaks when the deadline has passed is the deadline, and its endpoint is left", async () => {
  let now = 0;
  const clock: Clock = { now: () => now, random: () => 1, sleep: async () => undefined };
  const late = (code: Code): Handlers => ({
    get: () => {
      now += 6_000;
      throw new ConnectError("timeout expired", code);
    },
  });
  await using first = await fake(late(Code.Canceled));
  await using second = await fake({
    get: () => {
      throw refusal(Code.DeadlineExceeded, "DEADLINE_EXCEEDED");
    },
  });
  using client = new TestClient({ endpoints: [first.url, second.url] }, clock);
  const asked: string[] = [];
  for (let n = 0; n < 3; n++) {
    const error = await failureOf(client.get("a"));
    assert.deepEqual([error.kind, error.code], ["deadline-exceeded", "DEADLINE_EXCEEDED"]);
    asked.push(error.reason);
  }
  assert.deepEqual(asked, ["", "DEADLINE_EXCEEDED", ""]);
});

test("a signal ends the wait before a retry", { timeout: 10_000 }, async () => {
  const { handlers, ids } = puts(noLeader(60_000));
  await using server = await fake(handlers);
  const abort = new AbortController();
  const clock: Clock = {
    ...SYSTEM_CLOCK,
    sleep: (ms, signal) => {
      const slept = SYSTEM_CLOCK.sleep(ms, signal);
      abort.abort();
      return slept;
    },
  };
  using client = new TestClient({ endpoints: server.url, timeoutMs: 600_000 }, clock);
  const error = await failureOf(client.put("a", 1, { signal: abort.signal }));
  assert.deepEqual([error.kind, error.code], ["other", "CANCELLED"]);
  assert.equal(ids.length, 1);
});

test("only kvstore's own ErrorInfo is an answer of kvstore", async () => {
  const foreign = refusal(Code.Unavailable, "NO_HEALTHY_UPSTREAM", undefined, "proxy.example");
  const { handlers } = puts(foreign);
  await using server = await fake(handlers);
  using client = new TestClient({ endpoints: server.url }, new TestClock());
  const error = await failureOf(client.put("a", 1));
  assert.deepEqual([error.kind, error.code, error.reason, error.metadata], ["outcome-unknown", "UNAVAILABLE", "", {}]);
});

test("a port that serves something else is told apart from a failure", async () => {
  await using server = await fake({});
  using client = new TestClient({ endpoints: server.url }, new TestClock());
  const error = await failureOf(client.put("a", 1));
  assert.deepEqual([error.kind, error.code, error.reason], ["other", "UNIMPLEMENTED", ""]);
});

test("nothing is sent after close", async () => {
  const { handlers, ids } = puts(1n);
  await using server = await fake(handlers);
  const client = new Client({ endpoints: server.url });
  await client.put("a", 1);
  client.close();
  assert.equal((await failureOf(client.put("a", 1))).message, "the client is closed");
  assert.equal(ids.length, 1);
});

test("timeouts must be above 0 and finite", async () => {
  using client = new Client();
  for (const timeoutMs of [0, -1, NaN, Infinity]) {
    assert.throws(() => new Client({ timeoutMs }), { name: "KvError", kind: "invalid-argument" });
    assert.equal((await failureOf(client.get("a", { timeoutMs }))).kind, "invalid-argument");
  }
});
