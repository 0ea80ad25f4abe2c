// The entry point of browsers: gRPC-Web over fetch.

import { createGrpcWebTransport } from "@connectrpc/connect-web";

import type { Channel } from "./calls.js";
import { BaseClient, type ClientOptions } from "./client.js";
import { invalid } from "./errors.js";

export * from "./index.js";

/** A client of kvstore. The server must allow the page's origin (`kvstore.cors.origins`) unless it serves the page itself. */
export class Client extends BaseClient {
  constructor(options: ClientOptions = {}) {
    if (options.transport === "grpc") {
      throw invalid("INVALID_OPTION", "browsers cannot speak grpc; leave transport out, or give grpc-web");
    }
    super(options, globalThis.location?.origin ?? "", connect);
  }
}

function connect(endpoint: string): Channel {
  return { transport: createGrpcWebTransport({ baseUrl: endpoint }) };
}
