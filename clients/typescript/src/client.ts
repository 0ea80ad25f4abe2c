// The client, the same in Node and in browsers; `node.ts` and `browser.ts` add the transport and the default endpoints.
//
// Arguments that protobuf could not carry (a key with half a surrogate pair, a ttl of 1.5) are refused here, in the words of the
// server. Everything else is for the server to judge.

import { create, type MessageInitShape } from "@bufbuild/protobuf";

import {
  BatchGetRequestSchema,
  BatchPutRequestSchema,
  Consistency as ConsistencyEnum,
  DeleteRequestSchema,
  GetRequestSchema,
  PutRequestSchema,
  RangeRequestSchema,
  type StatsResponse,
} from "../gen/kvstore/v1/kv_pb.js";
import { Calls, SYSTEM_CLOCK, type CallOptions, type Channel, type Clock } from "./calls.js";
import { Entry } from "./entry.js";
import { invalid, KvError } from "./errors.js";
import type { Router } from "./routing.js";
import { Scan } from "./scan.js";

export interface ClientOptions {
  /**
   * `http://host:port`, `https://host:port` or `host:port`; the port of a url may be left out. Default: `KVSTORE_ENDPOINTS` (comma separated), else
   * `http://127.0.0.1:9090`; in browsers the page's origin.
   */
  endpoints?: string | readonly string[] | undefined;
  /** Node: `grpc` (default, the gRPC port) or `grpc-web` (the HTTP port). Browsers always speak `grpc-web`. */
  transport?: "grpc" | "grpc-web" | undefined;
  /** Milliseconds for a call with all its retries. Default 5000. */
  timeoutMs?: number | undefined;
  /**
   * Node with `grpc`: whether operations on one key go straight to the node that leads its shard, at the address that the cluster names, where that can be
   * reached. Default true; never with an own `connect`, nor where an endpoint is `https`.
   */
  routing?: boolean | undefined;
  /** Opens the way to an endpoint in place of `transport`: own certificates, interceptors, proxies. */
  connect?: ((endpoint: string) => Channel) | undefined;
}

export interface WriteOptions extends CallOptions {
  /** The caller's own id of this write, 1 to 64 bytes. Default: a random one for each call, kept over its retries. */
  requestId?: string | undefined;
}

export interface DeleteOptions extends WriteOptions {
  /** Only if the key's version is this one; `0n`: only if the key is absent. Otherwise `version-mismatch`. */
  ifVersion?: bigint | undefined;
}

export interface PutOptions extends DeleteOptions {
  /** Seconds until the key expires, at least 1. Absent: it does not expire. */
  ttl?: number | undefined;
}

export interface BatchPutOptions extends WriteOptions {
  /** Seconds until every one of the keys expires, at least 1. Absent: they do not expire. */
  ttl?: number | undefined;
}

/** Many keys with their values. An object's own members, or a map. */
export type Entries<T> = ReadonlyMap<string, T> | Readonly<Record<string, T>>;

/** How fresh a read must be. Default `linearizable`; `lease` only where the operator has switched leases on. */
export type Consistency = "linearizable" | "stale" | "lease";

export interface ReadOptions extends CallOptions {
  consistency?: Consistency | undefined;
}

export interface ScanOptions extends ReadOptions {
  /** Only keys that begin with this text. */
  prefix?: string | undefined;
  /** First key. */
  start?: string | undefined;
  /** First key beyond the range. */
  end?: string | undefined;
  /** Most entries in all, at least 1. */
  limit?: number | undefined;
  /** From the last key to the first. */
  reverse?: boolean | undefined;
  /** Leave the values out. */
  keysOnly?: boolean | undefined;
}

export interface RangeOptions extends ScanOptions {
  /** Entries fetched at once, 1 to 10,000. Default: the server's, 1000. */
  pageSize?: number | undefined;
}

/** Counts of the node that answered, in all and for each shard. */
export type Stats = Omit<StatsResponse, "$typeName" | "$unknown">;

const TIMEOUT_MS = 5_000;
const PAGE_SIZE = 1_000;
const U32_MAX = 0xffff_ffff;
const U64_MAX = 0xffff_ffff_ffff_ffffn;

const CONSISTENCY = {
  linearizable: ConsistencyEnum.LINEARIZABLE,
  stale: ConsistencyEnum.STALE,
  lease: ConsistencyEnum.LEASE,
} as const;

/** What `Client` of Node and `Client` of browsers have in common. */
export abstract class BaseClient {
  readonly #calls: Calls;

  /** @internal */
  protected constructor(
    options: ClientOptions,
    endpoints: string,
    connect: (endpoint: string) => Channel,
    route?: (calls: Calls) => Router,
    clock: Clock = SYSTEM_CLOCK,
  ) {
    const given = options.endpoints ?? endpoints;
    const list = (typeof given === "string" ? given.split(",") : given).map(endpointUrl);
    if (list.length === 0) {
      throw invalid("INVALID_ENDPOINT", "endpoints is empty; at least one is needed");
    }
    this.#calls = new Calls(list, options.connect ?? connect, options.timeoutMs ?? TIMEOUT_MS, clock);
    if (options.routing !== false && options.connect === undefined && list.every((url) => url.startsWith("http:"))) {
      this.#calls.router = route?.(this.#calls);
    }
  }

  /** Stores `value` as JSON, replacing what was there together with its expiry. Returns the key's new version. */
  async put(key: string, value: unknown, options: PutOptions = {}): Promise<bigint> {
    return this.#put(key, { case: "value", value: jsonText(value) }, options);
  }

  /** Stores text that is JSON already, byte for byte. */
  async putText(key: string, value: string, options: PutOptions = {}): Promise<bigint> {
    return this.#put(key, { case: "value", value: valueText(value) }, options);
  }

  /** Stores any bytes. */
  async putRaw(key: string, value: Uint8Array, options: PutOptions = {}): Promise<bigint> {
    if (!(value instanceof Uint8Array)) {
      throw invalid("INVALID_VALUE", "the raw value must be a Uint8Array");
    }
    return this.#put(key, { case: "raw", value }, options);
  }

  async #put(
    key: string,
    content: MessageInitShape<typeof PutRequestSchema>["content"] & object,
    options: PutOptions,
  ): Promise<bigint> {
    const request = create(PutRequestSchema, { key: keyText(key), content, ...conditions(options), ...expiry(options) });
    const answer = await this.#calls.run(true, options, (stub, call) => stub.put(request, call), key);
    return answer.version;
  }

  /** Reads one key; `undefined` when it is missing or has expired. */
  async get(key: string, options: ReadOptions = {}): Promise<Entry | undefined> {
    const request = create(GetRequestSchema, { key: keyText(key), ...freshness(options) });
    // The copy at hand is any node's.
    const routed = options.consistency === "stale" ? undefined : key;
    try {
      return new Entry(await this.#calls.run(false, options, (stub, call) => stub.get(request, call), routed));
    } catch (error) {
      if (error instanceof KvError && error.reason === "KEY_NOT_FOUND") {
        return undefined;
      }
      throw error;
    }
  }

  /** Removes one key. Returns whether it was there. */
  async delete(key: string, options: DeleteOptions = {}): Promise<boolean> {
    const request = create(DeleteRequestSchema, { key: keyText(key), ...conditions(options) });
    const answer = await this.#calls.run(true, options, (stub, call) => stub.delete(request, call), key);
    return answer.deleted;
  }

  /**
   * Stores many values as JSON. Each shard's part is applied whole or not at all; over all shards the batch is not atomic.
   * Returns how many were stored.
   */
  async batchPut(entries: Entries<unknown>, options: BatchPutOptions = {}): Promise<number> {
    return this.#batchPut(entries, jsonText, options);
  }

  /** As `batchPut`, of texts that are JSON already. */
  async batchPutText(entries: Entries<string>, options: BatchPutOptions = {}): Promise<number> {
    return this.#batchPut(entries, valueText, options);
  }

  async #batchPut(entries: Entries<unknown>, encode: (value: unknown) => string, options: BatchPutOptions): Promise<number> {
    const pairs = entries instanceof Map ? [...entries] : Object.entries(entries);
    const request = create(BatchPutRequestSchema, { ...conditions(options), ...expiry(options) });
    // `fromEntries` and not assignment, which would take the key `__proto__` for something else.
    request.entries = Object.fromEntries(pairs.map(([key, value]) => [keyText(key), encode(value)]));
    const answer = await this.#calls.run(true, options, (stub, call) => stub.batchPut(request, call));
    return answer.count;
  }

  /** Reads many keys, in the order of `keys`; missing ones are left out. */
  async batchGet(keys: Iterable<string>, options: ReadOptions = {}): Promise<Entry[]> {
    const request = create(BatchGetRequestSchema, { keys: Array.from(keys, keyText), ...freshness(options) });
    const answer = await this.#calls.run(false, options, (stub, call) => stub.batchGet(request, call));
    return answer.items.map((item) => new Entry(item));
  }

  /** The keys of a range, in order, fetched page by page as the loop goes. Each page is a call with its own deadline and retries. */
  async *range(options: RangeOptions = {}): AsyncGenerator<Entry, void, undefined> {
    const request = create(RangeRequestSchema, { ...bounds(options), ...freshness(options) });
    const { pageSize } = options;
    const pageMax = pageSize === undefined ? PAGE_SIZE : uint("pageSize", pageSize, "INVALID_LIMIT");
    let left = limitOf(options) ?? Infinity;
    do {
      // Without a limit a page is as large as the operator of the server has decided.
      if (pageSize !== undefined || left < PAGE_SIZE) {
        request.limit = Math.min(left, pageMax);
      }
      const page = await this.#calls.run(false, options, (stub, call) => stub.range(request, call));
      const items = page.items.slice(0, left);
      for (const item of items) {
        yield new Entry(item);
      }
      left -= items.length;
      request.pageToken = page.nextPageToken;
    } while (left > 0 && request.pageToken !== "");
  }

  /**
   * The keys of a range, in order, over one stream. Leaving the loop closes the stream; one that breaks is taken up behind its last key.
   * `timeoutMs` is for the whole scan; without it the client's bounds the wait for each entry.
   */
  async *scan(options: ScanOptions = {}): AsyncGenerator<Entry, void, undefined> {
    const limit = limitOf(options);
    const request = { ...bounds(options), ...freshness(options), ...(limit !== undefined && { limit: BigInt(limit) }) };
    const scan = new Scan(this.#calls, request, options);
    try {
      for (let item = await scan.next(); item !== undefined; item = await scan.next()) {
        yield new Entry(item);
      }
    } finally {
      await scan.close();
    }
  }

  /** Counts what is stored and what was done on the node that answers. */
  stats(options: CallOptions = {}): Promise<Stats> {
    return this.#calls.run(false, options, (stub, call) => stub.stats({}, call));
  }

  /** Closes all connections. Calls that are on their way fail, later ones as well. */
  close(): void {
    this.#calls.close();
  }
}

function endpointUrl(endpoint: string): string {
  const text = endpoint.trim();
  try {
    const { protocol, host, origin, href } = new URL(text.includes("://") ? text : `http://${text}`);
    // Whatever else a url can have, a path or a user, has no meaning here. A url keeps the port only if it is not the scheme's.
    if (/^https?:$/.test(protocol) && href === `${origin}/` && (text.includes("://") || /:\d+\/?$/.test(text))) {
      return `${protocol}//${host}`;
    }
  } catch {
    // As other texts that are no endpoints.
  }
  throw invalid("INVALID_ENDPOINT", `endpoint ${JSON.stringify(endpoint)} is not http://host:port, https://host:port or host:port`);
}

/** A string that UTF-8 can carry: `TextEncoder` would replace half a surrogate pair, and make two keys one. */
function text(value: unknown, what: string, reason: string): string {
  if (typeof value !== "string" || /\p{Surrogate}/u.test(value)) {
    throw invalid(reason, `${what} must be a string without lone surrogates`);
  }
  return value;
}

function keyText(key: string): string {
  return text(key, "a key", "INVALID_KEY");
}

function valueText(value: unknown): string {
  return text(value, "a value", "INVALID_JSON");
}

function jsonText(value: unknown): string {
  const encoded = JSON.stringify(value) as string | undefined;
  if (encoded === undefined) {
    throw invalid("INVALID_JSON", `a value of type ${typeof value} has no JSON form`);
  }
  return encoded;
}

function uint(name: string, value: number, reason: string, max = U32_MAX): number {
  if (!Number.isInteger(value) || value < 0 || value > max) {
    throw invalid(reason, `${name} is ${value}; it must be a whole number from 0 to ${max}`);
  }
  return value;
}

function limitOf({ limit }: ScanOptions): number | undefined {
  return limit === undefined ? undefined : uint("limit", limit, "INVALID_LIMIT", Number.MAX_SAFE_INTEGER);
}

function expiry({ ttl }: PutOptions): { ttl?: number } {
  return ttl === undefined ? {} : { ttl: uint("ttl", ttl, "INVALID_TTL") };
}

/** The fields that every write has: made once for each call, so that its retries are one write. */
function conditions({ ifVersion, requestId }: DeleteOptions): { ifVersion?: bigint; requestId: string } {
  const id = requestId === undefined ? randomId() : text(requestId, "requestId", "INVALID_REQUEST_ID");
  if (ifVersion === undefined) {
    return { requestId: id };
  }
  if (typeof ifVersion !== "bigint" || ifVersion < 0n || ifVersion > U64_MAX) {
    throw invalid("INVALID_VERSION", `ifVersion is ${ifVersion}; it must be a bigint from 0n to ${U64_MAX}n`);
  }
  return { ifVersion, requestId: id };
}

/** 128 random bits. `crypto.randomUUID` has fewer and is missing on pages that came over plain HTTP. */
function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function freshness({ consistency }: ReadOptions): { consistency?: ConsistencyEnum } {
  if (consistency === undefined) {
    return {};
  }
  const known = CONSISTENCY[consistency];
  if (known === undefined) {
    throw invalid("INVALID_CONSISTENCY", `consistency is ${consistency}; known are ${Object.keys(CONSISTENCY).join(", ")}`);
  }
  return { consistency: known };
}

function bounds({ prefix, start = "", end = "", reverse, keysOnly }: ScanOptions) {
  return {
    startKey: text(start, "start", "INVALID_KEY"),
    endKey: text(end, "end", "INVALID_KEY"),
    ...(prefix !== undefined && { prefix: text(prefix, "prefix", "INVALID_KEY") }),
    reverse: reverse === true,
    keysOnly: keysOnly === true,
  };
}
