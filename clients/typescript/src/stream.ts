// A server stream that can be left, and whose reader does not wait for ever.

import { Code, ConnectError } from "@connectrpc/connect";

export class Stream<T> {
  readonly #stop = new AbortController();
  readonly #signal: AbortSignal | undefined;
  readonly #items: AsyncIterator<T>;

  /** `open` is given the signal that ends the stream; `signal` is the caller's. */
  constructor(signal: AbortSignal | undefined, open: (signal: AbortSignal) => AsyncIterable<T>) {
    this.#signal = signal;
    this.#items = open(this.#stop.signal)[Symbol.asyncIterator]();
    signal?.addEventListener("abort", this.#abort);
    if (signal?.aborted) {
      this.#abort();
    }
  }

  /** The next item, if it comes within `waitMs`. */
  async next(waitMs: number): Promise<IteratorResult<T>> {
    const late = (): void => this.#stop.abort(new ConnectError("the server has sent nothing in time", Code.DeadlineExceeded));
    const timer = setTimeout(late, waitMs);
    try {
      return await this.#items.next();
    } finally {
      clearTimeout(timer);
    }
  }

  /** Ends the stream, wherever it is. */
  async close(): Promise<void> {
    this.#signal?.removeEventListener("abort", this.#abort);
    this.#stop.abort();
    // Connect notices the end only when it is asked for more, and keeps the deadline's timer until then.
    await this.#items.next().catch(() => undefined);
  }

  readonly #abort = (): void => this.#stop.abort(this.#signal?.reason);
}
