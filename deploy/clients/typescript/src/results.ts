// The values that a client gets: pieces of output, gaps, endings and results.

import { ExecutionFailed } from "./errors.js";
import type { CancelReport, ClaudeResult, FinalStatus, GapReason, Reason, Status, Stream, Usage } from "./types.js";

/** One value for each output stream. */
export interface PerStream<T> {
  stdout: T;
  stderr: T;
}

/** A piece of output. */
export interface Output {
  stream: Stream;
  /** The bytes. */
  data: Uint8Array;
  /** The offset in the stream after them: what `attach` takes to continue there. */
  end: number;
}

/** Bytes of the output that the service no longer has. */
export interface Gap {
  stream: Stream;
  /** The offset of the first lost byte. */
  start: number;
  /** The offset after the last lost byte. */
  end: number;
  /** `dropped` if the execution drops output, `overwritten`, or `unreadable`. */
  reason: GapReason;
}

/** How an execution ended, as the service reported it. */
export interface Ending {
  executionId: string;
  /** `COMPLETED` (exit code 0), `CANCELLED` or `FAILED`. */
  status: Status;
  /** Why: `exit`, `signal`, `oom`, `timeout`, `canceled` and so on; `unknown` is a reason of a newer service. */
  reason: Reason;
  /** The exit code, if the command exited. */
  exitCode: number | null;
  /** The name of the signal that ended the command. */
  signal: string | null;
  /** A message for people. */
  message: string | null;
  /** Milliseconds since the command started. */
  elapsedMs: number | null;
  /** How many bytes the command wrote. */
  bytes: PerStream<number | null>;
  /** Their SHA-256 in hexadecimal. */
  sha256: PerStream<string | null>;
  /** Processor time and memory, as far as they are known. */
  usage: Usage | null;
  /** Whether all processes are gone, if the service ended the execution. */
  cancel: CancelReport | null;
  /** Claude's result, with the executor `claude`. */
  claude: ClaudeResult | null;
  /** All fields of the final status, also those that are newer than this package. */
  raw: FinalStatus;
}

const REASONS: Record<Reason, true> = {
  exit: true,
  signal: true,
  oom: true,
  not_started: true,
  timeout: true,
  stalled: true,
  canceled: true,
  drained: true,
  disconnected: true,
  claude_error: true,
  backend_unreachable: true,
  backend_rejected: true,
  backend_lost: true,
  unknown: true,
};

/** Reads the parameters of a final status. */
export function endingOf(params: FinalStatus): Ending {
  return {
    executionId: params.executionId,
    status: params.status,
    reason: params.reason in REASONS ? params.reason : "unknown",
    exitCode: params.exit_code ?? null,
    signal: params.signal ?? null,
    message: params.message ?? null,
    elapsedMs: params.elapsedMs ?? null,
    bytes: { stdout: params.bytes.stdout ?? null, stderr: params.bytes.stderr ?? null },
    sha256: { stdout: params.sha256.stdout ?? null, stderr: params.sha256.stderr ?? null },
    usage: params.usage ?? null,
    cancel: params.cancel ?? null,
    claude: params.result ?? null,
    raw: params,
  };
}

/** An ending in one line. */
export function describeEnding(ending: Ending): string {
  const parts = [ending.reason, ending.exitCode, ending.signal].filter((part) => part !== null);
  return `${ending.status}, ${parts.join(" ")}${ending.message === null ? "" : `: ${ending.message}`}`;
}

/** A gap in words. */
export function describeGap(gap: Gap): string {
  const { stream, start, end, reason } = gap;
  return `${end - start} bytes of ${stream} are lost (${reason}, from ${start} to ${end})`;
}

/** The output of a command and how it ended. Count and SHA-256 of the output are those of the service. */
export class Result {
  constructor(
    readonly ending: Ending,
    readonly stdout: Uint8Array,
    readonly stderr: Uint8Array,
    /** How many bytes of each stream are beyond the limit of `run`, and not here. */
    readonly omitted: PerStream<number>,
    /** Bytes that the service no longer had, and that are not here. Empty unless gaps are allowed. */
    readonly gaps: readonly Gap[],
  ) {}

  get executionId(): string {
    return this.ending.executionId;
  }

  /** Whether the command succeeded. */
  get ok(): boolean {
    return this.ending.status === "COMPLETED";
  }

  get status(): Status {
    return this.ending.status;
  }

  get reason(): Reason {
    return this.ending.reason;
  }

  get exitCode(): number | null {
    return this.ending.exitCode;
  }

  get bytes(): PerStream<number | null> {
    return this.ending.bytes;
  }

  get sha256(): PerStream<string | null> {
    return this.ending.sha256;
  }

  /** Standard output as text. */
  get text(): string {
    return new TextDecoder().decode(this.stdout);
  }

  /** Returns this result if the command succeeded, else throws `ExecutionFailed`. */
  check(): this {
    if (!this.ok) {
      throw new ExecutionFailed(`the command did not succeed: ${describeEnding(this.ending)}`, this);
    }
    return this;
  }
}
