// How a call finds its answer: endpoints with failover, one deadline over all attempts, retries with full jitter.
//
// Calls stay with the endpoint that answers. After a failure that may be retried, or a deadline, the next one is taken.

import { createClient, type CallOptions as AttemptOptions, type Client, type Transport } from "@connectrpc/connect";

import { KvService } from "../gen/kvstore/v1/kv_pb.js";
import { cancelled, failureOf, invalid, KvError, settles } from "./errors.js";

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
  /** Closes its connections. */
  close?(): void;
}

/** The generated client of one endpoint. */
export type Stub = Client<typeof KvService>;

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
   * it must then carry the same request id each time.
   */
  async run<T>(
    write: boolean,
    options: CallOptions,
    attempt: (stub: Stub, options: AttemptOptions) => Promise<T>,
  ): Promise<T> {
    const { signal } = options;
    const attempts = new Attempts(this, write, signal, this.deadline(options));
    for (;;) {
      const { endpoint, stub } = attempts.next();
      try {
        return await attempt(stub, { ...(signal && { signal }), timeoutMs: attempts.leftMs() });
      } catch (thrown) {
        await attempts.failed(endpoint, thrown);
      }
    }
  }

  /** The endpoint whose turn it is. */
  current(): { endpoint: number; stub: Stub } {
    const endpoint = this.#current;
    const url = this.#endpoints[endpoint] as string;
    let open = this.#channels.get(url);
    if (open === undefined) {
      const channel = this.#open(url);
      open = { channel, stub: createClient(KvService, channel.transport) };
      this.#channels.set(url, open);
    }
    return { endpoint, stub: open.stub };
  }

  /** Ends the turn of an endpoint, unless another call has done so already. */
  leave(endpoint: number): void {
    if (this.#current === endpoint) {
      this.#current = (endpoint + 1) % this.#endpoints.length;
    }
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

  /** Where the next attempt goes. */
  next(): { endpoint: number; stub: Stub } {
    if (this.calls.closed) {
      throw this.#end(new KvError("other", "CANCELLED", "", "the client is closed"));
    }
    if (this.signal?.aborted) {
      throw this.#end(cancelled(this.signal, false));
    }
    return this.calls.current();
  }

  /** Takes in what an attempt at an endpoint has thrown: waits until the next one is to be made, or throws what the call has come to. */
  async failed(endpoint: number, thrown: unknown): Promise<void> {
    const { calls, signal, deadline } = this;
    if (signal?.aborted) {
      throw this.#end(cancelled(signal, this.write));
    }
    const { error, retryAfterMs } = failureOf(thrown, this.write, calls.clock.now() >= deadline);
    if (error.kind === "outcome-unknown") {
      this.#unknown = error;
    }
    const retryable = error.kind === "unavailable" || error.kind === "overloaded" || error.kind === "outcome-unknown";
    if (retryable || error.code === "DEADLINE_EXCEEDED") {
      calls.leave(endpoint);
    }
    const waitMs = Math.max(backoffMs(this.#retries + 1, calls.clock.random()), retryAfterMs);
    if (!retryable || this.#retries === RETRIES_MAX || calls.clock.now() + waitMs >= deadline) {
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

function checkedTimeoutMs(timeoutMs: number): number {
  if (!(timeoutMs > 0 && timeoutMs < Infinity)) {
    throw invalid("INVALID_OPTION", `timeoutMs is ${timeoutMs}; it must be above 0 and finite`);
  }
  return timeoutMs;
}
