// What the package gives to whom: Node's entry point in Node, no module of Node in a browser's bundle.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { test } from "node:test";
import { promisify } from "node:util";

import { build } from "esbuild";

import { fake } from "./fake.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));

test("a bundle for browsers takes the browser's entry point", async () => {
  const { metafile } = await build({
    stdin: { contents: 'export * from "@kvstore/client"', resolveDir: ROOT },
    bundle: true,
    platform: "browser",
    format: "esm",
    write: false,
    metafile: true,
    logLevel: "silent",
    absWorkingDir: ROOT,
  });
  const inputs = Object.keys(metafile.inputs);
  assert.ok(inputs.includes("dist/src/browser.js"), inputs.join("\n"));
  const ofNode = inputs.filter((path) => /connect-node|xxhash|\/(channels|routing)\.js$/.test(path));
  assert.deepEqual(ofNode, []);
});

test("Node takes its own, and a program that forgets to close its client ends", { timeout: 30_000 }, async () => {
  await using server = await fake({ stats: () => ({ node: "n1" }) });
  const program = `
    import { Client } from "@kvstore/client";
    console.log((await new Client().stats()).node);
  `;
  const env = { ...process.env, KVSTORE_ENDPOINTS: server.url };
  const { stdout } = await promisify(execFile)(process.execPath, ["--input-type=module", "--eval", program], { cwd: ROOT, env });
  assert.equal(stdout, "n1\n");
});
