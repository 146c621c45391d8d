#!/usr/bin/env python3
"""Ten times the capacity for a minute: who is sent away is sent at once, who is let in is answered soon, and memory stays.

    pip install -r tests/clients/requirements.txt
    python benches/load.py --retune target/release/retune

First the capacity: as many clients as the server runs at once, each asking again when it is answered, so that the batch is full and the queue
is empty. Then strangers come at ten times that rate, whatever becomes of them. Exit code 1 where a limit was missed.
"""

import argparse
import asyncio
import json
import pathlib
import random
import statistics
import sys
import time

import httpx2

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests" / "clients"))
from server import running  # noqa: E402

FACTOR = 10


def body(n):
    content = f"The parcel with my Lumo lamp, order {100000 + n % 900000}, has not come."
    return {"model": "triage", "messages": [{"role": "user", "content": content}], "temperature": 0, "stream": True}


async def ask(client, url, n):
    """The status, the seconds to the first content and to the end, and the tokens' events."""
    begun = time.perf_counter()
    first, events = None, 0
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body(n)) as response:
        if response.status_code != 200:
            await response.aread()
            assert response.headers.get("retry-after"), response.headers
            return response.status_code, time.perf_counter() - begun, None, 0
        async for line in response.aiter_lines():
            if line.startswith("data: {") and '"content":"' in line and '"role"' not in line:
                first = first or time.perf_counter() - begun
                events += 1
        assert line == "" or line == "data: [DONE]", line
    return 200, first, time.perf_counter() - begun, events


async def capacity(client, url, at_once, seconds):
    end = time.perf_counter() + seconds
    found = []

    async def one(k):
        n = k
        while time.perf_counter() < end:
            found.append(await ask(client, url, n))
            n += at_once

    await asyncio.gather(*(one(k) for k in range(at_once)))
    assert all(status == 200 for status, *_ in found)
    return len(found) / seconds, [first for _, first, _, _ in found]


async def flood(client, url, rate, seconds):
    """Arrivals at random, at `rate` a second."""
    source, tasks = random.Random(1), []
    begun, at = time.perf_counter(), 0.0
    while at < seconds:
        await asyncio.sleep(max(0.0, begun + at - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(client, url, len(tasks))))
        at += source.expovariate(rate)
    return await asyncio.gather(*tasks)


def resident(pid):
    """MiB."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


async def watch(pid, memory, pause):
    while True:
        await asyncio.sleep(pause)
        memory.append(resident(pid))


async def measure(url, pid, arguments):
    async with httpx2.AsyncClient(timeout=120, limits=httpx2.Limits(max_connections=None)) as client:
        await capacity(client, url, arguments.at_once, 3)
        rate, alone = await capacity(client, url, arguments.at_once, arguments.seconds / 3)
        memory = [resident(pid)]
        watching = asyncio.create_task(watch(pid, memory, arguments.seconds / 4))
        answers = await flood(client, url, FACTOR * rate, arguments.seconds)
        watching.cancel()
        memory.append(resident(pid))
    codes = {}
    for status, *_ in answers:
        codes[status] = codes.get(status, 0) + 1
    admitted = [first for status, first, _, _ in answers if status == 200]
    refused = [seconds for status, seconds, _, _ in answers if status == 429]
    median, p95 = statistics.median, lambda values: statistics.quantiles(values, n=20)[-1]
    return {
        "capacity_per_second": round(rate, 1),
        "asked": len(answers),
        "codes": codes,
        "first_token_full_batch_s": round(median(alone), 4),
        "first_token_admitted_s": round(median(admitted), 4),
        "first_token_ratio": round(median(admitted) / median(alone), 2),
        "first_token_admitted_p95_s": round(p95(admitted), 4),
        "refused_median_s": round(median(refused), 4),
        "memory_mib": [round(mib) for mib in memory],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", help="the built program")
    parser.add_argument("--at-once", type=int, default=8, help="engine.max_running")
    parser.add_argument("--queue", type=int, default=4, help="engine.max_queue")
    parser.add_argument("--seconds", type=float, default=60, help="of the flood")
    arguments = parser.parse_args()
    env = {"RETUNE_ENGINE__MAX_RUNNING": str(arguments.at_once), "RETUNE_ENGINE__MAX_QUEUE": str(arguments.queue)}
    with running(arguments.retune, **env) as (url, pid):
        figures = asyncio.run(measure(url, pid, arguments))
    print(json.dumps(figures))
    held = {
        "only answers and 429s": set(figures["codes"]) == {200, 429},
        "first tokens within twice": figures["first_token_ratio"] <= 2,
        "memory within a tenth": max(figures["memory_mib"]) <= 1.1 * figures["memory_mib"][0],
    }
    for name, holds in held.items():
        print(f"{'held' if holds else 'MISSED'}: {name}", file=sys.stderr)
    sys.exit(0 if all(held.values()) else 1)


if __name__ == "__main__":
    main()
