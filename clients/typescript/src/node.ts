/// <reference lib="esnext.disposable" preserve="true" />
// The entry point of Node.

import { grpc, grpcWeb } from "./channels.js";
import { BaseClient, type ClientOptions } from "./client.js";

export * from "./index.js";

const ENDPOINT = "http://127.0.0.1:9090";

/** A client of kvstore. */
export class Client extends BaseClient {
  constructor(options: ClientOptions = {}) {
    super(options, process.env["KVSTORE_ENDPOINTS"] || ENDPOINT, options.transport === "grpc-web" ? grpcWeb : grpc);
  }

  /** For `using client = new Client()`. */
  [Symbol.dispose](): void {
    this.close();
  }
}
