// What both entry points export beside their `Client`.

export type { CallOptions, Channel } from "./calls.js";
export type {
  BatchPutOptions,
  ClientOptions,
  Consistency,
  DeleteOptions,
  Entries,
  PutOptions,
  RangeOptions,
  ReadOptions,
  ScanOptions,
  Stats,
  WriteOptions,
} from "./client.js";
export { Entry } from "./entry.js";
export { KvError, type KvErrorCode, type KvErrorKind } from "./errors.js";
