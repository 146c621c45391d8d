#!/usr/bin/env python3
"""Runs the commands of docs/guides as a reader would: from the text itself, from top to bottom, in one shell.

    run.py --retune target/release/retune                              all guides
    run.py --retune target/release/retune docs/guides/apps.md          that one

A fence marked `sh` is run, one marked `text` or `console` is only shown; any other mark is refused, lest a fence be passed over by mistake.
Each guide has an empty folder and a home of its own, with `retune` on the path. The shell's script has the guide's own lines, so that an
error names the guide's line. A guide says port 8080; here it is a free one, since another server may be running. Needs bash, curl, jq,
python3 and, for what a guide installs, a package index. Exit code 1 where a command fails.
"""

import argparse
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

GUIDES = pathlib.Path(__file__).resolve().parent.parent.parent / "docs" / "guides"
SHOWN = ("text", "console")
# A guide that takes longer than this many seconds hangs.
LIMIT = 600
# On the script's first line, which is the guide's title.
PROLOGUE = "set -Eeuo pipefail; trap 'echo \"line $LINENO failed: $BASH_COMMAND\" >&2' ERR"


class Wrong(Exception):
    """A guide that cannot be run as it is written."""


def script(text):
    """The commands of a guide, each on the guide's own line."""
    lines, mark = [], None
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"(\s*)```(.*)$", line)
        if not fence:
            lines.append(line if mark == "sh" else "")
            continue
        lines.append("")
        if mark is not None:
            mark = None
            continue
        mark = fence[2].strip()
        if fence[1]:
            raise Wrong(f"line {number}: an indented fence is not understood; begin it at the margin")
        if mark != "sh" and mark not in SHOWN:
            raise Wrong(f"line {number}: a fence marked {mark!r} is neither run (sh) nor shown ({', '.join(SHOWN)})")
    if mark is not None:
        raise Wrong("the last fence has no end")
    if not any(lines):
        raise Wrong("no fence is marked sh: there is nothing to run")
    if lines[0]:
        raise Wrong("line 1: a guide begins with its title")
    return "\n".join([PROLOGUE, *lines[1:], ""])


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(guide, program):
    """Runs a guide; what it said, and None or why it failed."""
    commands, port = script(guide.read_text()), free_port()
    commands = re.sub(r"\b8080\b", str(port), commands)
    with tempfile.TemporaryDirectory(prefix="retune-guide-") as folder:
        folder = pathlib.Path(folder)
        (folder / "bin").mkdir()
        (folder / "bin" / "retune").symlink_to(program)
        (folder / "work").mkdir()
        (folder / guide.name).write_text(commands)
        # No setting of whoever runs this, and nothing of theirs written: but pip may use what it has downloaded before.
        env = {key: value for key, value in os.environ.items() if not key.startswith("RETUNE_")}
        env |= {
            "PATH": f"{folder / 'bin'}:{env['PATH']}",
            "HOME": str(folder),
            "PIP_CACHE_DIR": env.get("PIP_CACHE_DIR", os.path.expanduser("~/.cache/pip")),
            "RETUNE_SERVER__LISTEN": f"127.0.0.1:{port}",
        }
        with open(folder / "said", "w+") as said:
            shell = subprocess.Popen(["bash", folder / guide.name], cwd=folder / "work", env=env, stdin=subprocess.DEVNULL,
                                     stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = shell.wait(timeout=LIMIT)
                why = None if code == 0 else f"exit code {code}"
            except subprocess.TimeoutExpired:
                why = f"it is not done after {LIMIT} seconds"
            finally:
                left = end(shell)
            if why is None and left:
                why = "its end leaves a process running; end what the guide starts"
            said.seek(0)
            return said.read(), why


def end(shell):
    """Ends what the shell has started, all of it; tells whether there was anything."""
    try:
        os.killpg(shell.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    finally:
        shell.wait()
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", help="the built program")
    parser.add_argument("guides", nargs="*", type=pathlib.Path, help="all of docs/guides by default")
    args = parser.parse_args()
    program = pathlib.Path(args.retune).resolve()
    if not os.access(program, os.X_OK):
        parser.error(f"--retune: {program} is no program; build it (cargo build --release), or name another")
    failed = 0
    for guide in args.guides or sorted(GUIDES.glob("*.md")):
        began = time.monotonic()
        try:
            said, why = run(guide, program)
        except (OSError, Wrong) as error:
            said, why = "", str(error)
        print(f"{guide.name}: {why or 'every command works'} ({time.monotonic() - began:.0f} s)", flush=True)
        if why:
            failed += 1
            print(said, file=sys.stderr, flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
