// How a call finds its answer: endpoints with failover, one deadline over all attempts, retries with full jitter.
//
// Calls stay with the endpoint that answers. After a failure that may be retried, or when no answer came at all, the next one is taken.

import { createClient, type CallOptions as AttemptOptions, type Client, type Transport } from "@connectrpc/connect";

import { KvService } from "../gen/kvstore/v1/kv_pb.js";
import { cancelled, failureOf, invalid, KvError, type Failure } from "./errors.js";

/** Options of every call. */
export interface CallOptions {
  /** Milliseconds for the call with all its retries. Default: the client's, 5000. `Infinity`: no deadline. */
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
export const RETRIES_MAX = 10;
/** Upper bound of the wait before the first retry; doubles with every further one. */
const BACKOFF_FIRST_MS = 50;
/** Upper bound of every wait that the server does not ask for. */
const BACKOFF_MAX_MS = 2_000;
/** The header `grpc-timeout` has eight digits: 27 hours. */
const TIMEOUT_MAX_MS = 99_999_999;

/** The wait before retry `n`, from 0: anything in [0, min(2 s, 50 ms * 2^n)], so that clients that failed together do not return together. */
export function backoffMs(n: number, random: number): number {
  return random * Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** n);
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
  readonly #clock: Clock;
  /** Opened at first use. */
  readonly #channels = new Map<string, { channel: Channel; stub: Stub }>();
  /** Index of the endpoint that the next attempt goes to. */
  #current = 0;
  #closed = false;

  constructor(endpoints: readonly string[], open: (endpoint: string) => Channel, timeoutMs: number, clock: Clock) {
    this.#endpoints = endpoints;
    this.#open = open;
    this.timeoutMs = timeoutMs;
    this.#clock = clock;
  }

  close(): void {
    this.#closed = true;
    for (const { channel } of this.#channels.values()) {
      channel.close?.();
    }
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
    const deadline = this.#clock.now() + checkedTimeoutMs(options.timeoutMs ?? this.timeoutMs);
    // Once one attempt may have been applied, a later "not applied" speaks for itself only: the call as a whole stays unknown.
    let unknown: KvError | undefined;
    for (let retries = 0; ; retries++) {
      if (this.#closed) {
        throw unknown ?? new KvError("other", "CANCELLED", "", "the client is closed");
      }
      if (signal?.aborted) {
        throw unknown ?? cancelled(signal, false);
      }
      const endpoint = this.#current;
      const stub = this.#stub(endpoint);
      let failure: Failure;
      try {
        return await attempt(stub, attemptOptions(signal, deadline - this.#clock.now()));
      } catch (thrown) {
        if (signal?.aborted) {
          throw unknown ?? cancelled(signal, write);
        }
        failure = failureOf(thrown, write, this.#clock.now() >= deadline);
      }
      const { error } = failure;
      if (write && error.kind === "outcome-unknown") {
        unknown ??= error;
      }
      const retryable = error.kind === "unavailable" || error.kind === "overloaded" || error.kind === "outcome-unknown";
      const silent = !failure.answered || error.code === "DEADLINE_EXCEEDED";
      if ((retryable || silent) && this.#current === endpoint) {
        this.#current = (endpoint + 1) % this.#endpoints.length;
      }
      const waitMs = Math.max(backoffMs(retries, this.#clock.random()), failure.retryAfterMs);
      if (!retryable || retries === RETRIES_MAX || this.#clock.now() + waitMs >= deadline) {
        // These two are about the request itself: had an earlier attempt been applied, its request id would have been answered so.
        const decided = error.kind === "version-mismatch" || error.kind === "invalid-argument";
        throw decided ? error : (unknown ?? error);
      }
      await this.#clock.sleep(waitMs, signal).catch(() => undefined);
    }
  }

  #stub(endpoint: number): Stub {
    const url = this.#endpoints[endpoint] as string;
    let open = this.#channels.get(url);
    if (open === undefined) {
      const channel = this.#open(url);
      open = { channel, stub: createClient(KvService, channel.transport) };
      this.#channels.set(url, open);
    }
    return open.stub;
  }
}

function attemptOptions(signal: AbortSignal | undefined, remainingMs: number): AttemptOptions {
  // Whole milliseconds, as the header has them, and not 0, which Connect takes for "no timeout".
  const timeoutMs = remainingMs === Infinity ? undefined : Math.ceil(Math.min(Math.max(remainingMs, 1), TIMEOUT_MAX_MS));
  return { ...(signal && { signal }), ...(timeoutMs !== undefined && { timeoutMs }) };
}

export function checkedTimeoutMs(timeoutMs: number): number {
  if (!(timeoutMs > 0)) {
    throw invalid("INVALID_OPTION", `timeoutMs is ${timeoutMs}; it must be above 0`);
  }
  return timeoutMs;
}
