// The client: starts, runs, attaches to and cancels executions.

import { randomUUID } from "node:crypto";

import {
  type CcExecutorError,
  EndingUnknown,
  OutputLost,
  OutputTooLong,
  RequestRefused,
  ServiceUnavailable,
  UnknownExecution,
} from "./errors.js";
import { DEFAULT_GRACE_MS, Execution, NOT_RUNNING, UNKNOWN_EXECUTION } from "./execution.js";
import { describeGap, type Ending, endingOf, Result } from "./results.js";
import { ANSWER_PATIENCE_MS, Broken, OPEN_PATIENCE_MS, Session, sessionUrl, tokenOfEnvironment } from "./session.js";
import type { ClaudeOptions, ExecuteParams, FinalStatus, Framing, Methods, Overflow, TerminalSize } from "./types.js";

/** How long a client tries to connect again, and how long the command runs without it. */
const RECONNECT_MS = 300_000;
/** The output of each stream that `run` keeps, in bytes. */
const LIMIT = 64 << 20;

/** What `start` and `run` have in common. */
export interface CommandOptions {
  /** A name for people. No two running executions of a client have the same. */
  name?: string;
  executor?: string;
  cwd?: string;
  env?: Record<string, string>;
  /** Ends the command, which is then FAILED with the reason `timeout`. */
  timeoutMs?: number;
  /** Ends the command when it has written nothing for this time: FAILED with the reason `stalled`. */
  stallTimeoutMs?: number;
  heartbeatMs?: number;
  /**
   * For how long the client tries to connect again, and for how long the command runs without it: 300000 by default. With 0
   * a broken connection ends the command.
   */
  reconnectMs?: number;
  /** What happens to output when the service can keep no more of it: the command waits, or the oldest is dropped. */
  overflow?: Overflow;
  claude?: ClaudeOptions;
  /** Cancels the command. */
  signal?: AbortSignal;
}

export interface StartOptions extends CommandOptions {
  /** Connects the command's standard input to `write` and `closeStdin`. */
  stdin?: boolean;
  pty?: TerminalSize;
  framing?: Framing;
  /** Whether a gap in the output is no error. True by default with `overflow: "drop"`. */
  allowGaps?: boolean;
  executionId?: string;
}

export interface RunOptions extends CommandOptions {
  /** The command's standard input. */
  input?: Uint8Array | string;
  /** How many bytes of each stream are kept, 64 MiB by default. If the command writes more, `OutputTooLong` is thrown. */
  limit?: number;
  /** Whether a command that does not succeed throws `ExecutionFailed`. */
  check?: boolean;
}

export interface AttachOptions {
  /** The bytes of standard output that the program has. */
  stdout?: number;
  /** The bytes of standard error that the program has. */
  stderr?: number;
  /** Leaves the execution to the session that follows it. */
  observe?: boolean;
  framing?: Framing;
  reconnectMs?: number;
  allowGaps?: boolean;
}

/**
 * A service. Each execution has a connection of its own.
 *
 * Without `url` and `token` they are those of `CC_EXECUTOR_URL` and `CC_EXECUTOR_TOKEN`, as for the command line.
 */
export class Client {
  /** The URL of a session. */
  readonly url: string;
  readonly #token: string | undefined;

  constructor(url?: string, token?: string) {
    this.url = sessionUrl(url);
    this.#token = token ?? tokenOfEnvironment();
  }

  /** Starts a command: a text for a shell, or words that run exactly as they are, without a shell. */
  start(command: string | readonly string[], options: StartOptions = {}): Execution {
    const { signal, reconnectMs = RECONNECT_MS, allowGaps, executionId = randomUUID(), ...params } = options;
    const what = typeof command === "string" ? { command } : { argv: [...command] };
    const execute: ExecuteParams & { executionId: string } = { ...what, executionId, ...params };
    if (execute.overflow === "wait") delete execute.overflow;
    const request = { execute, reconnectMs, allowGaps: allowGaps ?? execute.overflow === "drop" };
    const execution = new Execution(this.url, this.#token, request);
    if (signal !== undefined) {
      const abort = (): void => void execution.close();
      if (signal.aborted) abort();
      signal.addEventListener("abort", abort, { once: true });
    }
    return execution;
  }

  /**
   * Follows an execution that runs, waits, or has ended: its output after these offsets, then live, and its ending. The
   * session that followed it before gets `TakenOver`, unless `observe` leaves the execution to it. The digest is checked if
   * the output is read from the beginning.
   */
  attach(executionId: string, options: AttachOptions = {}): Execution {
    const { stdout = 0, stderr = 0, observe = false, framing = "chunk" } = options;
    return new Execution(this.url, this.#token, {
      attach: { executionId, offsets: { stdout, stderr }, framing, observe },
      reconnectMs: options.reconnectMs ?? RECONNECT_MS,
      allowGaps: options.allowGaps ?? false,
    });
  }

  /**
   * Runs a command to its end, and returns its output and its ending.
   *
   * If `signal` is aborted, the command is cancelled, and the promise is rejected with the signal's reason.
   */
  async run(command: string | readonly string[], options: RunOptions = {}): Promise<Result> {
    const { input, limit = LIMIT, check = false, ...others } = options;
    others.signal?.throwIfAborted();
    const execution = this.start(command, { ...others, stdin: input !== undefined, allowGaps: true });
    const kept: Record<"stdout" | "stderr", Uint8Array[]> = { stdout: [], stderr: [] };
    const size = { stdout: 0, stderr: 0 };
    const omitted = { stdout: 0, stderr: 0 };
    try {
      await execution.started();
      const feeding = input === undefined ? undefined : feed(execution, input);
      feeding?.catch(() => {
        // Reported below. Until then the output is read.
      });
      for await (const { stream, data } of execution) {
        const part = data.subarray(0, Math.max(limit - size[stream], 0));
        kept[stream].push(part);
        size[stream] += part.length;
        omitted[stream] += data.length - part.length;
      }
      const ending = await execution.wait();
      await feeding;
      const result = new Result(ending, Buffer.concat(kept.stdout), Buffer.concat(kept.stderr), omitted, execution.gaps);
      if (execution.gaps.length > 0 && others.overflow !== "drop") {
        const lost = execution.gaps.map(describeGap).join("; ");
        throw new OutputLost(`${lost} of execution ${execution.id}`, execution.gaps, execution.id, result);
      }
      if (omitted.stdout > 0 || omitted.stderr > 0) {
        throw new OutputTooLong(
          `${omitted.stdout} bytes of stdout and ${omitted.stderr} of stderr are beyond the limit of ${limit}: raise the limit, or read the output with start`,
          execution.id,
          result,
        );
      }
      others.signal?.throwIfAborted();
      return check ? result.check() : result;
    } catch (error) {
      others.signal?.throwIfAborted();
      throw error;
    } finally {
      await execution.close();
    }
  }

  /**
   * Ends an execution, waits until it has ended, and returns how: `ending.cancel` says whether all processes are gone. Of one
   * that has ended already it returns the ending.
   */
  async cancel(executionId: string, graceMs = DEFAULT_GRACE_MS): Promise<Ending> {
    const known = (broken: unknown, make: (message: string) => CcExecutorError): unknown =>
      broken instanceof Broken ? make(broken.message) : broken;
    const session = await Session.open(this.url, this.#token, OPEN_PATIENCE_MS).catch((error: unknown) => {
      throw known(error, (why) => new ServiceUnavailable(`${why}; execution ${executionId} was not canceled`, executionId));
    });
    try {
      await ask(session, "control", { type: "CANCEL", graceMs, executionId }).catch((error: unknown) => {
        if (!(error instanceof RequestRefused) || error.code !== NOT_RUNNING) throw error;
      });
      for (let pause = 20; ; pause = Math.min(2 * pause, 500)) {
        const status = await ask(session, "status", { executionId });
        if ("reason" in status) return endingOf(status);
        if ("ending" in status && status.ending !== undefined) {
          return endingOf({ ...status.ending, executionId } as FinalStatus);
        }
        await new Promise((resolve) => setTimeout(resolve, pause));
      }
    } catch (error) {
      throw known(error, (why) => new EndingUnknown(`${why}; execution ${executionId} may still run`, executionId));
    } finally {
      await session.close();
    }
  }
}

/** Calls a method, and returns its result. */
async function ask<M extends keyof Methods>(
  session: Session,
  method: M,
  params: Methods[M]["params"] & { executionId?: string },
): Promise<Methods[M]["result"]> {
  const number = session.nextId();
  session.send(method, params, number);
  const deadline = performance.now() + ANSWER_PATIENCE_MS;
  for (;;) {
    const message = await session.receive(Math.max(deadline - performance.now(), 1));
    if (message.id !== number || message.method !== undefined) continue;
    if (message.error === undefined) return message.result as Methods[M]["result"];
    const { message: text, code, data } = message.error;
    const Kind = code === UNKNOWN_EXECUTION ? UnknownExecution : RequestRefused;
    throw new Kind(text, code, data, params.executionId);
  }
}

/** Writes the input of a command. A command that does not read it to the end is no error. */
async function feed(execution: Execution, input: Uint8Array | string): Promise<void> {
  try {
    await execution.write(input);
    await execution.closeStdin();
  } catch (error) {
    if (!(error instanceof RequestRefused) || error.code !== NOT_RUNNING) throw error;
  }
}
