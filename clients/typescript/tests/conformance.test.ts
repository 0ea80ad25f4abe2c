// The suite of all clients against a running server: over gRPC (KVSTORE_ENDPOINTS) and over gRPC-Web (KVSTORE_HTTP).

import { after, describe, test } from "node:test";

import { Client } from "../src/node.js";
import { runCase } from "./cases.js";
import { server, suite } from "./suite.js";

for (const [transport, variable] of [
  ["grpc", "KVSTORE_ENDPOINTS"],
  ["grpc-web", "KVSTORE_HTTP"],
] as const) {
  describe(`conformance over ${transport}`, () => {
    const client = new Client({ endpoints: server(variable), transport, timeoutMs: 30_000 });
    after(() => client.close());
    for (const [file, cases] of suite()) {
      for (const each of cases) {
        test(`${file}: ${each.name}`, () => runCase(client, each));
      }
    }
  });
}
