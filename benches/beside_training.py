"""Time to the first token with and without a training beside it, on one server, interleaved.

    python benches/beside_training.py --retune target/release/retune

Apps ask at a steady rate, whether or not earlier answers are there (so that a slow answer is not hidden by asking later), by
streams; the time to the first piece of text counts from when the request was due. A fine-tuning job of many epochs runs in the even
rounds, paused in the odd ones: the same server, the same questions.
"""

import argparse
import http.client
import json
import os
import random
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

TEXTS = [
    "I was charged twice for order {}, please send one payment back.",
    "The app shows an error when I open order {}.",
    "Where is order {}? It should have been here on Monday.",
    "Please change the address of order {} to 12 Mill Lane.",
]


def call(url, method="GET", body=None, kind="application/json"):
    request = urllib.request.Request(url, data=body, method=method, headers={"content-type": kind})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def upload(url, lines):
    body = (
        '--part\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        '--part\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n' + lines + "\r\n--part--\r\n"
    )
    return call(f"{url}/v1/files", "POST", body.encode(), "multipart/form-data; boundary=part")["id"]


def begin(url, base):
    rng = random.Random(1)
    line = lambda: json.dumps({"messages": [{"role": "user", "content": rng.choice(TEXTS).format(rng.randrange(10**6))}, {"role": "assistant", "content": "{\"team\": \"billing\"}"}]})
    file = upload(url, "\n".join(line() for _ in range(4000)))
    job = {"model": base, "training_file": file, "suffix": "beside", "hyperparameters": {"n_epochs": 50, "batch_size": 16}}
    return call(f"{url}/v1/fine_tuning/jobs", "POST", json.dumps(job).encode())["id"]


def until(url, job, status):
    while (found := call(f"{url}/v1/fine_tuning/jobs/{job}"))["status"] != status:
        assert found["status"] in ("queued", "running", "paused"), found
        time.sleep(0.5)


def steps(url, job):
    events = call(f"{url}/v1/fine_tuning/jobs/{job}/events?limit=5")["data"]
    return max((event["data"].get("step", 0) for event in events), default=0)


def ask(address, text, due, times):
    time.sleep(max(0.0, due - time.monotonic()))
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
    body = {"model": "triage", "stream": True, "messages": [{"role": "user", "content": text}], "temperature": 0}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    first = None
    for line in answer:
        if first is None and b'"content":"' in line and b'"content":""' not in line:
            first = time.monotonic() - due
    assert answer.status == 200 and first is not None, answer.status
    times.append(first)
    connection.close()


def round_of(url, rate, seconds, rng):
    address, times, begun = urlparse(url), [], time.monotonic() + 0.2
    threads = []
    for n in range(int(rate * seconds)):
        text = rng.choice(TEXTS).format(rng.randrange(10**6))
        threads.append(threading.Thread(target=ask, args=(address, text, begun + n / rate, times)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == len(threads), f"{len(threads) - len(times)} requests failed"
    return times


def percentile(times, share):
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] * 1000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", required=True)
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=4, help="each, with and without")
    args = parser.parse_args()
    program = Path(args.retune).resolve()
    with tempfile.TemporaryDirectory(prefix="retune-bench-") as folder:

        env = os.environ | {"RETUNE_SERVER__LISTEN": "127.0.0.1:0", "RETUNE_STORE__URL": "file:./store"}
        server = subprocess.Popen(
            [program, "up", "--json", "--stop-with-stdin"], cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            url = json.loads(server.stdout.readline())["listening"]
            base = call(f"{url}/v1/models")["data"][0]["id"]
            rng = random.Random(7)
            round_of(url, args.rate, 5, rng)
            job = begin(url, base)
            until(url, job, "running")
            figures = {"without": [], "with": []}
            trained = 0
            for _ in range(args.rounds):
                call(f"{url}/v1/fine_tuning/jobs/{job}/pause", "POST", b"")
                time.sleep(4)
                figures["without"] += round_of(url, args.rate, args.seconds, rng)
                call(f"{url}/v1/fine_tuning/jobs/{job}/resume", "POST", b"")
                until(url, job, "running")
                time.sleep(4)
                before = steps(url, job)
                figures["with"] += round_of(url, args.rate, args.seconds, rng)
                time.sleep(2)
                trained += steps(url, job) - before
            call(f"{url}/v1/fine_tuning/jobs/{job}/cancel", "POST", b"")
            assert trained > 0, "nothing was trained meanwhile"
        finally:
            server.stdin.close()
            server.wait(timeout=60)
    for name, times in figures.items():
        print(
            f"{name:8} {len(times)} requests, time to first token: median {statistics.median(times) * 1000:.1f} ms, "
            f"p95 {percentile(times, 0.95):.1f} ms, most {max(times) * 1000:.1f} ms"
        )
    print(f"{trained} steps were trained meanwhile; p95 with / without = {percentile(figures['with'], 0.95) / percentile(figures['without'], 0.95):.2f}")


if __name__ == "__main__":
    main()
