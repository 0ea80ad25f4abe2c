// The built bundle in a real browser, on a page of another origin than the server: what fetch, CORS and the event loop of a page make
// of the client. Needs Chromium (CHROMIUM, default /usr/bin/chromium) and a server (KVSTORE_HTTP) that allows the page's origin:
// kvstore.cors.origins=http://127.0.0.1:4173, or the port in KVSTORE_TEST_ORIGIN_PORT.

import assert from "node:assert/strict";
import type { Server } from "node:http";
import { after, before, describe, test } from "node:test";

import { chromium, type Browser, type Page } from "playwright-core";

import type { Client, KvError } from "../src/browser.js";
import type { runCase } from "./cases.js";
import { deadUrl } from "./fake.js";
import { server, suite } from "./suite.js";

const ENDPOINT = server("KVSTORE_HTTP");
const PORT = Number(process.env["KVSTORE_TEST_ORIGIN_PORT"] ?? 4173);
const ORIGIN = `http://127.0.0.1:${PORT}`;
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

/** What the test page puts into its global scope. */
interface Kit {
  Client: typeof Client;
  KvError: typeof KvError;
  runCase: typeof runCase;
}
declare const kit: Kit;

const unique = (name: string): string => `browser-${crypto.randomUUID()}/${name}`;

describe("the client in a browser", () => {
  let site: Server;
  let browser: Browser;

  before(async () => {
    const { serve } = (await import(new URL("../../examples/serve.mjs", import.meta.url).href)) as {
      serve(port: number, more: Record<string, string>): Promise<Server>;
    };
    site = await serve(PORT, { "/kit": "../tests/kit.html", "/cases.js": "../dist/tests/cases.js" });
    browser = await chromium.launch({ executablePath: process.env["CHROMIUM"] ?? "/usr/bin/chromium", args: FLAGS });
  });

  after(async () => {
    await browser?.close();
    site?.close();
  });

  /** Runs `body` on a fresh page that has the kit. */
  async function onPage(body: (page: Page) => Promise<void>, origin = ORIGIN): Promise<void> {
    const page = await browser.newPage();
    try {
      await page.goto(`${origin}/kit`);
      await page.waitForFunction("globalThis.kit !== undefined");
      await body(page);
    } finally {
      await page.close();
    }
  }

  test("every method works across origins", () =>
    onPage(async (page) => {
      const seen = await page.evaluate(
        async ([endpoint, prefix]) => {
          const kv = new kit.Client({ endpoints: endpoint });
          const seen: unknown[] = [];
          const version = await kv.put(`${prefix}a`, { n: [1, "é😀"] }, { ttl: 60 });
          const entry = await kv.get(`${prefix}a`);
          seen.push(entry?.json(), entry?.version === version, typeof version, entry?.ttl);
          await kv.putText(`${prefix}b`, " [1.0] ", { ifVersion: 0n });
          await kv.putRaw(`${prefix}c`, Uint8Array.of(0, 255));
          seen.push((await kv.get(`${prefix}b`))?.text, Array.from((await kv.get(`${prefix}c`))?.raw ?? []));
          seen.push(await kv.batchPut({ [`${prefix}d`]: 1, [`${prefix}e`]: null }));
          seen.push((await kv.batchGet([`${prefix}e`, `${prefix}none`, `${prefix}d`])).map(({ text }) => text));
          for (const entries of [kv.range({ prefix, pageSize: 2 }), kv.scan({ prefix, reverse: true })]) {
            const keys: string[] = [];
            for await (const { key } of entries) {
              keys.push(key.slice(prefix.length));
            }
            seen.push(keys.join(""));
          }
          seen.push(await kv.delete(`${prefix}a`), await kv.delete(`${prefix}a`), await kv.get(`${prefix}a`));
          seen.push((await kv.stats()).keys >= 4);
          return seen;
        },
        [ENDPOINT, unique("")] as const,
      );
      assert.deepEqual(seen, [
        { n: [1, "é😀"] }, true, "bigint", 60,
        " [1.0] ", [0, 255],
        2, ["null", "1"],
        "abcde", "edcba",
        true, false, undefined,
        true,
      ]);
    }));

  test("errors keep reason, metadata and kind across origins", () =>
    onPage(async (page) => {
      const errors = await page.evaluate(
        async ([endpoint, key]) => {
          const kv = new kit.Client({ endpoints: endpoint });
          const calls = [
            () => kv.get(""),
            () => kv.putText(key, "{oops"),
            () => kv.put(key, 1, { ifVersion: 7n }),
            () => kv.putText(key, "1".repeat(1_048_577)),
            () => kv.scan({ prefix: key, limit: 0 }).next(),
          ];
          const errors: unknown[] = [];
          for (const call of calls) {
            const error = await call().catch((error: unknown) => error);
            errors.push(error instanceof kit.KvError ? [error.kind, error.code, error.reason, error.metadata["max"]] : String(error));
          }
          return errors;
        },
        [ENDPOINT, unique("k")] as const,
      );
      assert.deepEqual(errors, [
        ["invalid-argument", "INVALID_ARGUMENT", "INVALID_KEY", undefined],
        ["invalid-argument", "INVALID_ARGUMENT", "INVALID_JSON", undefined],
        ["version-mismatch", "ABORTED", "VERSION_MISMATCH", undefined],
        ["invalid-argument", "INVALID_ARGUMENT", "LIMIT_EXCEEDED", "1048576"],
        ["invalid-argument", "INVALID_ARGUMENT", "INVALID_LIMIT", undefined],
      ]);
    }));

  test("leaving the loop of a scan aborts its request", () =>
    onPage(async (page) => {
      const aborted = page.waitForEvent("requestfailed", (request) => request.url().endsWith("/Scan"));
      await page.evaluate(
        async ([endpoint, prefix]) => {
          const kv = new kit.Client({ endpoints: endpoint, timeoutMs: 30_000 });
          const text = `"${"x".repeat(100_000)}"`;
          for (let n = 0; n < 200; n += 50) {
            await kv.batchPutText(new Map(Array.from({ length: 50 }, (_, m) => [`${prefix}${n + m}`, text])), { ttl: 60 });
          }
          for await (const _ of kv.scan({ prefix })) {
            break;
          }
        },
        [ENDPOINT, unique("")] as const,
      );
      assert.equal((await aborted).failure()?.errorText, "net::ERR_ABORTED");
    }));

  test("an endpoint where nobody listens is passed over", () =>
    onPage(async (page) => {
      const count = await page.evaluate(
        ([dead, endpoint, key]) => new kit.Client({ endpoints: [dead, endpoint] }).batchPut({ [key]: 1 }),
        [await deadUrl(), ENDPOINT, unique("k")] as const,
      );
      assert.equal(count, 1);
    }));

  test("an origin that the server does not allow is a failure of the transport", () =>
    onPage(async (page) => {
      const errors = await page.evaluate(async (endpoint) => {
        // Long enough for all retries: a deadline that ends one says something else.
        const kv = new kit.Client({ endpoints: endpoint, timeoutMs: 30_000 });
        const calls = [() => kv.get("a"), () => kv.put("a", 1)];
        const thrown = await Promise.all(calls.map((call) => call().catch((error: unknown) => error as KvError)));
        return thrown.map((error) => (error instanceof kit.KvError ? [error.kind, error.code, error.reason] : "no error"));
      }, ENDPOINT);
      assert.deepEqual(errors, [
        ["unavailable", "UNAVAILABLE", ""],
        ["outcome-unknown", "UNAVAILABLE", ""],
      ]);
    }, `http://localhost:${PORT}`));

  test("without endpoints the page's own origin is asked", () =>
    onPage(async (page) => {
      const asked = page.waitForRequest((request) => request.method() === "POST");
      await page.evaluate(() => new kit.Client().get("a").catch(() => undefined));
      assert.equal((await asked).url(), `${ORIGIN}/kvstore.v1.KvService/Get`);
    }));

  test("the example page saves, lists, refuses and removes", async () => {
    const page = await browser.newPage();
    const name = unique("note");
    await page.goto(`${ORIGIN}/?server=${encodeURIComponent(ENDPOINT)}`);
    await page.fill("#name", name);
    await page.fill("#text", '{"note":  "hi"}');
    await page.click("text=Save");
    const note = page.locator("li", { hasText: name });
    await note.waitFor();
    assert.match(await note.innerText(), /= \{"note": {2}"hi"\}/);

    await page.fill("#text", "{oops");
    await page.click("text=Save");
    await page.locator("#failure", { hasText: "INVALID_JSON" }).waitFor();

    await note.getByText("Remove").click();
    await note.waitFor({ state: "detached" });
    assert.equal(await page.locator("#failure").innerText(), "");
    await page.close();
  });

  describe("conformance in a browser", () => {
    let page: Page;

    before(async () => {
      page = await browser.newPage();
      await page.goto(`${ORIGIN}/kit`);
      await page.waitForFunction("globalThis.kit !== undefined");
    });

    for (const [file, cases] of suite()) {
      for (const each of cases) {
        test(`${file}: ${each.name}`, () =>
          page.evaluate(([endpoint, each]) => kit.runCase(new kit.Client({ endpoints: endpoint, timeoutMs: 30_000 }), each), [ENDPOINT, each] as const));
      }
    }
  });
});
