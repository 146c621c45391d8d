"""One drift report over a million exchanges: `retune monitor --once`, Evidently and NannyML on the same Parquet files.

    python3 benches/monitor_speed.py --retune target/release/retune --store /tmp/monitor-speed --rows 1000000 \\
        --evidently ~/.cache/retune-tools/evidently/bin/python --nannyml ~/.cache/retune-tools/nannyml/bin/python

Makes the store where the folder is empty: rows as in benches/ledger (questions of some 230 characters and JSON answers of
Zipf-distributed words, a hundred days, one in twenty rated), from a seed, nothing changing in them; appended by deltalake, which Evidently's
environment has, and merged by `retune ledger compact`, so that all read files that Retune wrote. The first tenth is the reference for all
three, by `monitor.reference_exchanges` for Retune.

What each does for its report:
- Retune: format, output, input (each prompt's words and meaning in windows of 200 and 1,000, against 5,000 of the reference) and quality (each rating).
  Every repetition on a fresh copy of the store, so that references are made in it; then once more on the same copy, where they are there.
- Evidently: `DataDriftPreset` over the prompt as text (a classifier), its length, the answer's length, tokens, latency and validity; and the
  same without the text column.
- NannyML: univariate drift, Jensen-Shannon and Kolmogorov-Smirnov, of the same numbers in chunks of 10,000. It has nothing for texts.

Retune's time is its whole process's. The peers' is from opening the files to the result, without starting Python and importing them, which stands beside it.
Memory is the peak of the process's resident set, as the kernel counts it (`wait4`). All warm, in turns, medians. What is cut off by
`--seconds` or `--gib` is told as such.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TASK, ADAPTER = "triage", "triage@base"
DAYS, WORDS, RATED, CHUNK = 100, 20_000, 20, 10_000
NUMBERS = ["prompt_length", "answer_length", "prompt_tokens", "completion_tokens", "duration_ms"]


def progress(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


# What the makers and peers do, each in a process of its own: this one imports nothing large, since a child's peak begins with its parent's.


def make(args):
    """Appends rows to the tables that `retune ledger import` began."""
    import datetime

    import numpy as np
    import pyarrow as pa
    from deltalake import DeltaTable, write_deltalake

    rng = np.random.default_rng(args.seed)
    syllables = "ba ker lo min ta ri so ven du pel ny gra ost ix um e".split()
    words = np.array(["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(WORDS)], dtype=object)

    def texts(count, fewest, most):
        lengths = rng.integers(fewest, most, count)
        ends = np.cumsum(lengths)
        # Zipf's law: the rank's logarithm is uniform.
        some = words[(WORDS ** rng.random(ends[-1])).astype(int) - 1].tolist()
        return [" ".join(some[end - length : end]) for end, length in zip(ends.tolist(), lengths.tolist())]

    # They end yesterday, so that everything said of them is past.
    begin = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=DAYS + 1)
    begin = int(begin.timestamp() * 1e6)
    step = DAYS * 86_400_000_000 // args.rows
    paths = {name: str(args.store / name) for name in ("exchanges", "feedback")}
    schemas = {name: pa.schema(DeltaTable(path).schema().to_arrow()) for name, path in paths.items()}

    def append(name, ts, columns):
        """Columns that are not named are null."""
        days = [datetime.datetime.fromtimestamp(t / 1e6, datetime.timezone.utc).date().isoformat() for t in ts]
        columns = {"ts": pa.array(ts, pa.timestamp("us", "UTC")), "day": days, **columns}
        arrays = []
        for field in schemas[name]:
            value = columns.get(field.name)
            if value is None:
                arrays.append(pa.nulls(len(ts), field.type))
            else:
                value = value if isinstance(value, pa.Array) else pa.array(value)
                arrays.append(value.cast(field.type))
        table = pa.Table.from_arrays(arrays, schema=schemas[name])
        # In two parts, so that every day has files to merge.
        for part in (0, 1):
            rows = pa.array(range(part, len(ts), 2))
            write_deltalake(paths[name], table.take(rows), mode="append")

    size = max(args.rows // 20, 1)
    for first in range(0, args.rows, size):
        count = min(size, args.rows - first)
        ids = [f"made-{first + n:012d}" for n in range(count)]
        ts = [begin + step * (first + n) for n in range(count)]
        questions, reasons = texts(count, 20, 43), texts(count, 4, 13)
        teams = rng.choice(["billing", "orders", "accounts", "shipping"], count).tolist()
        valid = rng.random(count) < 0.97
        append(
            "exchanges",
            ts,
            {
                "request_id": ids,
                "replica": ["made"] * count,
                "seq": list(range(first, first + count)),
                "purpose": ["user"] * count,
                "task": [TASK] * count,
                "model_requested": [TASK] * count,
                "adapter": [ADAPTER] * count,
                "stage": ["champion"] * count,
                "base": ["pocket"] * count,
                "api_key_id": [f"key-{n % 3}" for n in range(count)],
                "user": [f"user-{n}" for n in rng.integers(0, 50_000, count).tolist()],
                "conversation": ids,
                "messages": ['[{"role":"user","content":"%s"}]' % q for q in questions],
                "answer": ['{"team":"%s","urgent":false,"reason":"%s"}' % pair for pair in zip(teams, reasons)],
                "finish_reason": ["stop"] * count,
                "prompt_tokens": rng.integers(60, 90, count),
                "completion_tokens": rng.integers(20, 40, count),
                "time_to_first_token_ms": rng.uniform(5, 50, count),
                "duration_ms": rng.uniform(50, 500, count),
                "parameters": ["{}"] * count,
                "code": [200] * count,
                "format_valid": valid,
                "format_reason": [None if ok else "not_json" for ok in valid.tolist()],
            },
        )
        rated = [n for n in range(count) if (first + n) % RATED == 0]
        if rated:
            append(
                "feedback",
                [ts[n] + 3 * 3_600_000_000 for n in rated],
                {
                    "feedback_id": [f"fb-{first + n:012d}" for n in rated],
                    "request_id": [ids[n] for n in rated],
                    "source": ["app"] * len(rated),
                    "rating": rng.choice([1, 2, 3, 4, 5], len(rated), p=[0.05, 0.05, 0.1, 0.3, 0.5]),
                },
            )
        progress(f"{first + count} rows made")


def files(args):
    from deltalake import DeltaTable

    print(json.dumps(DeltaTable(str(args.store / "exchanges")).file_uris()))


def load(paths, with_text):
    import pyarrow as pa
    import pyarrow.parquet

    columns = ["ts", "messages", "answer", "prompt_tokens", "completion_tokens", "duration_ms", "format_valid"]
    paths = [path.removeprefix("file://") for path in paths]
    tables = [pyarrow.parquet.read_table(path, columns=columns, partitioning=None) for path in paths]
    # Texts are Arrow views where the file was merged, and plain where it was not.
    plain = pa.schema([f.with_type(pa.string()) if pa.types.is_string_view(f.type) else f for f in tables[0].schema])
    table = pa.concat_tables(table.cast(plain) for table in tables)
    frame = table.to_pandas().sort_values("ts", ignore_index=True)
    prompts = [json.loads(messages)[-1]["content"] for messages in frame.pop("messages")]
    frame["prompt_length"] = [len(prompt) for prompt in prompts]
    frame["answer_length"] = frame.pop("answer").str.len()
    frame["format_valid"] = frame["format_valid"].astype(str)
    if with_text:
        frame["prompt"] = prompts
    tenth = len(frame) // 10
    return frame[:tenth].reset_index(drop=True), frame[tenth:].reset_index(drop=True)


def evidently(args, with_text=True):
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    def work():
        reference, current = load(json.loads(args.files.read_text()), with_text)
        texts = ["prompt"] if with_text else []
        definition = DataDefinition(
            text_columns=texts, numerical_columns=NUMBERS, categorical_columns=["format_valid"], timestamp="ts"
        )
        datasets = [Dataset.from_pandas(frame, data_definition=definition) for frame in (current, reference)]
        snapshot = Report([DataDriftPreset(columns=[*texts, *NUMBERS, "format_valid"])]).run(*datasets)
        return [metric.get("value") for metric in snapshot.dict()["metrics"]]

    return work


def nannyml(args):
    import nannyml as nml

    def work():
        reference, current = load(json.loads(args.files.read_text()), False)
        calculator = nml.UnivariateDriftCalculator(
            column_names=[*NUMBERS, "format_valid"],
            treat_as_categorical=["format_valid"],
            timestamp_column_name="ts",
            continuous_methods=["jensen_shannon", "kolmogorov_smirnov"],
            categorical_methods=["jensen_shannon"],
            chunk_size=CHUNK,
        )
        found = calculator.fit(reference).calculate(current).filter(period="analysis").to_df()
        return {"chunks": len(found), "alerts": int(found.xs("alert", axis=1, level=-1).sum().sum())}

    return work


PEERS = {
    "evidently": ("Evidently, with the prompts", evidently),
    "evidently-numbers": ("Evidently, numbers alone", lambda args: evidently(args, with_text=False)),
    "nannyml": ("NannyML, numbers alone", nannyml),
}


def child(args):
    begun = time.monotonic()
    work = PEERS[args.what][1](args)
    loaded = time.monotonic()
    result = work()
    print(json.dumps({"imports": loaded - begun, "seconds": time.monotonic() - loaded, "result": result}, default=str))


# The process that measures.


def environment(args, store):
    more = {
        "RETUNE_STORE__URL": f"file:{store}",
        "RETUNE_STORE__COMPACT_SECONDS": "0",
        "RETUNE_MONITOR__REFERENCE_EXCHANGES": str(args.rows // 10),
        "RETUNE_LOG": "error",
        # Nothing is told to anybody's servers.
        "DO_NOT_TRACK": "1",
        "NML_DISABLE_USAGE_LOGGING": "1",
    }
    return os.environ | more


def resident(pid):
    try:
        with open(f"/proc/{pid}/status") as status:
            return next((int(line.split()[1]) for line in status if line.startswith("VmRSS:")), 0)
    except OSError:
        return 0


def run(command, env, args):
    """Seconds, MiB, what it printed; or why it was cut off."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env, cwd="/")
        cut = []

        def watch():
            while not over.wait(0.2):
                if time.monotonic() - begun > args.seconds:
                    cut.append(f"stopped after {args.seconds:.0f} s")
                elif resident(process.pid) > args.gib * 2**20:
                    cut.append(f"stopped at {args.gib:g} GiB, after {time.monotonic() - begun:.0f} s")
                if cut:
                    process.kill()
                    return

        over = threading.Event()
        watcher = threading.Thread(target=watch)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begun
        over.set()
        watcher.join()
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if cut:
            return {"cut": cut[0], "mib": usage.ru_maxrss / 1024}
        # 3: an alarm stands.
        if process.returncode not in (0, 3):
            sys.exit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{err.read().decode()[-3000:]}")
        return {"whole": seconds, "mib": usage.ru_maxrss / 1024, "out": out.read().decode()}


def quietly(command, env, **more):
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, **more)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}")
    return done.stdout


def store(args):
    """Makes it, if need be; the files of its exchanges."""
    env = environment(args, args.store)
    this = [args.evidently, __file__]
    shared = ["--store", args.store, "--rows", str(args.rows), "--seed", str(args.seed)]
    if not (args.store / "exchanges").exists():
        args.store.mkdir(parents=True, exist_ok=True)
        line = {
            "task": TASK,
            "ts": int(time.time()) - (DAYS + 2) * 86_400,
            "messages": [{"role": "user", "content": "The first."}, {"role": "assistant", "content": "{}"}],
            "rating": 5,
        }
        quietly([args.retune, "ledger", "import", "-"], env, input=json.dumps(line), cwd="/")
        quietly([*this, "--what", "make", *shared], env)
        progress(quietly([args.retune, "ledger", "compact"], env, cwd="/"))
    sizes = [json.loads(line) for line in quietly([args.retune, "ledger", "stats", "--json"], env, cwd="/").splitlines()]
    exchanges = sizes[0]
    if exchanges["rows"] != args.rows + 1:
        sys.exit(f"{args.store} has {exchanges['rows']} exchanges, not {args.rows}; name another folder, or --rows {exchanges['rows'] - 1}")
    paths = json.loads(quietly([*this, "--what", "files", *shared], env))
    progress(f"{exchanges['rows']} exchanges in {len(paths)} files, {exchanges['bytes'] / 2**20:.0f} MiB")
    return paths


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", type=os.path.abspath, default="target/release/retune")
    parser.add_argument("--store", type=lambda path: Path(path).absolute(), help="the store's folder")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--evidently", help="a Python with evidently and deltalake")
    parser.add_argument("--nannyml", help="a Python with nannyml; without it that peer is left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=600, help="a process that takes longer is stopped")
    parser.add_argument("--gib", type=float, default=12, help="a process that needs more is stopped")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--what", help=argparse.SUPPRESS)
    parser.add_argument("--files", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what in PEERS:
        return child(args)
    if args.what:
        return {"make": make, "files": files}[args.what](args)
    if not (args.store and args.evidently and Path(args.evidently).exists()):
        parser.error("--store and --evidently are needed; benches/drift/requirements-evidently.txt says what is in the latter")
    if args.nannyml and not Path(args.nannyml).exists():
        parser.error(f"--nannyml: there is no {args.nannyml}")
    if args.rows < 1000:
        parser.error("--rows: at least 1000, so that there is a reference")

    paths = store(args)
    for path in paths:
        Path(path.removeprefix("file://")).read_bytes()
    with tempfile.TemporaryDirectory(dir=args.store.parent) as folder:
        listed = Path(folder) / "files.json"
        listed.write_text(json.dumps(paths))
        found = {}

        def measured(name, done):
            told = {key: value for key, value in done.items() if key != "out"}
            progress(f"{name}: {json.dumps(told)}")
            found.setdefault(name, []).append(done)

        for _ in range(args.rounds):
            copy = Path(folder) / "store"
            shutil.copytree(args.store, copy)
            monitor = [args.retune, "monitor", "--once", "--json"]
            for name in ("Retune", "Retune, again: references are there"):
                done = run(monitor, environment(args, copy), args)
                for line in done.get("out", "").splitlines():
                    progress(f"  {line}")
                measured(name, done)
            shutil.rmtree(copy)
            for what, (name, _) in PEERS.items():
                python = args.nannyml if what == "nannyml" else args.evidently
                if python is None or any("cut" in done for done in found.get(name, [])):
                    # Once is enough to see that.
                    continue
                done = run([python, __file__, "--what", what, "--files", str(listed)], environment(args, args.store), args)
                if "out" in done:
                    done |= json.loads(done["out"].splitlines()[-1])
                measured(name, done)
    table(args, found)


def table(args, found):
    def middle(name, key):
        values = [done[key] for done in found[name] if key in done]
        return statistics.median(values) if values else None

    seconds, mib = middle("Retune", "whole"), middle("Retune", "mib")
    print(f"\n{args.rows} exchanges, medians of {args.rounds}\n")
    print("| | report, s | whole process, s | memory, MiB | time / Retune's | memory / Retune's |\n|---|---|---|---|---|---|")
    for name, all_done in found.items():
        cut = next((done["cut"] for done in all_done if "cut" in done), None)
        whole, peak = middle(name, "whole"), middle(name, "mib")
        report = middle(name, "seconds") or whole
        if cut or seconds is None:
            print(f"| {name} | {cut or f'{report:.2f}'} | – | {peak:.0f} | – | – |")
        else:
            print(f"| {name} | {report:.2f} | {whole:.2f} | {peak:.0f} | {report / seconds:.2f} | {peak / mib:.2f} |")


if __name__ == "__main__":
    main()
