// What a failed call throws: one `KvError`, whatever failed. How a failure of the transport is told from an answer of the
// server is decided here and nowhere else.

import { Code, ConnectError } from "@connectrpc/connect";

import { ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";

/** `ErrorInfo.domain` of every error of the server. Without it nobody of kvstore has answered. */
const DOMAIN = "kvstore";

const CODES = {
  [Code.Canceled]: "CANCELLED",
  [Code.Unknown]: "UNKNOWN",
  [Code.InvalidArgument]: "INVALID_ARGUMENT",
  [Code.DeadlineExceeded]: "DEADLINE_EXCEEDED",
  [Code.NotFound]: "NOT_FOUND",
  [Code.AlreadyExists]: "ALREADY_EXISTS",
  [Code.PermissionDenied]: "PERMISSION_DENIED",
  [Code.ResourceExhausted]: "RESOURCE_EXHAUSTED",
  [Code.FailedPrecondition]: "FAILED_PRECONDITION",
  [Code.Aborted]: "ABORTED",
  [Code.OutOfRange]: "OUT_OF_RANGE",
  [Code.Unimplemented]: "UNIMPLEMENTED",
  [Code.Internal]: "INTERNAL",
  [Code.Unavailable]: "UNAVAILABLE",
  [Code.DataLoss]: "DATA_LOSS",
  [Code.Unauthenticated]: "UNAUTHENTICATED",
} as const satisfies Record<Code, string>;

/** The name of a gRPC code. */
export type KvErrorCode = (typeof CODES)[Code];

/**
 * What the caller has to do about a failure.
 *
 * - `invalid-argument`: fix the request; repeating it cannot help.
 * - `version-mismatch`: `ifVersion` did not hold; read again, then decide.
 * - `overloaded`: certainly not applied, a limit is reached. Slow down.
 * - `unavailable`: certainly not applied, nobody could serve it. Try again.
 * - `outcome-unknown`: the write may or may not have been applied. Read, or repeat it with the same `requestId`.
 * - `deadline-exceeded`: a read did not end in time.
 * - `corruption`: data on the node that answered is damaged.
 * - `other`: see `code` and `reason`.
 */
export type KvErrorKind =
  | "invalid-argument"
  | "version-mismatch"
  | "overloaded"
  | "unavailable"
  | "outcome-unknown"
  | "deadline-exceeded"
  | "corruption"
  | "other";

/** Why a call failed. `message` is the server's sentence for people; `cause` what the transport threw, if it did. */
export class KvError extends Error {
  override readonly name = "KvError";

  constructor(
    /** What to do about it. */
    readonly kind: KvErrorKind,
    /** The gRPC code. */
    readonly code: KvErrorCode,
    /** The stable reason from the server's ErrorInfo, such as `INVALID_JSON`. Empty when no server answered. */
    readonly reason: string,
    message: string,
    /** Facts for programs, such as `limit`, `max` and `got` of LIMIT_EXCEEDED. */
    readonly metadata: Readonly<Record<string, string>> = {},
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** A request that is refused before it is sent, in the words in which the server would refuse it. */
export function invalid(reason: string, message: string): KvError {
  return new KvError("invalid-argument", "INVALID_ARGUMENT", reason, message);
}

/** The caller's signal fired. A write that was on its way may have been applied. */
export function cancelled(signal: AbortSignal, outcomeUnknown: boolean): KvError {
  const kind = outcomeUnknown ? "outcome-unknown" : "other";
  return new KvError(kind, "CANCELLED", "", "the call was cancelled", {}, { cause: signal.reason });
}

/**
 * Whether this answer holds for earlier attempts of the same write, too: the server has looked at the request itself, and would have known
 * its id.
 */
export function settles({ kind, code, reason }: KvError): boolean {
  return kind === "version-mismatch" || (reason !== "" && (code === "INVALID_ARGUMENT" || code === "FAILED_PRECONDITION"));
}

/** A failed attempt, with what the server asks for: how long to wait before the next one. */
export interface Failure {
  readonly error: KvError;
  readonly retryAfterMs: number;
}

/**
 * Makes sense of whatever an attempt has thrown. `write`: the attempt could have changed something. `late`: the deadline has passed; the
 * server and what is between give up at the same moment as this side, and their words for it may come first.
 */
export function failureOf(thrown: unknown, write: boolean, late = false): Failure {
  const cause = ConnectError.from(thrown);
  const info = cause.findDetails(ErrorInfoSchema).find((info) => info.domain === DOMAIN);
  if (info === undefined) {
    return { error: bare(cause, late ? Code.DeadlineExceeded : cause.code, write), retryAfterMs: 0 };
  }
  const delay = cause.findDetails(RetryInfoSchema)[0]?.retryDelay;
  const retryAfterMs = delay === undefined ? 0 : Number(delay.seconds) * 1000 + delay.nanos / 1e6;
  const kind = info.reason === "OUTCOME_UNKNOWN" ? "outcome-unknown" : kindOf(cause.code, info.reason);
  const error = new KvError(kind, CODES[cause.code], info.reason, cause.rawMessage, info.metadata, { cause });
  return { error, retryAfterMs };
}

function kindOf(code: Code, reason: string): KvErrorKind {
  switch (code) {
    case Code.InvalidArgument:
      return "invalid-argument";
    case Code.Aborted:
      return reason === "VERSION_MISMATCH" ? "version-mismatch" : "other";
    case Code.ResourceExhausted:
      return "overloaded";
    case Code.Unavailable:
      return "unavailable";
    case Code.DeadlineExceeded:
      return "deadline-exceeded";
    case Code.DataLoss:
      return "corruption";
    default:
      return "other";
  }
}

/**
 * A failure that no kvstore server has answered. What broke on the way says nothing about a write: it may have arrived.
 * Refusals (a proxy that wants a login, a port that serves something else) are no such failures.
 */
function bare(cause: ConnectError, code: Code, write: boolean): KvError {
  const fail = (kind: KvErrorKind, code: KvErrorCode): KvError =>
    new KvError(kind, code, "", cause.rawMessage, {}, { cause });
  switch (code) {
    case Code.DeadlineExceeded:
      return fail(write ? "outcome-unknown" : "deadline-exceeded", "DEADLINE_EXCEEDED");
    case Code.ResourceExhausted:
      return fail(write ? "outcome-unknown" : "overloaded", "RESOURCE_EXHAUSTED");
    // Connect says ABORTED for a reset connection, UNKNOWN for a fetch that failed, INTERNAL for an answer that was cut off and
    // CANCELLED for a stream that the other side gave up: all of them mean that the connection did not carry the call.
    case Code.Unavailable:
    case Code.Aborted:
    case Code.Unknown:
    case Code.Internal:
    case Code.Canceled:
      return fail(write ? "outcome-unknown" : "unavailable", "UNAVAILABLE");
    default:
      return fail(kindOf(code, ""), CODES[code]);
  }
}
