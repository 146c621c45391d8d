"""DuckDB's side of the ledger's benchmark: a query a line on stdin, its seconds and rows as JSON on stdout."""

import json
import sys
import time

import duckdb
from deltalake import DeltaTable

store, memory = sys.argv[1], int(sys.argv[2])
db = duckdb.connect()
db.execute("set threads = 2")
db.execute(f"set memory_limit = '{memory // 2**20} MiB'")
db.execute("set timezone = 'UTC'")
for table in ("exchanges", "feedback"):
    files = DeltaTable(f"{store}/{table}").file_uris()
    files = ", ".join(f"'{f.removeprefix('file://')}'" for f in files)
    db.execute(f"create view {table} as select * from read_parquet([{files}], hive_partitioning = true)")
for line in sys.stdin:
    start = time.perf_counter()
    reader = db.execute(line).to_arrow_reader(8192)
    rows = sum(batch.num_rows for batch in reader)
    print(json.dumps({"seconds": time.perf_counter() - start, "rows": rows}), flush=True)
