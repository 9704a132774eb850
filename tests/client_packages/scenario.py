"""Runs one scenario with the Python client: argv[1] is its description as JSON, and the report is a line of JSON."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cc_executor import AsyncClient, AsyncExecution, CcExecutorError, Client, Ending, OutputError, OutputLost, Result


def report_of(ending: Ending | None) -> dict[str, Any]:
    if ending is None:
        return {}
    return {
        "status": ending.status,
        "reason": ending.reason,
        "exitCode": ending.exit_code,
        "verified": None if ending.cancel is None else ending.cancel["verified"],
    }


def say(report: dict[str, Any]) -> None:
    print(json.dumps(report), flush=True)


async def follow(execution: AsyncExecution, scenario: dict[str, Any]) -> dict[str, Any]:
    digest, n_bytes, stderr = hashlib.sha256(), 0, b""
    async with execution:
        async for output in execution:
            if output.stream == "stderr":
                stderr += output.data
                continue
            if n_bytes == 0:
                say({"id": execution.id})
                if "pauseMs" in scenario:
                    await asyncio.sleep(scenario["pauseMs"] / 1000)
                if scenario.get("then") == "leave":
                    break
                if scenario.get("then") == "detach":
                    await execution.detach()
                    return {"detached": True}
                if scenario.get("then") == "cancel":
                    await execution.cancel(grace=2)
                if scenario.get("then") == "write":
                    await execution.write(b"line\n")
                    await execution.close_stdin()
                if scenario.get("then") == "signal":
                    await execution.pause()
                    await execution.resume()
                    await execution.signal("SIGUSR1")
            digest.update(output.data)
            n_bytes += len(output.data)
        else:
            await execution.wait()
    gaps = [[gap.start, gap.end, gap.reason] for gap in execution.gaps]
    received = {"sha256": digest.hexdigest(), "bytes": n_bytes, "stderr": stderr.decode(), "gaps": gaps}
    return {**received, **report_of(execution.ending)}


def of_result(result: Result) -> dict[str, Any]:
    digest = hashlib.sha256(result.stdout).hexdigest()
    output = {"sha256": digest, "bytes": len(result.stdout), "stdout": result.text[:200], "stderr": result.stderr.decode()}
    return {**output, **report_of(result.ending), "omitted": result.omitted.stdout}


async def perform(scenario: dict[str, Any]) -> dict[str, Any]:
    client = AsyncClient(scenario.get("url"), scenario.get("token"))
    reconnect = scenario.get("reconnectMs", 20_000) / 1000
    match scenario["do"]:
        case "start":
            execution = client.start(
                scenario["command"],
                reconnect=reconnect,
                heartbeat=scenario.get("heartbeatMs", 1_000) / 1000,
                stdin=scenario.get("then") == "write",
                overflow=scenario.get("overflow", "wait"),
            )
            return await follow(execution, scenario)
        case "attach":
            execution = client.attach(
                scenario["id"],
                reconnect=reconnect,
                observe=scenario.get("observe", False),
                allow_gaps=scenario.get("allowGaps", False),
            )
            return await follow(execution, scenario)
        case "cancel":
            return report_of(await client.cancel(scenario["id"], grace=2))
        case _:
            raise ValueError(scenario["do"])


def run_blocking(scenario: dict[str, Any]) -> dict[str, Any]:
    client = Client(scenario.get("url"), scenario.get("token"))
    if "interruptible" in scenario:
        say({"ready": True})
    timeout = scenario.get("timeoutMs")
    result = client.run(
        scenario["command"],
        reconnect=scenario.get("reconnectMs", 20_000) / 1000,
        timeout=None if timeout is None else timeout / 1000,
        limit=scenario.get("limit", 1 << 30),
        check=scenario.get("check", False),
        input="x" * scenario["inputBytes"] if "inputBytes" in scenario else None,
    )
    return of_result(result)


def main() -> None:
    scenario = json.loads(sys.argv[1])
    try:
        report = run_blocking(scenario) if scenario["do"] == "run" else asyncio.run(perform(scenario))
    except KeyboardInterrupt:
        report = {"error": "KeyboardInterrupt"}
    except CcExecutorError as error:
        report = {"error": type(error).__name__, "message": str(error), "executionId": error.execution_id}
        if isinstance(error, OutputLost):
            report["gaps"] = [[gap.start, gap.end, gap.reason] for gap in error.gaps]
        if isinstance(error, OutputError) and error.result is not None:
            report["result"] = of_result(error.result)
    # Not the maximum of getrusage(2), which includes that of the test from which this process was started.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    say({**report, "memory": int(peak.split()[1])})


main()
