// One connection to the service: opens it, sends calls, and receives messages.

import { readFileSync } from "node:fs";

import WebSocket from "ws";

import { type CcExecutorError, NotAuthorized } from "./errors.js";
import { Signal } from "./signal.js";
import type { Connected, ErrorObject, Methods } from "./types.js";

const DEFAULT_URL = "ws://127.0.0.1:8003/ws/mcp";
const DEFAULT_PORT = 8003;
const SUBPROTOCOL = "cc-executor.v1";
/** A message to a client has at most 1 MiB. */
const MAX_MESSAGE = 2 << 20;
/** Messages that were received and are not handled yet. Beyond that nothing is read from the socket. */
const MAX_PENDING = 16;
/** The longest HTTP answer that is read for its reason. */
const MAX_REFUSAL = 64 << 10;
/** How long the service may take to open a session. */
export const OPEN_PATIENCE_MS = 10_000;
/** How long the service may take to answer a request. It waits 10 s for its backend itself. */
export const ANSWER_PATIENCE_MS = 30_000;
/** How long the service may take to answer a close frame. */
const CLOSE_PATIENCE_MS = 1_000;
/** The longest period of heartbeats that is expected. A ping asks for a sign of life after each. */
const LONGEST_PERIOD_MS = 15_000;
/** The connection is broken after this many periods without a sign of life. */
const MAX_MISSED = 3;

export const NOT_AUTHORIZED = -32007;
export const SESSION_LIMIT = -32001;

/** A message of the service. */
export interface Message {
  id?: number | null;
  method?: string;
  params?: unknown;
  result?: unknown;
  error?: ErrorObject;
}

/** A connection broke, or the service refuses a request for now. Not thrown to users. */
export class Broken extends Error {
  constructor(
    message: string,
    readonly retryAfterMs = 0,
    /** Whether it makes sense to try again although no session was ever open. */
    readonly temporary = true,
  ) {
    super(message);
  }
}

/**
 * The URL of a session: as on the command line, a text without a scheme is a host without TLS, at port 8003 unless it has
 * another, and a path that does not end with `/ws/mcp` or `/ws` is the prefix of a reverse proxy.
 */
export function sessionUrl(url?: string): string {
  const text = url || process.env["CC_EXECUTOR_URL"] || DEFAULT_URL;
  const hasScheme = text.includes("://");
  let parsed: URL;
  try {
    parsed = new URL(hasScheme ? text : `ws://${text}`);
  } catch {
    throw new TypeError(`the URL of the service must be ws://HOST[:PORT] or wss://HOST[:PORT], not "${text}"`);
  }
  const scheme = { "http:": "ws:", "https:": "wss:" }[parsed.protocol] ?? parsed.protocol;
  if (scheme !== "ws:" && scheme !== "wss:") {
    throw new TypeError(`the URL of the service must be ws://HOST[:PORT] or wss://HOST[:PORT], not "${text}"`);
  }
  // `new URL` leaves out the port 80, which a text without a scheme may have asked for.
  const hasPort = hasScheme || /:\d+$/.test(text.split("/")[0] ?? "");
  const authority = hasPort ? parsed.host : `${parsed.host}:${DEFAULT_PORT}`;
  const prefix = parsed.pathname.replace(/\/+$/, "");
  const path = /\/ws(\/mcp)?$/.test(prefix) ? prefix : `${prefix}/ws/mcp`;
  return `${scheme}//${authority}${path}${parsed.search}`;
}

/** The token in `CC_EXECUTOR_TOKEN`, or in the file that `CC_EXECUTOR_TOKEN_FILE` names. */
export function tokenOfEnvironment(): string | undefined {
  const token = process.env["CC_EXECUTOR_TOKEN"];
  if (token) return token;
  const path = process.env["CC_EXECUTOR_TOKEN_FILE"];
  return path ? readFileSync(path, "utf8").trim() : undefined;
}

/** The pause that a refusal asks for. */
export function retryAfterMs(error: { data?: unknown }): number {
  const data = error.data as { retryAfterMs?: unknown } | null | undefined;
  return typeof data?.retryAfterMs === "number" ? data.retryAfterMs : 0;
}

/** The error for an HTTP status instead of a session. */
function refused(url: string, status: number, body: string, hasToken: boolean): Broken | CcExecutorError {
  let error: Partial<ErrorObject> = {};
  try {
    error = (JSON.parse(body) as Partial<ErrorObject> | null) ?? {};
  } catch {
    // Not a cc-executor service.
  }
  if (status === 403) return new NotAuthorized(`${url} refuses this client: ${error.message ?? "it gives no reason"}`);
  if (status === 401 || (status === 429 && error.code === NOT_AUTHORIZED)) {
    return new NotAuthorized(
      `${url} ${hasToken ? "refuses the token" : "demands a token, and none was given: set CC_EXECUTOR_TOKEN"}`,
    );
  }
  const reason = error.message === undefined ? "; is this the URL of a cc-executor service?" : `: ${error.message}`;
  return new Broken(`${url} answers ${status}${reason}`, retryAfterMs(error), status === 429 || status === 503);
}

/** An open session. */
export class Session {
  connected!: Connected;
  #url: string;
  #socket: WebSocket;
  #pending: string[] = [];
  #arrived = new Signal();
  #closed: Broken | undefined;
  #isAlive = false;
  #periodMs = LONGEST_PERIOD_MS;
  #nCalls = 0;

  private constructor(url: string, socket: WebSocket) {
    this.#url = url;
    this.#socket = socket;
    socket.on("message", (data: Buffer) => {
      this.#pending.push(data.toString());
      if (this.#pending.length >= MAX_PENDING) socket.pause();
      this.#arrived.set();
    });
    for (const event of ["ping", "pong"]) socket.on(event, () => (this.#isAlive = true));
    socket.on("close", (code: number, reason: Buffer) => {
      const why = reason.length > 0 ? reason.toString() : "no reason given";
      this.#break(code === 1006 ? `the connection to ${url} broke` : `${url} closed the session: ${why} (${code})`);
    });
    socket.on("error", (error: Error) => this.#break(`the connection to ${url} broke: ${error.message}`));
  }

  #break(why: string): void {
    this.#closed ??= new Broken(why);
    this.#arrived.set();
  }

  /** Opens a session. Throws `Broken` or `NotAuthorized`. */
  static async open(url: string, token: string | undefined, withinMs: number): Promise<Session> {
    const socket = new WebSocket(url, [SUBPROTOCOL], {
      headers: token === undefined ? {} : { Authorization: `Bearer ${token}` },
      perMessageDeflate: false,
      handshakeTimeout: Math.min(OPEN_PATIENCE_MS, withinMs),
      maxPayload: MAX_MESSAGE,
    });
    const session = new Session(url, socket);
    await new Promise<void>((resolve, reject) => {
      socket.once("open", resolve);
      socket.once("error", (error) => reject(new Broken(`cannot reach ${url}: ${error.message}`, 0, false)));
      socket.once("unexpected-response", (_, response) => {
        const parts: Buffer[] = [];
        let length = 0;
        const done = (): void => {
          const body = Buffer.concat(parts).toString();
          reject(refused(url, response.statusCode ?? 0, body, token !== undefined));
          socket.terminate();
        };
        response.on("data", (part: Buffer) => {
          length += part.length;
          if (length <= MAX_REFUSAL) parts.push(part);
          else response.destroy();
        });
        response.once("end", done).once("close", done).once("error", done);
      });
    });
    try {
      const first = await session.receive(OPEN_PATIENCE_MS);
      if (first.method === "error") {
        const refusal = first.params as ErrorObject;
        throw new Broken(refusal.message, retryAfterMs(refusal));
      }
      if (first.method !== "connected") {
        throw new Broken(`${url} is not a cc-executor service: its first message is not \`connected\``, 0, false);
      }
      session.connected = first.params as Connected;
      return session;
    } catch (error) {
      session.abort();
      throw error;
    }
  }

  /** Sets the period of the service's heartbeats. */
  expectHeartbeats(periodMs: number): void {
    this.#periodMs = Math.min(periodMs, LONGEST_PERIOD_MS);
  }

  /**
   * The next message. Throws `Broken` after `withinMs`, or when the service gives no sign of life. Only time that is spent
   * here counts, so a program that reads nothing for an hour does not take that hour for silence.
   */
  async receive(withinMs?: number): Promise<Message> {
    let missed = 0;
    for (;;) {
      const text = this.#pending.shift();
      if (text !== undefined) {
        if (this.#socket.isPaused && this.#pending.length === 0) this.#socket.resume();
        const message: unknown = JSON.parse(text);
        if (typeof message === "object" && message !== null) return message as Message;
        continue;
      }
      if (this.#closed !== undefined) throw this.#closed;
      this.#arrived.clear();
      this.#isAlive = false;
      if (await this.#arrived.wait(withinMs ?? this.#periodMs)) continue;
      if (withinMs !== undefined) throw new Broken(`${this.#url} did not answer within ${withinMs / 1000} s`);
      missed = this.#isAlive ? 0 : missed + 1;
      if (missed >= MAX_MISSED) {
        throw new Broken(`${this.#url} gave no sign of life for ${(missed * this.#periodMs) / 1000} s`);
      }
      if (this.#socket.readyState === WebSocket.OPEN) this.#socket.ping();
    }
  }

  /** An id for a call. */
  nextId(): number {
    return ++this.#nCalls;
  }

  /** Sends a call. Without an id it has no response. */
  send<M extends keyof Methods>(method: M, params: Methods[M]["params"], id?: number): void {
    if (this.#closed !== undefined) throw this.#closed;
    this.#socket.send(JSON.stringify({ jsonrpc: "2.0", ...(id === undefined ? {} : { id }), method, params }), () => {
      // A failure closes the connection, which the reader notices.
    });
  }

  /** Closes the session. */
  async close(): Promise<void> {
    if (this.#socket.readyState === WebSocket.CLOSED) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => this.#socket.terminate(), CLOSE_PATIENCE_MS);
      this.#socket.once("close", () => {
        clearTimeout(timer);
        resolve();
      });
      this.#socket.resume();
      this.#socket.close(1000);
    });
  }

  /** Drops the connection without a close frame. */
  abort(): void {
    this.#socket.terminate();
  }
}
