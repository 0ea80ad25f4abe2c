// A server that does what a test tells it to: KvService with scripted handlers, on a real socket.

import { once } from "node:events";
import http from "node:http";
import http2 from "node:http2";
import type { AddressInfo, Socket } from "node:net";

import { Code, ConnectError, type HandlerContext, type ServiceImpl } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";

import { ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import { KvService } from "../gen/kvstore/v1/kv_pb.js";
import type { Calls, Clock } from "../src/calls.js";
import { grpc, grpcWeb } from "../src/channels.js";
import { BaseClient, type ClientOptions } from "../src/client.js";
import type { Router } from "../src/routing.js";

export type Handlers = Partial<ServiceImpl<typeof KvService>>;

export interface Fake extends AsyncDisposable {
  readonly url: string;
  /** Connections accepted so far. */
  connections(): number;
  /** Cuts every connection, as a crash would. */
  crash(): void;
  /** What its health says. */
  serving: boolean;
}

/** `deadlines: false`: the server does not hear of them, and leaves no timers of its own in this process. */
export async function fake(handlers: Handlers, transport: "grpc" | "grpc-web" = "grpc", deadlines = true): Promise<Fake> {
  const adapter = connectNodeAdapter({ routes: (router) => router.service(KvService, handlers) });
  const handler: typeof adapter = (request, response) => {
    if (!deadlines) {
      delete request.headers["grpc-timeout"];
    }
    if (request.url === "/grpc.health.v1.Health/Check") {
      response.writeHead(200, { "content-type": "application/grpc" });
      response.end(Buffer.of(0, 0, 0, 0, 2, 0x08, running.serving ? 1 : 2));
    } else {
      adapter(request, response);
    }
  };
  const server = transport === "grpc" ? http2.createServer(handler) : http.createServer(handler);
  const open = new Set<Socket>();
  let accepted = 0;
  server.on("connection", (socket: Socket) => {
    accepted++;
    open.add(socket);
    socket.on("close", () => open.delete(socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const crash = (): void => open.forEach((socket) => socket.destroy());
  const running: Fake = {
    serving: true,
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    connections: () => accepted,
    crash,
    async [Symbol.asyncDispose]() {
      crash();
      server.close();
      await once(server, "close");
    },
  };
  return running;
}

/** An address where nobody listens. */
export async function deadUrl(): Promise<string> {
  const server = await fake({});
  await server[Symbol.asyncDispose]();
  return server.url;
}

/** An error as the server sends it. */
export function refusal(code: Code, reason: string, retryAfterMs?: number, domain = "kvstore"): ConnectError {
  const error = new ConnectError(`refused with ${reason}`, code);
  error.details.push({ desc: ErrorInfoSchema, value: { reason, domain, metadata: { max: "7" } } });
  if (retryAfterMs !== undefined) {
    const retryDelay = { seconds: BigInt(Math.floor(retryAfterMs / 1000)), nanos: (retryAfterMs % 1000) * 1e6 };
    error.details.push({ desc: RetryInfoSchema, value: { retryDelay } });
  }
  return error;
}

/** Never answers; ends when the client gives up. */
export function hang(_request: unknown, { signal }: HandlerContext): Promise<never> {
  return new Promise((_resolve, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
}

/** Time that passes only in sleeps, and chance that always says `random`. */
export class TestClock implements Clock {
  readonly sleeps: number[] = [];
  #now = 0;

  constructor(private readonly chance = 1) {}

  now(): number {
    return this.#now;
  }

  random(): number {
    return this.chance;
  }

  async sleep(ms: number, signal?: AbortSignal): Promise<void> {
    signal?.throwIfAborted();
    this.sleeps.push(ms);
    this.#now += ms;
  }
}

/** A client of Node whose time is the test's. Without `route` it asks for no ring. */
export class TestClient extends BaseClient {
  constructor(options: ClientOptions, clock: Clock, route?: (calls: Calls) => Router) {
    super(options, "", options.transport === "grpc-web" ? grpcWeb : grpc, route, clock);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
