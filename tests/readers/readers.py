"""Other engines read the ledger's tables as they are: deltalake, Polars and DuckDB give what `retune ledger sql` gives.

    python tests/readers/readers.py --retune target/release/retune

Makes a store by `ledger import`, of three days, asks, merges its files, asks again, and reads the version before as well.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import duckdb
import polars
import pyarrow.parquet
from deltalake import DeltaTable

DAYS = ["2026-03-01", "2026-03-02", "2026-03-03"]
PER_DAY = 40


def lines():
    for day in DAYS:
        for n in range(PER_DAY):
            line = {
                "task": "triage",
                "ts": f"{day}T23:59:{n:02}.999999Z" if n % 2 else f"{day}T00:00:{n:02}Z",
                "messages": [
                    {"role": "user", "content": f"It's “{n}” on {day} 🦀, isn't it?"},
                    {"role": "assistant", "content": json.dumps({"n": n})},
                ],
                "user": f"user-{n % 7}",
            }
            if n % 4 == 0:
                line["rating"] = 1 + n % 5
            yield line


class Store:
    def __init__(self, retune, folder):
        self.retune, self.folder = retune, Path(folder)
        self.store = self.folder / "store"

    def run(self, *args, **more):
        environment = {"RETUNE_STORE__URL": f"file:{self.store}", "PATH": "/usr/bin:/bin", "HOME": str(self.folder)}
        done = subprocess.run([self.retune, *args], env=environment, cwd=self.folder, capture_output=True, text=True, **more)
        assert done.returncode == 0, f"retune {' '.join(args)}: {done.stderr}"
        return done.stdout

    def sql(self, query):
        return [json.loads(line) for line in self.run("ledger", "sql", "--json", query).splitlines()]

    def table(self, name, **more):
        return DeltaTable(str(self.store / name), **more)


def same(store, version=None):
    """Every engine's counts and values are Retune's."""
    query = "select cast(day as varchar) as day, count(*) as n, min(request_id) as first from exchanges group by 1 order by 1"
    ours = store.sql(query)
    assert [row["day"] for row in ours] == DAYS and all(row["n"] == PER_DAY for row in ours), ours

    table = store.table("exchanges") if version is None else store.table("exchanges", version=version)
    assert table.metadata().partition_columns == ["day"]
    assert table.metadata().configuration["retune.schemaVersion"] == "2"
    files = [uri.removeprefix("file://") for uri in table.file_uris()]
    exchanges = f"read_parquet({files!r}, hive_partitioning = true)"
    db = duckdb.connect()
    theirs = db.execute(query.replace("exchanges", exchanges)).fetchall()
    assert theirs == [(row["day"], row["n"], row["first"]) for row in ours], theirs

    source = table if version is None else DeltaTable(str(store.store / "exchanges"), version=version)
    frame = polars.scan_delta(source).filter(polars.col("user") == "user-3").sort("ts", "request_id").collect()
    rows = store.sql("select request_id, messages, answer, format_valid from exchanges where \"user\" = 'user-3' order by ts, request_id")
    assert frame.height == len(rows) > 0
    for left, right in zip(frame.iter_rows(named=True), rows):
        for column in ("request_id", "messages", "answer", "format_valid"):
            assert left[column] == right[column], (column, left, right)

    arrow = duckdb.connect().execute(
        f"select count(*), avg(rating) from {exchanges} e join read_parquet({[u.removeprefix('file://') for u in store.table('feedback').file_uris()]!r}) f using (request_id)"
    ).fetchone()
    joined = store.sql("select count(*) as n, avg(rating) as mean from exchanges e join feedback f on e.request_id = f.request_id")[0]
    assert arrow == (joined["n"], joined["mean"]), (arrow, joined)
    return files


def how_they_are_written(files):
    for path in files:
        meta = pyarrow.parquet.ParquetFile(path).metadata
        for column in range(meta.num_columns):
            chunk = meta.row_group(0).column(column)
            assert chunk.compression == "ZSTD", (chunk.path_in_schema, chunk.compression)
            if chunk.path_in_schema in ("messages", "answer"):
                assert not chunk.is_stats_set or not chunk.statistics.has_min_max, f"{chunk.path_in_schema} tells what it says"


def main():
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument("--retune", required=True)
    retune = str(Path(args.parse_args().retune).resolve())
    with tempfile.TemporaryDirectory() as folder:
        store = Store(retune, folder)
        all_lines = list(lines())
        # In three parts, so that there are several files a day.
        for part in range(3):
            text = "".join(json.dumps(line) + "\n" for line in all_lines[part::3])
            store.run("ledger", "import", "-", input=text)
        before = same(store)
        assert len(before) == 9, before
        how_they_are_written(before)
        version = store.table("exchanges").version()
        store.run("ledger", "compact")
        after = same(store)
        assert len(after) == 3, after
        how_they_are_written(after)
        assert sorted(same(store, version)) == sorted(before)
        # The log tells readers which days and times to skip, and nothing that anybody said.
        log = "".join(path.read_text() for path in (store.store / "exchanges/_delta_log").glob("*.json"))
        assert '\\"ts\\"' in log and "isn't it" not in log and "user-3" not in log
        # Nothing is twice where an import is run again.
        again = json.loads(store.run("ledger", "import", "--json", "-", input=json.dumps(all_lines[0])))
        assert again == {"lines": 1, "kept": 0, "known": 1, "bad": 0}, again
    print("deltalake, Polars and DuckDB read what Retune wrote")


if __name__ == "__main__":
    main()
