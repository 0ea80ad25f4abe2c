// Runs one case of ../conformance against a client. The same code runs in Node and, served as it is, in the browser: it imports nothing.

import type { BaseClient } from "../src/client.js";
import type { Entry } from "../src/entry.js";
import type { KvError } from "../src/errors.js";

export interface Case {
  name: string;
  steps: Record<string, unknown>[];
  /** The clients that can express it; absent: all. */
  clients?: string[];
}

type Json = unknown;
type Fields = Record<string, Json>;

/** Runs the steps one after the other; throws an Error that says which of them failed and how. */
export async function runCase(client: BaseClient, { steps }: Case): Promise<void> {
  const kept = new Map<string, Json>();
  const random = crypto.getRandomValues(new Uint32Array(3));
  const prefix = "p" + Array.from(random, (part) => part.toString(16)).join("");
  for (const [number, step] of steps.entries()) {
    const { op, expect = {}, error, ...given } = expand(step, prefix) as Fields & { op: string; error?: Fields };
    const at = `step ${number + 1}, ${shown(step)}`;
    let result: Json;
    try {
      result = await perform(client, op, given, kept);
    } catch (thrown) {
      if (isKvError(thrown) && error?.["code"] === thrown.code && error["reason"] === thrown.reason) {
        continue;
      }
      const what = isKvError(thrown) ? `${thrown.code} ${thrown.reason}: ${thrown.message}` : String(thrown);
      throw new Error(`${at}: expected ${shown(error ?? expect)}, got ${what}`, { cause: thrown });
    }
    if (error !== undefined) {
      throw new Error(`${at}: expected ${shown(error)}, got ${shown(result)}`);
    }
    compare(expect, result, kept, `${at}: result`);
  }
}

function isKvError(thrown: unknown): thrown is KvError {
  return thrown instanceof Error && thrown.name === "KvError";
}

async function perform(client: BaseClient, op: string, given: Fields, kept: Map<string, Json>): Promise<Json> {
  const { key, value, raw_base64, entries, keys, if_version, request_id, ttl, start, end, keys_only, page_size, ...rest } = given as Fields & {
    key: string;
    value: string;
    entries: Record<string, string>;
    keys: string[];
  };
  const saved = typeof if_version === "object" ? kept.get((if_version as { saved: string }).saved) : if_version;
  const ifVersion = saved === undefined ? undefined : BigInt(saved as number | bigint);
  const write = { ttl: ttl as number, requestId: request_id as string, ifVersion };
  const range = { ...rest, start: start as string, end: end as string, keysOnly: keys_only as boolean };
  switch (op) {
    case "put":
      return {
        version: raw_base64 === undefined ? await client.putText(key, value, write) : await client.putRaw(key, bytesOf(raw_base64 as string), write),
      };
    case "get": {
      const entry = await client.get(key);
      return entry === undefined ? { missing: true } : fields(entry);
    }
    case "delete":
      return { deleted: await client.delete(key, write) };
    case "batch_put":
      return { count: await client.batchPutText(entries, write) };
    case "batch_get":
      return listed(await client.batchGet(keys));
    case "range":
      return listed(await all(client.range({ ...range, pageSize: page_size as number })));
    case "scan":
      return listed(await all(client.scan(range)));
    case "stats": {
      const stats = Object.entries(await client.stats());
      return Object.fromEntries(stats.map(([name, value]) => [name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`), value]));
    }
    default:
      throw new Error(`there is no operation ${op}`);
  }
}

async function all(entries: AsyncIterable<Entry>): Promise<Entry[]> {
  const list: Entry[] = [];
  for await (const entry of entries) {
    list.push(entry);
  }
  return list;
}

function fields({ key, text, raw, version, ttl }: Entry): Fields {
  return { key, value: text, raw_base64: raw && btoa(String.fromCharCode(...raw)), version, ttl };
}

function listed(entries: Entry[]): Fields {
  return { items: entries.map(fields), count: entries.length };
}

function bytesOf(base64: string): Uint8Array {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

/** `value` with $P, $REPEAT and $ENTRIES put in. */
function expand(value: Json, prefix: string): Json {
  if (Array.isArray(value)) {
    return value.map((each) => expand(each, prefix));
  }
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [expand(name, prefix), expand(each, prefix)]));
  }
  if (typeof value !== "string") {
    return value;
  }
  const text = value.replaceAll("$P", prefix);
  const repeat = /^\$REPEAT\((.*),(\d+)\)$/s.exec(text);
  if (repeat) {
    return repeat[1]!.repeat(Number(repeat[2]));
  }
  const entries = /^\$ENTRIES\(([^,]*),(\d+),(.*)\)$/s.exec(text);
  if (entries) {
    const names = Array.from({ length: Number(entries[2]) }, (_, n) => entries[1] + String(n).padStart(6, "0"));
    return Object.fromEntries(names.map((name) => [name, entries[3]]));
  }
  return text;
}

/** Throws unless `got` is what `want` names. */
function compare(want: Json, got: Json, kept: Map<string, Json>, where: string): void {
  const check = (holds: boolean, rule = want): void => {
    if (!holds) {
      throw new Error(`${where}: expected ${shown(rule)}, got ${shown(got)}`);
    }
  };
  if (Array.isArray(want)) {
    check(Array.isArray(got) && got.length === want.length);
    want.forEach((each, index) => compare(each, (got as Json[])[index], kept, `${where}[${index}]`));
  } else if (want === null) {
    check(got === undefined);
  } else if (typeof want !== "object") {
    check(typeof got === "bigint" ? BigInt(want as number) === got : want === got);
  } else if (typeof got === "object" && got !== null) {
    for (const [name, each] of Object.entries(want)) {
      compare(each, (got as Fields)[name], kept, `${where}.${name}`);
    }
  } else {
    check(got !== undefined);
    for (const [rule, operand] of Object.entries(want)) {
      const reference = kept.get(operand);
      check(holds(rule, got as bigint, operand, reference), { [rule]: reference ?? operand });
    }
    if ("save" in want) {
      kept.set(want.save as string, got);
    }
  }
}

function holds(rule: string, got: bigint | number, operand: number, kept: Json): boolean {
  switch (rule) {
    case "save":
      return true;
    case "same":
      return got === kept;
    case "not":
      return got !== kept;
    case "above":
      return got > (kept as bigint);
    case "min":
      return got >= operand;
    case "max":
      return got <= operand;
    default:
      throw new Error(`there is no rule ${rule}`);
  }
}

function shown(value: Json): string {
  const text = JSON.stringify(value, (_, each: Json) => (typeof each === "bigint" ? `${each}n` : each)) ?? "nothing";
  return text.length <= 200 ? text : `${text.slice(0, 200)}... (${text.length} characters)`;
}
