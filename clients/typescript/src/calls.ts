// How a call finds its answer: endpoints with failover, one deadline over all attempts, retries with full jitter.
//
// Calls stay with the endpoint that answers. After a failure that may be retried, or a deadline, the next one is taken.

import { ConnectError, createClient, type CallOptions as AttemptOptions, type Client, type Transport } from "@connectrpc/connect";

import { KvService } from "../gen/kvstore/v1/kv_pb.js";
import { cancelled, failureOf, invalid, KvError, settles } from "./errors.js";
import type { Router } from "./routing.js";

/** Options of every call. */
export interface CallOptions {
  /** Milliseconds for the call with all its retries. Default: the client's, 5000. */
  timeoutMs?: number | undefined;
  /** Cancels the call. */
  signal?: AbortSignal | undefined;
}

/** A way to one endpoint. */
export interface Channel {
  readonly transport: Transport;
  /** Connects, and tells whether the node serves. Without it no operation is routed there. */
  serves?(): Promise<boolean>;
  /** Closes its connections. */
  close?(): void;
}

/** The generated client of one endpoint. */
export type Stub = Client<typeof KvService>;

/** Where an attempt goes: an endpoint by its number, or a shard's leader by its url. */
export interface Place {
  readonly endpoint: number | string;
  readonly stub: Stub;
}

/** What retries are made of; tests bring their own. */
export interface Clock {
  now(): number;
  random(): number;
  sleep(ms: number, signal: AbortSignal | undefined): Promise<void>;
}

/** Most retries of one call. */
const RETRIES_MAX = 10;
/** Upper bound of the wait before the first retry; doubles with every further one. */
const BACKOFF_FIRST_MS = 50;
/** Upper bound of every wait that the server does not ask for. */
const BACKOFF_MAX_MS = 2_000;
/** The header `grpc-timeout` has eight digits: 27 hours. */
const TIMEOUT_MAX_MS = 99_999_999;

/** The wait before retry `n`, from 1: anything in [0, min(2 s, 50 ms * 2^(n-1))], so that clients that failed together do not return together. */
export function backoffMs(n: number, random: number): number {
  return random * Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** (n - 1));
}

/** Waits, or rejects with the signal's reason when it fires before. */
function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", abort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", abort, { once: true });
  });
}

export const SYSTEM_CLOCK: Clock = { now: () => performance.now(), random: Math.random, sleep };

/** Runs calls against a list of endpoints. */
export class Calls {
  readonly #endpoints: readonly string[];
  readonly #open: (endpoint: string) => Channel;
  /** The deadline of calls that bring none. */
  readonly timeoutMs: number;
  readonly clock: Clock;
  /** Opened at first use. */
  readonly #channels = new Map<string, { channel: Channel; stub: Stub }>();
  /** Index of the endpoint that the next attempt goes to. */
  #current = 0;
  #closed = false;
  /** Knows the leaders of keys. `undefined`: every call goes to an endpoint. */
  router: Router | undefined;

  constructor(endpoints: readonly string[], open: (endpoint: string) => Channel, timeoutMs: number, clock: Clock) {
    this.#endpoints = endpoints;
    this.#open = open;
    this.timeoutMs = checkedTimeoutMs(timeoutMs);
    this.clock = clock;
  }

  get closed(): boolean {
    return this.#closed;
  }

  close(): void {
    this.#closed = true;
    for (const { channel } of this.#channels.values()) {
      channel.close?.();
    }
  }

  /** When a call that begins now has to be done. */
  deadline({ timeoutMs = this.timeoutMs }: CallOptions): number {
    return this.clock.now() + checkedTimeoutMs(timeoutMs);
  }

  /**
   * Runs `attempt` until it has an answer, may not be retried, or time is up. `write` says whether an attempt changes anything;
   * it must then carry the same request id each time. The first goes to the leader of `key`, the others to the endpoints.
   */
  async run<T>(
    write: boolean,
    options: CallOptions,
    attempt: (stub: Stub, options: AttemptOptions) => Promise<T>,
    key?: string,
  ): Promise<T> {
    const { signal } = options;
    const attempts = new Attempts(this, write, signal, this.deadline(options));
    for (let to = key; ; to = undefined) {
      const { endpoint, stub } = attempts.next(to);
      const { router } = this;
      const routed = router && { headers: router.headers(), onHeader: router.heard, onTrailer: router.heard };
      try {
        return await attempt(stub, { ...routed, ...(signal && { signal }), timeoutMs: attempts.leftMs() });
      } catch (thrown) {
        router?.heard(ConnectError.from(thrown).metadata); // What came with an error is in it, and goes to no callback.
        await attempts.failed(endpoint, thrown);
      }
    }
  }

  /** The endpoint whose turn it is. */
  current(): Place {
    const endpoint = this.#current;
    return { endpoint, stub: this.open(this.#endpoints[endpoint] as string).stub };
  }

  /** The way to a node, opened at first use, and never after `close`, which could not close it. */
  open(url: string): { channel: Channel; stub: Stub } {
    let open = this.#channels.get(url);
    if (open === undefined) {
      if (this.#closed) {
        throw closed();
      }
      const channel = this.#open(url);
      open = { channel, stub: createClient(KvService, channel.transport) };
      this.#channels.set(url, open);
    }
    return open;
  }

  /** The nodes to which a way is open that are no endpoints. */
  others(): string[] {
    return [...this.#channels.keys()].filter((url) => !this.#endpoints.includes(url));
  }

  /** Closes the way to one of the others. */
  drop(url: string): void {
    this.#channels.get(url)?.channel.close?.();
    this.#channels.delete(url);
  }

  /** Ends the turn of an endpoint that has failed in a way that another one may not, unless another call has done so already. */
  failed(endpoint: number | string, error: KvError): void {
    if (!retryable(error) && error.code !== "DEADLINE_EXCEEDED") {
      return;
    }
    if (this.#current === endpoint) {
      this.#current = (endpoint + 1) % this.#endpoints.length;
    }
    this.router?.failed(endpoint, error);
  }
}

/** The attempts of one call, or of one step of a scan, under one deadline. */
export class Attempts {
  #retries = 0;
  /** The last failure that left the outcome open. */
  #unknown: KvError | undefined;

  constructor(
    private readonly calls: Calls,
    private readonly write: boolean,
    private readonly signal: AbortSignal | undefined,
    private readonly deadline: number,
  ) {}

  /** What is left of the time, in whole milliseconds as the header has them, and not 0, which Connect takes for "no timeout". */
  leftMs(): number {
    return Math.ceil(Math.min(Math.max(this.deadline - this.calls.clock.now(), 1), TIMEOUT_MAX_MS));
  }

  /** Where the next attempt goes: to the leader of `key` if it is known, else to an endpoint. */
  next(key?: string): Place {
    if (this.calls.closed) {
      throw this.#end(closed());
    }
    if (this.signal?.aborted) {
      throw this.#end(cancelled(this.signal, false));
    }
    return this.calls.router?.target(key) ?? this.calls.current();
  }

  /** Takes in what an attempt at an endpoint has thrown: waits until the next one is to be made, or throws what the call has come to. */
  async failed(endpoint: number | string, thrown: unknown): Promise<void> {
    const { calls, signal, deadline } = this;
    if (signal?.aborted) {
      throw this.#end(cancelled(signal, this.write));
    }
    const { error, retryAfterMs } = failureOf(thrown, this.write, calls.clock.now() >= deadline);
    if (error.kind === "outcome-unknown") {
      this.#unknown = error;
    }
    calls.failed(endpoint, error);
    const waitMs = Math.max(backoffMs(this.#retries + 1, calls.clock.random()), retryAfterMs);
    if (!retryable(error) || this.#retries === RETRIES_MAX || calls.clock.now() + waitMs >= deadline) {
      throw this.#end(error);
    }
    this.#retries++;
    await calls.clock.sleep(waitMs, signal).catch(() => undefined);
  }

  /**
   * What the call has come to when its last attempt has ended so. Once an attempt may have applied a write, only an answer about the request
   * itself tells more; any other failure tells about its own attempt.
   */
  #end(last: KvError): KvError {
    const unknown = this.#unknown;
    if (unknown === undefined || unknown === last || settles(last)) {
      return last;
    }
    return new KvError(unknown.kind, unknown.code, unknown.reason, unknown.message, unknown.metadata, { cause: last });
  }
}

function closed(): KvError {
  return new KvError("other", "CANCELLED", "", "the client is closed");
}

/** Whether another attempt may help. */
function retryable({ kind }: KvError): boolean {
  return kind === "unavailable" || kind === "overloaded" || kind === "outcome-unknown";
}

function checkedTimeoutMs(timeoutMs: number): number {
  if (!(timeoutMs > 0 && timeoutMs < Infinity)) {
    throw invalid("INVALID_OPTION", `timeoutMs is ${timeoutMs}; it must be above 0 and finite`);
  }
  return timeoutMs;
}
