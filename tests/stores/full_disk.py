"""A disk that is full: what was answered is there once, or counted where rows may be dropped; and room makes all well again.

    python tests/stores/full_disk.py --retune target/release/retune

The disk is a small file system in memory, mounted in a namespace of this program's own: needs Linux, and root or user namespaces.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from machine import Machine, until

# The disk, and what fills it until there is to be room again.
DISK, BALLAST = 16 << 20, 14 << 20
CLIENTS = 4
INSIDE = "RETUNE_FULL_DISK_INSIDE"


class Clients:
    """Ask until they are told to stop; keep every status, and the ids of what was answered."""

    def __init__(self, machine):
        self.machine, self.over = machine, threading.Event()
        self.ids, self.refused, self.failed = [], [], []
        self.threads = [threading.Thread(target=self.ask, args=(n,)) for n in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def ask(self, client):
        n = 0
        while not self.over.is_set():
            n += 1
            text = f"Client {client} asks for the {n}th time: " + "where is my order? " * 20
            body = {"model": "triage", "max_tokens": 2, "stream": client % 2 == 1, "messages": [{"role": "user", "content": text}]}
            status, answer = self.machine.post("/v1/chat/completions", body)
            if status == 200 and isinstance(answer, dict):
                self.ids.append(answer["id"])
            elif status == 200 and b"data: [DONE]" in answer:
                self.ids.append(re.search(rb'"id":"([^"]+)"', answer)[1].decode())
            elif status in (200, 503) and b"log_unavailable" in answer:
                self.refused.append(status)
                time.sleep(0.05)
            else:
                self.failed.append((status, answer))

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()
        assert self.failed == [], self.failed[:3]


def dropped(machine):
    with urllib.request.urlopen(machine.url + "/metrics", timeout=10) as answer:
        text = answer.read().decode()
    counts = re.findall(r"^retune_ledger_rows_dropped_total\{[^}]*\} (\S+)", text, re.MULTILINE)
    return sum(int(float(count)) for count in counts)


def play(retune, folder, on_failure):
    disk = folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "retune", str(disk)], check=True)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(BALLAST))
    environment = {
        "RETUNE_STORE__URL": f"file:{disk / 'store'}",
        "RETUNE_STORE__ON_LOG_FAILURE": on_failure,
        "RETUNE_STORE__COMPACT_SECONDS": "1",
    }
    machine = Machine(retune, folder / "machine", environment).start()
    try:
        clients = Clients(machine)
        is_full = (lambda: dropped(machine) > 20) if on_failure == "drop" else (lambda: len(clients.refused) > 20)
        until(is_full, "the disk is full", 240)
        time.sleep(3)
        # Questions are answered on a full disk.
        assert machine.sql("select count(*) as n from exchanges")[0]["n"] > 0
        ballast.unlink()
        before = len(clients.ids)
        until(lambda: len(clients.ids) > before + 50, "with room apps are answered")
        clients.stop()
        lost = dropped(machine)
        assert machine.kill(signal.SIGTERM) == 0, "the end"
        kept = machine.ids()
        asked = set(clients.ids)
        doubled = [id for id, n in kept.items() if n != 1]
        missing = asked - set(kept)
        assert not doubled and set(kept) <= asked, (doubled, len(set(kept) - asked))
        if on_failure == "reject":
            # Whoever was let in at the last moment with room is refused at the end of the answer.
            assert not missing and lost <= CLIENTS, f"{len(missing)} answers were given and not kept, {lost} counted"
        else:
            assert len(missing) == lost, f"{len(missing)} answers are missing, and {lost} counted"
        verified = json.loads(machine.run("ledger", "verify", "--json").splitlines()[-1])
        assert verified["problems"] == 0, verified
        left = list((disk / "store/wal").glob("*/*.wal"))
        assert not left, left
        print(f"{on_failure}: {len(asked)} answered, {len(clients.refused)} refused, {lost} dropped and counted, none lost or doubled", flush=True)
    except BaseException:
        print((folder / "machine/log").read_text()[-3000:])
        raise
    finally:
        if machine.child.poll() is None:
            machine.kill()
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", required=True)
    args = parser.parse_args()
    retune = str(Path(args.retune).resolve())
    if INSIDE not in os.environ:
        again = ["unshare", "--map-root-user", "--mount", sys.executable, *sys.argv]
        sys.exit(subprocess.run(again, env=os.environ | {INSIDE: "1"}, check=False).returncode)
    for on_failure in ("drop", "reject"):
        folder = Path(tempfile.mkdtemp(prefix="retune-full-"))
        try:
            play(retune, folder, on_failure)
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
