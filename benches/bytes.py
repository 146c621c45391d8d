"""Bytes a row: a store's exchanges as Parquet, beside the same rows as JSON lines, plain and with zstd.

    retune demo --once --store /tmp/demo-store    # or any store
    ~/.cache/retune-tools/readers/bin/python benches/bytes.py --retune target/release/retune --store /tmp/demo-store

Before and after `retune ledger compact`.
"""

import argparse
import json
import os
import subprocess

import pyarrow


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--retune", default="target/release/retune")
    args.add_argument("--store", required=True)
    args = args.parse_args()
    env = os.environ | {"RETUNE_STORE__URL": f"file:{os.path.abspath(args.store)}"}

    def ledger(*command):
        return subprocess.run([args.retune, "ledger", *command], env=env, check=True, capture_output=True).stdout

    def exchanges():
        return json.loads(ledger("stats", "--json").splitlines()[0])

    before = exchanges()
    ledger("compact")
    after = exchanges()
    lines = ledger("sql", "--json", "select * exclude (day) from exchanges order by ts, replica, seq")
    rows = len(lines.splitlines())
    sizes = {
        "JSON lines": len(lines),
        "JSON lines, zstd level 3 over the whole file": len(pyarrow.Codec("zstd", compression_level=3).compress(lines, asbytes=True)),
        f"Parquet as appended, {before['files']} files": before["bytes"],
        f"Parquet compacted, {after['files']} files": after["bytes"],
    }
    print(f"{rows} rows\n\n| | bytes a row | of JSON lines |\n|---|---|---|")
    for name, size in sizes.items():
        print(f"| {name} | {size / rows:.0f} | {size / len(lines):.2f} |")


if __name__ == "__main__":
    main()
