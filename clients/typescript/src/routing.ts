// Sends operations on one key straight to the node that leads its shard; any other node would have to pass them on. Node only: the ring names
// gRPC ports, which browsers cannot speak to.
//
// The ring (which node leads each shard) is asked for in the background: at first use, when an answer tells of another epoch, when a node could not
// serve a call, and when the ring is old, because leaders also move without another epoch; at most once a second, and less often while the
// answer stays the same. Only leaders that are connected and serve are used; that
// too is seen to in the background. So no call waits for any of this: without a ring, a leader or a way to it, the endpoints are asked as they
// would be otherwise. A leader that fails a call is not used before the ring was asked for again; the call's retries go to the endpoints.

import xxhash, { type XXHashAPI } from "xxhash-wasm";

import type { GetRingResponse } from "../gen/kvstore/v1/kv_pb.js";
import type { Calls, Place } from "./calls.js";
import { failureOf, type KvError } from "./errors.js";

/** In calls the epoch of the client's ring, in answers that of the server's when it is another one. */
const EPOCH_HEADER = "kvstore-epoch";
/** Most nodes that are connected beside the endpoints; further leaders are reached over others. */
export const LEADERS_MAX = 64;
/** Between two questions for the ring; doubled, up to the second, while that brings nothing new. */
const PAUSE_FIRST_MS = 1_000;
const PAUSE_MAX_MS = 15_000;
/** When a ring is old. */
export const RING_KEPT_MS = 15_000;
/** How long the ring may take. */
const RING_TIMEOUT_MS = 5_000;
/** How long a connection to a node that leads nothing any more is kept: calls may be under way. */
export const UNUSED_KEPT_MS = 60_000;

/** Which of equal slices of the hash space a key falls into. */
export function shardOf({ h64 }: XXHashAPI, key: string, shards: number): number {
  return Number((h64(key) * BigInt(shards)) >> 64n);
}

/** Which node leads each shard. */
interface Ring {
  readonly epoch: string;
  /** The leader's url for each shard; empty where none is known. */
  readonly leaders: readonly string[];
}

/** Reads an answer; `undefined` where it is no ring. */
function ringOf({ epoch, shards, nodes, placements }: GetRingResponse): Ring | undefined {
  if (shards === 0 || shards !== placements.length) {
    return undefined;
  }
  const leaders = new Array<string>(shards).fill("");
  for (const { shard, leader } of placements) {
    const node = leader === undefined ? undefined : nodes[leader];
    if (shard >= shards || (leader !== undefined && node === undefined)) {
      return undefined;
    }
    leaders[shard] = node?.address ? `http://${node.address}` : "";
  }
  return { epoch: epoch.toString(), leaders };
}

export class Router {
  #hashes: XXHashAPI | undefined;
  #ring: Ring | undefined;
  /** Leaders that are connected and served when they were last asked. */
  readonly #ready = new Set<string>();
  /** Since when nodes lead nothing any more. */
  #unused = new Map<string, number>();
  /** Whether the ring is to be asked for, as soon as it may be. */
  #wanted = true;
  #learning = false;
  #pauseMs: number;
  #notBefore = -Infinity;
  /** When the ring will be old. */
  #old = Infinity;

  constructor(
    private readonly calls: Calls,
    private readonly pauseFirstMs = PAUSE_FIRST_MS,
  ) {
    this.#pauseMs = pauseFirstMs;
  }

  /** The leader of a key. `undefined`: an endpoint will do. */
  target(key: string | undefined): Place | undefined {
    if (this.#mayLearn()) {
      this.#learning = true;
      void this.#learn();
    }
    if (key === undefined || this.#ring === undefined || this.#hashes === undefined) {
      return undefined;
    }
    const { leaders } = this.#ring;
    const url = leaders[shardOf(this.#hashes, key, leaders.length)] ?? "";
    return this.#ready.has(url) ? { endpoint: url, stub: this.calls.open(url).stub } : undefined;
  }

  /** What goes with a call. */
  headers(): Record<string, string> {
    return this.#ring === undefined ? {} : { [EPOCH_HEADER]: this.#ring.epoch };
  }

  /** Looks into what came with an answer. */
  readonly heard = (headers: Headers): void => {
    const epoch = headers.get(EPOCH_HEADER);
    this.#wanted ||= epoch !== null && this.#ring !== undefined && epoch !== this.#ring.epoch;
  };

  /** A node has failed a call in a way that another one may not. `endpoint`: the url of a leader, or the number of an endpoint. */
  failed(endpoint: string | number, { kind }: KvError): void {
    if (this.#ring === undefined || kind === "overloaded") {
      return;
    }
    this.#ready.delete(String(endpoint));
    this.#wanted = true;
  }

  /** Whether to ask for the ring now: not while that is going on, nor when it was a moment ago. */
  #mayLearn(): boolean {
    const now = this.calls.clock.now();
    return (this.#wanted || now >= this.#old) && now >= this.#notBefore && !this.#learning && !this.calls.closed;
  }

  async #learn(): Promise<void> {
    try {
      this.#hashes ??= await xxhash();
      await Promise.all(this.#learned(await this.#ask()).map((url) => this.#check(url)));
    } catch {
      this.#learned(undefined); // There are no hashes, or the client was closed under this.
    } finally {
      this.#learning = false;
    }
  }

  async #ask(): Promise<GetRingResponse | undefined> {
    const { endpoint, stub } = this.calls.current();
    try {
      return await stub.getRing({}, { timeoutMs: RING_TIMEOUT_MS });
    } catch (thrown) {
      this.calls.failed(endpoint, failureOf(thrown, false, false).error);
      return undefined;
    }
  }

  /** Uses a leader once it serves. */
  async #check(url: string): Promise<void> {
    let serves = false;
    try {
      serves = (await this.calls.open(url).channel.serves?.()) === true;
    } catch {
      // It cannot be reached, or the address is none.
    }
    if (serves) {
      this.#ready.add(url);
    } else {
      this.#wanted = true;
    }
  }

  /** Takes in an answer; gives the leaders that are to be connected. */
  #learned(answer: GetRingResponse | undefined): string[] {
    const ring = answer && ringOf(answer);
    const now = this.calls.clock.now();
    const same = ring === undefined || String(ring.leaders) === String(this.#ring?.leaders);
    this.#pauseMs = same ? Math.min(2 * this.#pauseMs, PAUSE_MAX_MS) : this.pauseFirstMs;
    this.#notBefore = now + this.#pauseMs;
    if (ring === undefined || this.calls.closed) {
      return [];
    }
    this.#ring = ring;
    this.#wanted = false;
    this.#old = now + RING_KEPT_MS;
    const leading = new Set(ring.leaders.filter((url) => url !== ""));
    [...this.#ready].filter((url) => !leading.has(url)).forEach((url) => this.#ready.delete(url));
    const unused = new Map<string, number>();
    for (const url of this.calls.others().filter((other) => !leading.has(other))) {
      const since = this.#unused.get(url) ?? now;
      if (now - since > UNUSED_KEPT_MS) {
        this.calls.drop(url);
      } else {
        unused.set(url, since);
      }
    }
    this.#unused = unused;
    return [...leading].filter((url) => !this.#ready.has(url)).slice(0, LEADERS_MAX - this.#ready.size);
  }
}
