// Runs one scenario with the TypeScript client: argv[2] is its description as JSON, and the report is a line of JSON.

import {
  CcExecutorError,
  Client,
  type Ending,
  type Execution,
  OutputError,
  OutputLost,
  type Result,
  type types,
} from "cc-executor-client";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

interface Scenario {
  do: "start" | "attach" | "cancel" | "run";
  url?: string;
  token?: string;
  command: string | string[];
  id: string;
  then?: "leave" | "detach" | "cancel" | "write" | "signal";
  pauseMs?: number;
  reconnectMs?: number;
  heartbeatMs?: number;
  timeoutMs?: number;
  limit?: number;
  check?: boolean;
  inputBytes?: number;
  overflow?: types.Overflow;
  observe?: boolean;
  allowGaps?: boolean;
  interruptible?: boolean;
}

type Report = Record<string, unknown>;

const say = (report: Report): void => console.log(JSON.stringify(report));

function reportOf(ending: Ending | undefined): Report {
  if (ending === undefined) return {};
  const { status, reason, exitCode, cancel } = ending;
  return { status, reason, exitCode, verified: cancel === null ? null : cancel.verified };
}

async function follow(execution: Execution, scenario: Scenario): Promise<Report> {
  try {
    return await followed(execution, scenario);
  } finally {
    await execution.close();
  }
}

async function followed(execution: Execution, { then, pauseMs }: Scenario): Promise<Report> {
  const digest = createHash("sha256");
  let nBytes = 0;
  let stderr = "";
  let left = false;
  for await (const { stream, data } of execution) {
    if (stream === "stderr") {
      stderr += new TextDecoder().decode(data);
      continue;
    }
    if (nBytes === 0) {
      say({ id: execution.id });
      if (pauseMs !== undefined) await new Promise((resolve) => setTimeout(resolve, pauseMs));
      if (then === "leave") {
        left = true;
        break;
      }
      if (then === "detach") {
        await execution.detach();
        return { detached: true };
      }
      if (then === "cancel") await execution.cancel(2_000);
      if (then === "write") {
        await execution.write("line\n");
        await execution.closeStdin();
      }
      if (then === "signal") {
        await execution.pause();
        await execution.resume();
        await execution.signal("SIGUSR1");
      }
    }
    digest.update(data);
    nBytes += data.length;
  }
  if (!left) await execution.wait();
  const gaps = execution.gaps.map(({ start, end, reason }) => [start, end, reason]);
  return { sha256: digest.digest("hex"), bytes: nBytes, stderr, gaps, ...reportOf(execution.ending) };
}

function ofResult(result: Result): Report {
  return {
    sha256: createHash("sha256").update(result.stdout).digest("hex"),
    bytes: result.stdout.length,
    stdout: result.text.slice(0, 200),
    stderr: new TextDecoder().decode(result.stderr),
    ...reportOf(result.ending),
    omitted: result.omitted.stdout,
  };
}

async function perform(scenario: Scenario): Promise<Report> {
  const client = new Client(scenario.url, scenario.token);
  const { command, then, reconnectMs = 20_000, heartbeatMs = 1_000, overflow = "wait" } = scenario;
  switch (scenario.do) {
    case "start":
      return follow(client.start(command, { reconnectMs, heartbeatMs, overflow, stdin: then === "write" }), scenario);
    case "attach": {
      const { observe = false, allowGaps = false } = scenario;
      return follow(client.attach(scenario.id, { reconnectMs, observe, allowGaps }), scenario);
    }
    case "cancel":
      return reportOf(await client.cancel(scenario.id, 2_000));
    case "run": {
      const interrupt = new AbortController();
      process.once("SIGINT", () => interrupt.abort(new Error("interrupted")));
      if (scenario.interruptible === true) say({ ready: true });
      const { timeoutMs, limit = 1 << 30, check = false, inputBytes } = scenario;
      const options = {
        reconnectMs,
        limit,
        check,
        signal: interrupt.signal,
        ...(timeoutMs === undefined ? {} : { timeoutMs }),
        ...(inputBytes === undefined ? {} : { input: "x".repeat(inputBytes) }),
      };
      return ofResult(await client.run(command, options));
    }
  }
}

let report: Report;
try {
  report = await perform(JSON.parse(process.argv[2] ?? "{}") as Scenario);
} catch (error) {
  if (!(error instanceof CcExecutorError)) {
    report = { error: error instanceof Error && error.message === "interrupted" ? "KeyboardInterrupt" : String(error) };
  } else {
    report = { error: error.name, message: error.message, executionId: error.executionId };
    if (error instanceof OutputLost) report.gaps = error.gaps.map(({ start, end, reason }) => [start, end, reason]);
    if (error instanceof OutputError && error.result !== undefined) report.result = ofResult(error.result);
  }
}
// Not the maximum of getrusage(2), which includes that of the test from which this process was started.
const peak = /VmHWM:\s*(\d+)/.exec(readFileSync("/proc/self/status", "utf8"));
say({ ...report, memory: Number(peak?.[1]) });
