// A range as one stream over as many connections as it takes.
//
// A stream ends early when its node stops or its connection grows too old. It is then opened again, at the next endpoint, from the last key
// that came: keys are in order, so that none is skipped or repeated.

import { create, type MessageInitShape } from "@bufbuild/protobuf";

import { ScanRequestSchema, type ScanRequest, type ScanResponse } from "../gen/kvstore/v1/kv_pb.js";
import { Attempts, type CallOptions, type Calls } from "./calls.js";
import { Stream } from "./stream.js";

export class Scan {
  readonly #calls: Calls;
  readonly #signal: AbortSignal | undefined;
  /** Of the whole scan. `undefined`: the client's timeout is for each wait for an item. */
  readonly #deadline: number | undefined;
  /** What has not come yet. */
  readonly #rest: ScanRequest;
  /** The last key that came. */
  #last: string | undefined;
  #stream: Stream<ScanResponse> | undefined;
  /** Where the stream comes from. */
  #endpoint: number | string = 0;

  constructor(calls: Calls, request: MessageInitShape<typeof ScanRequestSchema>, options: CallOptions) {
    this.#calls = calls;
    this.#rest = create(ScanRequestSchema, request);
    this.#signal = options.signal;
    this.#deadline = options.timeoutMs === undefined ? undefined : calls.deadline(options);
  }

  /** The next item. `undefined`: the range is finished. */
  async next(): Promise<ScanResponse | undefined> {
    if (this.#last !== undefined && this.#rest.limit === 0n) {
      return undefined;
    }
    const attempts = new Attempts(this.#calls, false, this.#signal, this.#deadline ?? this.#calls.deadline({}));
    for (;;) {
      const stream = (this.#stream ??= this.#open(attempts));
      try {
        const { done, value } = await stream.next(attempts.leftMs());
        if (done) {
          return undefined;
        }
        if (value.key !== this.#last) {
          this.#advance(value.key);
          return value;
        }
      } catch (thrown) {
        await this.close();
        await attempts.failed(this.#endpoint, thrown);
      }
    }
  }

  #open(attempts: Attempts): Stream<ScanResponse> {
    const { endpoint, stub } = attempts.next();
    this.#endpoint = endpoint;
    const request = this.#request();
    // A deadline would end a long scan that is well: the server is told only of that of the whole.
    const whole = this.#deadline === undefined ? {} : { timeoutMs: attempts.leftMs() };
    return new Stream(this.#signal, (signal) => stub.scan(request, { signal, ...whole }));
  }

  /** Upwards the last key comes once more and is skipped: one just above it may be too long for a bound. */
  #request(): ScanRequest {
    const { limit, reverse } = this.#rest;
    const again = this.#last !== undefined && limit !== undefined && !reverse;
    return again ? { ...this.#rest, limit: limit + 1n } : this.#rest;
  }

  #advance(key: string): void {
    const rest = this.#rest;
    this.#last = key;
    rest[rest.reverse ? "endKey" : "startKey"] = key;
    if (rest.limit !== undefined) {
      rest.limit -= 1n;
    }
  }

  /** Ends the stream, wherever it is. */
  async close(): Promise<void> {
    await this.#stream?.close();
    this.#stream = undefined;
  }
}
