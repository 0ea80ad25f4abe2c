/// <reference lib="esnext.disposable" preserve="true" />
// The entry point of Node.

import { grpc, grpcWeb } from "./channels.js";
import { BaseClient, type ClientOptions } from "./client.js";
import { Router } from "./routing.js";

export * from "./index.js";

const ENDPOINT = "http://127.0.0.1:9090";

/** A client of kvstore. */
export class Client extends BaseClient {
  constructor(options: ClientOptions = {}) {
    const endpoints = process.env["KVSTORE_ENDPOINTS"] || ENDPOINT;
    if (options.transport === "grpc-web") {
      super(options, endpoints, grpcWeb); // The ring names gRPC ports.
    } else {
      super(options, endpoints, grpc, (calls) => new Router(calls));
    }
  }

  /** For `using client = new Client()`. */
  [Symbol.dispose](): void {
    this.close();
  }
}
