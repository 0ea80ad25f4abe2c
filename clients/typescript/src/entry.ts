// One key as it is stored.

import type { GetResponse, Item, ScanResponse } from "../gen/kvstore/v1/kv_pb.js";

/** One key with its value. A value is JSON (`text` is set) or raw bytes (`raw` is set); neither, when only keys were asked for. */
export class Entry {
  readonly key: string;
  /** The version of the write that stored it. */
  readonly version: bigint;
  /** Seconds left until the key expires, rounded up. `undefined`: it does not expire. */
  readonly ttl: number | undefined;
  /** The JSON text, byte for byte as it was stored. */
  readonly text: string | undefined;
  /** The bytes of a value that was stored with `putRaw`. */
  readonly raw: Uint8Array | undefined;

  /** @internal */
  constructor({ key, version, ttl, content }: GetResponse | Item | ScanResponse) {
    this.key = key;
    this.version = version;
    this.ttl = ttl;
    this.text = content.case === "value" ? content.value : undefined;
    this.raw = content.case === "raw" ? content.value : undefined;
  }

  /** The value as `JSON.parse` reads it: numbers beyond 2^53 lose digits, `text` has them all. */
  json<T = unknown>(): T {
    if (this.text === undefined) {
      const what = this.raw === undefined ? "was read without its value (keysOnly)" : "holds raw bytes, not JSON";
      throw new TypeError(`the entry of key ${JSON.stringify(this.key)} ${what}`);
    }
    return JSON.parse(this.text) as T;
  }
}
