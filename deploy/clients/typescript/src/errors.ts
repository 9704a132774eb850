// The errors of this package. How a command ended is a value, not an error, unless it is not known.

import type { Ending, Gap, Result } from "./results.js";

/** The base of all errors of this package. */
export class CcExecutorError extends Error {
  /** The execution that the error concerns. */
  executionId: string | undefined;

  constructor(message: string, executionId?: string) {
    super(message);
    this.name = new.target.name;
    this.executionId = executionId;
  }
}

/** The service refuses the token, or demands one. */
export class NotAuthorized extends CcExecutorError {}

/** The service cannot be reached, is full, or is shutting down. The command was not started. */
export class ServiceUnavailable extends CcExecutorError {}

/** The service refuses the request, for instance because of a parameter. Nothing was started. */
export class RequestRefused extends CcExecutorError {
  constructor(
    message: string,
    /** The JSON-RPC error code, see src/protocol.md. */
    readonly code: number,
    /** Details for programs, such as `param`, `min` and `max`. */
    readonly data?: unknown,
    executionId?: string,
  ) {
    super(message, executionId);
  }
}

/** The service has no execution with this id, or it belongs to another client. */
export class UnknownExecution extends RequestRefused {}

/**
 * The command was started or may have been, and how it ended is not known: the client could not connect again in time, or
 * the service or its backend was restarted. `attach` with the id may still tell it.
 */
export class EndingUnknown extends CcExecutorError {
  constructor(
    message: string,
    executionId?: string,
    /** What the service reported, if it reported that its backend was lost. */
    readonly ending?: Ending,
  ) {
    super(message, executionId);
  }
}

/** Another session has attached to the execution, which continues. */
export class TakenOver extends CcExecutorError {}

/** The connection broke before the service had confirmed input, which the command may or may not have got. */
export class InputUnconfirmed extends CcExecutorError {}

/** The output that arrived is not what the command wrote. */
export class OutputError extends CcExecutorError {
  constructor(
    message: string,
    executionId?: string,
    /** How the command ended, and what did arrive. Only `run` sets it. */
    readonly result?: Result,
  ) {
    super(message, executionId);
  }
}

/** The service reports a gap: it no longer has some bytes of the output. */
export class OutputLost extends OutputError {
  constructor(
    message: string,
    /** The lost ranges. */
    readonly gaps: readonly Gap[],
    executionId?: string,
    result?: Result,
  ) {
    super(message, executionId, result);
  }
}

/** The number of bytes or their SHA-256 is not that which the service computed where the command ran. */
export class DigestMismatch extends OutputError {}

/** The command wrote more than the limit of `run`. `result` has the beginning, and `result.omitted` counts the rest. */
export class OutputTooLong extends OutputError {}

/** The command did not succeed. Only `check` throws this. */
export class ExecutionFailed extends CcExecutorError {
  constructor(
    message: string,
    /** How the command ended. */
    readonly result: Result,
  ) {
    super(message, result.executionId);
  }
}
