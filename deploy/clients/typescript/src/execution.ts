// An execution that a client follows over any number of connections.

import { Checksum } from "./checksum.js";
import {
  CcExecutorError,
  DigestMismatch,
  EndingUnknown,
  InputUnconfirmed,
  OutputLost,
  RequestRefused,
  ServiceUnavailable,
  TakenOver,
  UnknownExecution,
} from "./errors.js";
import { type Item, OutputQueue } from "./queue.js";
import { describeGap, type Ending, endingOf, type Gap, type Output, type PerStream } from "./results.js";
import { ANSWER_PATIENCE_MS, Broken, type Message, OPEN_PATIENCE_MS, retryAfterMs, Session, SESSION_LIMIT } from "./session.js";
import { Signal } from "./signal.js";
import type {
  AttachParams,
  AttachResult,
  ErrorObject,
  ExecuteParams,
  ExecuteResult,
  FinalStatus,
  GapNotice,
  Methods,
  OutputNotice,
  Signal as SignalName,
  StatusUpdate,
  Stream,
} from "./types.js";

export const UNKNOWN_EXECUTION = -32006;
export const NOT_RUNNING = -32003;
const OTHER_INSTANCE = -32014;
const [DRAINING, FULL, BACKEND] = [-32008, -32009, -32010];
const TEMPORARY = [SESSION_LIMIT, DRAINING, FULL, BACKEND];
export const DEFAULT_GRACE_MS = 5_000;

/** Output that is acknowledged at once, and the delay of an acknowledgement of less. */
const [ACK_BYTES, ACK_DELAY_MS] = [256 << 10, 100];
/** The first and the longest pause between two attempts to connect. */
const [FIRST_PAUSE_MS, LONGEST_PAUSE_MS] = [50, 1_000];
/** The largest piece of input in one call. The service takes messages of at least 1 MiB by default. */
const INPUT_BYTES = 64 << 10;

export interface Request {
  execute?: ExecuteParams & { executionId: string };
  attach?: AttachParams;
  reconnectMs: number;
  allowGaps: boolean;
}

/**
 * A command that runs, or an execution that was attached to.
 *
 * Iterate over it with `for await` for its output, in order; `wait` then has its ending. Leaving the loop early cancels the
 * command, and so does `close`, unless `detach` was called. Output that is not read is not dropped: the command waits for it.
 */
export class Execution implements AsyncIterable<Output> {
  /** The execution's id, chosen by the client. Any program with the same token can `attach` to it. */
  readonly id: string;
  /** The newest status while it runs. */
  status: StatusUpdate | undefined;
  /** How it ended, once that is known. */
  ending: Ending | undefined;
  /** The gaps in the output so far. */
  readonly gaps: Gap[] = [];

  readonly #url: string;
  readonly #token: string | undefined;
  readonly #request: Request;
  readonly #acknowledges: boolean;
  readonly #received: Record<Stream, Checksum>;
  readonly #taken: PerStream<number>;
  readonly #queue = new OutputQueue();
  #error: CcExecutorError | undefined;
  #session: Session | undefined;
  #wasSent = false;
  #sentInstance: string | undefined;
  #isAccepted = false;
  #instance: string | undefined;
  #awaySince: number | undefined;
  #pauseMs = FIRST_PAUSE_MS;
  #graceMs: number | undefined;
  #isDetached = false;
  #isLeft = false;
  #answers = new Map<number, (error?: Error) => void>();
  #nUnacknowledged = 0;
  #moved = new Signal();
  #movedFar = new Signal();
  #ready = new Signal();
  #finished = new Signal();
  #left = new Signal();
  readonly #task: Promise<void>;

  constructor(url: string, token: string | undefined, request: Request) {
    const { execute, attach, reconnectMs } = request;
    this.#url = url;
    this.#token = token;
    this.#request = request;
    this.id = execute?.executionId ?? attach?.executionId ?? "";
    // A detachable execution is acknowledged: the service keeps what this program has not taken.
    this.#acknowledges = attach?.observe !== true && (execute === undefined || reconnectMs > 0);
    const { stdout, stderr } = attach?.offsets ?? { stdout: 0, stderr: 0 };
    this.#taken = { stdout, stderr };
    this.#received = { stdout: new Checksum("stdout", stdout), stderr: new Checksum("stderr", stderr) };
    this.#task = this.#followToTheEnd();
  }

  // Starting and leaving

  /** Waits until the service has accepted the execution. */
  async started(): Promise<this> {
    await this.#ready.wait();
    if (!this.#isAccepted && this.#error !== undefined) throw this.#error;
    return this;
  }

  /**
   * Leaves the execution: cancels a command that has not ended, waits for its end, and closes the connection. After
   * `attach`, and after `detach`, the execution continues.
   */
  async close(): Promise<void> {
    const owned = this.#request.execute !== undefined && !this.#isDetached;
    if (owned && !this.#finished.isSet && (this.#wasSent || this.#isAccepted)) {
      const graceMs = this.#graceMs ?? DEFAULT_GRACE_MS;
      this.#requestCancel(graceMs);
      this.#discard();
      await this.#finished.wait(graceMs + OPEN_PATIENCE_MS);
    }
    this.#isLeft = true;
    this.#left.set();
    this.#queue.discard();
    const session = this.#session;
    if (this.#isDetached || this.#request.execute === undefined) await session?.close();
    else session?.abort();
    await this.#task;
  }

  /**
   * Leaves the command running without a client for at most `reconnectMs`, and returns its id. It needs a `reconnectMs` that
   * is not 0.
   */
  async detach(): Promise<string> {
    if (this.#request.execute !== undefined && this.#request.reconnectMs <= 0) {
      throw new TypeError("an execution with reconnectMs 0 ends with its client: start it with a longer reconnectMs");
    }
    await this.started();
    this.#isDetached = true;
    await this.close();
    return this.id;
  }

  // Output and ending

  /** The output. It throws `OutputLost` at a gap; another iteration continues after it. */
  [Symbol.asyncIterator](): AsyncIterator<Output> {
    return {
      next: async () => {
        await this.started();
        for (;;) {
          const item = await this.#queue.get();
          if (item === undefined) {
            if (this.#error !== undefined) throw this.#error;
            return { done: true, value: undefined };
          }
          this.#onTaken(item);
          if ("data" in item) return { done: false, value: item };
          if (!this.#request.allowGaps) {
            throw new OutputLost(`${describeGap(item)} of execution ${this.id}`, [item], this.id);
          }
        }
      },
      return: async () => {
        await this.close();
        return { done: true, value: undefined };
      },
    };
  }

  #onTaken(item: Item): void {
    this.#taken[item.stream] = item.end;
    this.#nUnacknowledged += "data" in item ? item.data.length : 0;
    this.#moved.set();
    if (this.#nUnacknowledged >= ACK_BYTES) this.#movedFar.set();
  }

  /** Drops output that waits, and all that is still to come. It counts as taken. */
  #discard(): void {
    for (const item of this.#queue.discard()) this.#onTaken(item);
  }

  /**
   * Waits for the end, drops output that was not read, and returns how the execution ended.
   *
   * Throws `EndingUnknown` if that is not known, and `DigestMismatch` if the output was damaged on the way.
   */
  async wait(): Promise<Ending> {
    await this.started();
    this.#discard();
    await this.#finished.wait();
    if (this.#error !== undefined) throw this.#error;
    if (this.ending === undefined) {
      throw new EndingUnknown(`this client no longer follows execution ${this.id}`, this.id);
    }
    return this.ending;
  }

  // Control

  /**
   * Ends the command with TERM, and with KILL after `graceMs`. The output and the ending follow as always; `ending.cancel`
   * says whether all processes are gone.
   */
  async cancel(graceMs = DEFAULT_GRACE_MS): Promise<void> {
    await this.started();
    this.#requestCancel(graceMs);
  }

  #requestCancel(graceMs: number): void {
    this.#graceMs = graceMs;
    if (this.#isAccepted) this.#sendCancel(this.#session);
  }

  #sendCancel(session: Session | undefined): void {
    try {
      // Without a response, which would wait behind output that nobody reads. A refusal means that it has ended.
      session?.send("control", { type: "CANCEL", graceMs: this.#graceMs ?? DEFAULT_GRACE_MS, executionId: this.id });
    } catch (error) {
      if (!(error instanceof Broken)) throw error;
    }
  }

  /** Sends a signal, such as `SIGINT`, to the command's process group. */
  async signal(signal: SignalName): Promise<void> {
    await this.#ask("control", { type: "SIGNAL", signal, executionId: this.id });
  }

  /** Stops all processes of the execution. */
  async pause(): Promise<void> {
    await this.#ask("control", { type: "PAUSE", executionId: this.id });
  }

  /** Continues them. */
  async resume(): Promise<void> {
    await this.#ask("control", { type: "RESUME", executionId: this.id });
  }

  /**
   * Writes to the command's standard input. Resolves when the command can read all of it, so read the output meanwhile. The
   * execution must have been started with `stdin: true`.
   */
  async write(data: Uint8Array | string): Promise<void> {
    const bytes = Buffer.from(data as string);
    for (let at = 0; at < bytes.length; at += INPUT_BYTES) {
      const dataBase64 = bytes.subarray(at, at + INPUT_BYTES).toString("base64");
      await this.#ask("input", { dataBase64, executionId: this.id });
    }
  }

  /** Ends the command's standard input. */
  async closeStdin(): Promise<void> {
    await this.#ask("input", { eof: true, executionId: this.id });
  }

  /** Calls a method, and waits for its response. */
  async #ask<M extends keyof Methods>(method: M, params: Methods[M]["params"]): Promise<void> {
    await this.started();
    if (this.#finished.isSet || this.ending !== undefined) {
      throw new RequestRefused(`execution ${this.id} has ended`, NOT_RUNNING, undefined, this.id);
    }
    const session = this.#session;
    try {
      if (session === undefined) throw new Broken("there is no connection");
      await new Promise<void>((resolve, reject) => {
        const number = session.nextId();
        this.#answers.set(number, (error) => {
          this.#answers.delete(number);
          if (error === undefined) resolve();
          else reject(error);
        });
        session.send(method, params, number);
      });
    } catch (error) {
      if (!(error instanceof Broken)) throw error;
      throw new InputUnconfirmed(`the connection broke before ${method} was confirmed`, this.id);
    }
  }

  // The connections

  async #followToTheEnd(): Promise<void> {
    try {
      while (!this.#isLeft) {
        try {
          await this.#followOnOneConnection();
          break;
        } catch (error) {
          if (!(error instanceof Broken)) throw error;
          if (!this.#isLeft) await this.#waitBeforeReconnect(error);
        }
      }
    } catch (error) {
      if (error instanceof CcExecutorError) {
        error.executionId = this.id;
        this.#error = error;
      } else {
        this.#error = new EndingUnknown(`the service sent a message that is not valid: ${String(error)}`, this.id);
      }
    } finally {
      this.#breakAnswers();
      this.#queue.end();
      this.#ready.set();
      this.#finished.set();
    }
  }

  #breakAnswers(): void {
    for (const answer of [...this.#answers.values()]) answer(new Broken("the connection broke"));
  }

  /** Waits before the next attempt. Throws the final error when the time is over. */
  async #waitBeforeReconnect(broken: Broken): Promise<void> {
    const now = performance.now();
    const isKnown = this.#wasSent || this.#isAccepted;
    if (!isKnown && this.#request.execute !== undefined && this.#graceMs !== undefined) {
      throw new ServiceUnavailable("canceled before the service had accepted the command, which was not started");
    }
    if (this.#awaySince === undefined) {
      this.#awaySince = now;
      this.#pauseMs = FIRST_PAUSE_MS;
    }
    const pause = Math.max(this.#pauseMs * (0.5 + Math.random() / 2), broken.retryAfterMs);
    this.#pauseMs = Math.min(2 * this.#pauseMs, LONGEST_PAUSE_MS);
    const left = this.#awaySince + this.#request.reconnectMs - now;
    if (left <= 0 || pause > left || !(broken.temporary || isKnown)) throw this.#gaveUp(broken);
    await this.#left.wait(pause);
  }

  #gaveUp({ message }: Broken): CcExecutorError {
    if (this.#request.execute === undefined && !this.#isAccepted) {
      return new ServiceUnavailable(`${message}; execution ${this.id} may still run`);
    }
    if (!this.#wasSent && !this.#isAccepted) return new ServiceUnavailable(`${message}; the command was not started`);
    const { reconnectMs } = this.#request;
    const tried = reconnectMs > 0 ? `gave up reconnecting after ${reconnectMs / 1000} s: ` : "";
    return new EndingUnknown(`${tried}${message}; execution ${this.id} may still run: attach to it, or cancel it`);
  }

  async #followOnOneConnection(): Promise<void> {
    const { execute, reconnectMs } = this.#request;
    const left = this.#awaySince === undefined ? OPEN_PATIENCE_MS : this.#awaySince + reconnectMs - performance.now();
    const session = await Session.open(this.#url, this.#token, Math.max(left, 1_000));
    let [isOpen, isBroken] = [true, false];
    try {
      this.#session = session;
      if (this.#isLeft) return;
      await this.#sendRequest(session);
      if (this.#acknowledges) void this.#acknowledge(session, () => isOpen);
      if (this.#graceMs !== undefined) this.#sendCancel(session);
      this.#ready.set();
      try {
        while (this.ending === undefined) await this.#onMessage(await session.receive());
      } catch (error) {
        if (execute !== undefined && !(error instanceof Broken) && !(error instanceof TakenOver)) {
          // Nobody follows the command any more.
          this.#sendCancel(session);
        }
        throw error;
      }
      // The service keeps the output until the program has taken all of it.
      await this.#queue.drained();
      if (this.#acknowledges) session.send("ack", { executionId: this.id, offsets: this.#taken });
    } catch (error) {
      isBroken = error instanceof Broken;
      if (this.ending === undefined || !isBroken) throw error;
    } finally {
      isOpen = false;
      this.#moved.set();
      this.#movedFar.set();
      this.#session = undefined;
      this.#breakAnswers();
      // A broken connection does not answer a close frame.
      if (isBroken) session.abort();
      else await session.close();
    }
  }

  /** Sends `execute` or `attach`, and waits for the response. */
  async #sendRequest(session: Session): Promise<void> {
    const { execute, attach, reconnectMs } = this.#request;
    const wasSent = this.#wasSent;
    const number = session.nextId();
    if (execute !== undefined && !this.#isAccepted && (this.#sentInstance !== undefined || !wasSent)) {
      if (!wasSent && reconnectMs > 0) {
        execute.onDisconnect = "detach";
        execute.detachMs = Math.max(1, Math.min(Math.round(reconnectMs), session.connected.limits.detachMs));
      }
      // The command may run already. Only the instance that got the request may get it again.
      const repeated = wasSent && this.#sentInstance !== undefined ? { instance: this.#sentInstance } : {};
      this.#sentInstance ??= session.connected.instance;
      this.#wasSent = true;
      session.send("execute", { ...execute, ...repeated }, number);
    } else {
      // Also for a request whose response was lost and whose instance is not known: `attach` never runs a command.
      const offsets = { stdout: this.#received.stdout.end, stderr: this.#received.stderr.end };
      const framing = execute?.framing ?? attach?.framing ?? "chunk";
      const observe = attach?.observe === true ? { observe: true } : {};
      session.send("attach", { executionId: this.id, offsets, framing, ...observe }, number);
    }
    const deadline = performance.now() + ANSWER_PATIENCE_MS;
    let message: Message;
    for (;;) {
      message = await session.receive(Math.max(deadline - performance.now(), 1));
      if (message.id === number && message.method === undefined) break;
      await this.#onMessage(message);
    }
    if (message.error !== undefined) {
      throw this.#refusal(message.error, this.#isAccepted || (wasSent && execute !== undefined));
    }
    const result = message.result as ExecuteResult | AttachResult;
    this.#instance = result.instance ?? this.#instance;
    this.#isAccepted = true;
    this.#awaySince = undefined;
    if (result.claude === true || result.agent !== undefined) this.#received.stdout.resumeAgent();
    if (execute?.heartbeatMs !== undefined) session.expectHeartbeats(execute.heartbeatMs);
  }

  /**
   * The error for a refused `execute` or `attach`. `mayRun` says that an earlier request may have started the command.
   */
  #refusal(error: ErrorObject, mayRun: boolean): Error {
    const { code, data } = error;
    let { message } = error;
    if (TEMPORARY.includes(code)) {
      if (!mayRun && code !== BACKEND) {
        this.#wasSent = false;
        this.#sentInstance = undefined;
      }
      return new Broken(message, retryAfterMs(error));
    }
    if (mayRun) {
      const instance = (data as { instance?: string } | undefined)?.instance;
      if (code === OTHER_INSTANCE) {
        message = "the service was restarted before it answered; if it had started the command, that ended with it";
      } else if (code === UNKNOWN_EXECUTION && this.#instance !== undefined && this.#instance !== instance) {
        message = "the service was restarted, which ended the execution";
      }
      return new EndingUnknown(`how execution ${this.id} ended is not known: ${message}`);
    }
    const Kind = code === UNKNOWN_EXECUTION ? UnknownExecution : RequestRefused;
    return new Kind(message, code, data);
  }

  /** Acknowledges the output that the program has taken. From the first time on, pongs acknowledge nothing. */
  async #acknowledge(session: Session, isOpen: () => boolean): Promise<void> {
    try {
      while (isOpen()) {
        this.#moved.clear();
        this.#movedFar.clear();
        this.#nUnacknowledged = 0;
        session.send("ack", { executionId: this.id, offsets: { ...this.#taken } });
        await this.#moved.wait();
        await this.#movedFar.wait(ACK_DELAY_MS);
      }
    } catch (error) {
      if (!(error instanceof Broken)) throw error;
    }
  }

  // Messages

  async #onMessage({ id, method, params, error }: Message): Promise<void> {
    switch (method) {
      case "output":
        return this.#onOutput(params as OutputNotice);
      case "gap":
        return this.#onGap(params as GapNotice);
      case "statusUpdate":
        if ("reason" in (params as object)) this.#onEnded(params as FinalStatus);
        else this.status = params as StatusUpdate;
        return;
      case "detached":
        throw new TakenOver(`another session has attached to execution ${this.id}, which continues`);
      case "error": {
        const notice = params as ErrorObject;
        if (notice.code === SESSION_LIMIT) throw new Broken(notice.message, retryAfterMs(notice));
        return;
      }
      case undefined:
        this.#answers.get(id ?? 0)?.(
          error && new RequestRefused(error.message, error.code, error.data, this.id),
        );
    }
  }

  async #onOutput(params: OutputNotice): Promise<void> {
    const { type: stream, end, content, contentBase64 } = params;
    if (content === undefined && contentBase64 === undefined) throw new DigestMismatch("a message has no content");
    const data = content === undefined ? Buffer.from(contentBase64 ?? "", "base64") : Buffer.from(content);
    const fresh = this.#received[stream].take(data, end);
    if (fresh.length > 0) await this.#deliver({ stream, data: fresh, end });
  }

  async #onGap({ type: stream, from: start, to: end, reason }: GapNotice): Promise<void> {
    this.#received[stream].skip(start, end);
    const gap = { stream, start, end, reason };
    this.gaps.push(gap);
    await this.#deliver(gap);
  }

  async #deliver(item: Item): Promise<void> {
    if (!(await this.#queue.put(item))) this.#onTaken(item);
  }

  #onEnded(params: FinalStatus): void {
    const ending = endingOf(params);
    if (ending.reason === "backend_lost") {
      // The command's own ending is not known.
      if (this.#request.attach?.observe === true) throw new Broken(ending.message ?? "the backend's stream broke");
      throw new EndingUnknown(`how execution ${this.id} ended is not known: ${ending.message}`, this.id, ending);
    }
    for (const stream of ["stdout", "stderr"] as const) {
      this.#received[stream].check(ending.bytes[stream], ending.sha256[stream]);
    }
    this.ending = ending;
  }
}
