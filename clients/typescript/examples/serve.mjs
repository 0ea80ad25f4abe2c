// Serves the example page and the built client on loopback: node examples/serve.mjs [PORT]
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { fileURLToPath } from "node:url";

const FILES = {
  "/": "browser.html",
  "/kvstore.browser.js": "../dist/kvstore.browser.js",
  "/kvstore.browser.js.map": "../dist/kvstore.browser.js.map",
};
const TYPES = { html: "text/html; charset=utf-8", js: "text/javascript; charset=utf-8", map: "application/json" };

/** A server of these files, and of `more`: path to file, relative to this folder. */
export async function serve(port, more = {}) {
  const files = { ...FILES, ...more };
  const server = createServer(async (request, response) => {
    const file = files[new URL(request.url, "http://localhost").pathname];
    if (file === undefined) {
      response.writeHead(404).end();
      return;
    }
    const body = await readFile(new URL(file, import.meta.url));
    response.writeHead(200, { "content-type": TYPES[file.split(".").pop()] }).end(body);
  });
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  return server;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const port = Number(process.argv[2] ?? 4173);
  await serve(port);
  console.log(`http://127.0.0.1:${port}/`);
}
