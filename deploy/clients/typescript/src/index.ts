// Runs commands on a cc-executor service: reconnects, checks every byte, and never invents an ending.

export { type AttachOptions, Client, type CommandOptions, type RunOptions, type StartOptions } from "./client.js";
export * from "./errors.js";
export type { Execution } from "./execution.js";
export { describeEnding, describeGap, type Ending, type Gap, type Output, type PerStream, Result } from "./results.js";
export type * as types from "./types.js";
