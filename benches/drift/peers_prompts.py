"""alibi-detect's and Evidently's detectors on the streams of prompts that `cargo bench --bench drift -- prompts --streams DIR` wrote, at no
more false alarms than Retune's.

    ~/.cache/retune-tools/alibi/bin/python benches/drift/peers_prompts.py --streams DIR --peer alibi-detect
    ~/.cache/retune-tools/evidently/bin/python benches/drift/peers_prompts.py --streams DIR --peer evidently

Every detector gives a score: alibi-detect's one a prompt, Evidently's one for each of consecutive windows. It alarms at the first score
above a level, and the level is the lowest at which it raises no more false alarms on the streams without a change than Retune's test
did on these. So it is chosen on the streams that it is measured on, which Retune's is not. What the detector's own default would have
raised stands beside it.

Where numbers are wanted for a text, and no model may be downloaded, they are scikit-learn's usual ones: TF-IDF of words and pairs of
words, 50 components of a truncated SVD, unit length, all fitted on the stream's sample (`prompts.json` says whose texts they are).

alibi-detect's thresholds come from bootstraps, which have to be more than the expected run time (ERT), ten times as many by its manual: an
ERT of the half million prompts of fifty quarters is out of reach. So it gets thresholds for ERT 200 (`--ert`) from the first stream's sample,
in some minutes, and alarms at a multiple of the last of them. Its LSDDDriftOnline is left out: with a sample of 5,000 and a window of 200 it would copy
6.7 GB for each of 200 steps on the way to its thresholds.

A detector that takes longer than `--minutes` gets fewer streams, and the table says how many.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

# Nothing is told to anybody's servers.
os.environ["DO_NOT_TRACK"] = "1"

import numpy as np

COMPONENTS = 50
FEWEST_NULL, FEWEST = 10, 3


def progress(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Streams:
    """The folder: what Retune did, and the texts."""

    def __init__(self, folder):
        self.folder = folder
        path = folder / "prompts.json"
        if not path.exists():
            sys.exit(f"{path} is missing; write it with: cargo bench --bench drift -- prompts --streams {folder}")
        self.told = json.loads(path.read_text())
        self.null = next(s for s in self.told["streams"] if s["is_null"])
        self.changes = [s for s in self.told["streams"] if not s["is_null"]]

    def runs(self, stream):
        with open(self.folder / stream["file"]) as lines:
            for line in lines:
                yield json.loads(line)


def embed(run):
    """Vectors of the sample, and of what is tested."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    lsa = make_pipeline(words, TruncatedSVD(COMPONENTS, random_state=run["seed"]), Normalizer())
    sample = lsa.fit_transform(run["reference"])
    return sample.astype(np.float32), lsa.transform(run["stream"]).astype(np.float32)


class Online:
    """alibi-detect's MMDDriftOnline on a sliding window: its statistic over its last threshold, for each prompt."""

    def __init__(self, base, window, ert, bootstraps):
        self.name = f"alibi-detect MMDDriftOnline, window {window}"
        self.default = 1.0
        self.thresholds, self.made = None, {}
        system = self

        class Detector(base):
            def _configure_thresholds(self):
                if system.thresholds is None:
                    progress(f"{system.name}: thresholds from {bootstraps} bootstraps; this takes minutes")
                    super()._configure_thresholds()
                    system.thresholds = self.thresholds
                self.thresholds = system.thresholds

        self.make = lambda x: Detector(x, ert=ert, window_size=window, n_bootstraps=bootstraps, device="cpu", verbose=False)

    def detector(self, run, sample):
        import torch

        seed = run["seed"]
        if seed not in self.made:
            torch.manual_seed(seed)
            self.made[seed] = self.make(sample)
            # What only its making needs, 200 MB of a sample of 5,000.
            del self.made[seed].k_xx, self.made[seed].k_xx_sub
        self.made[seed].reset_state()
        return self.made[seed]

    def scores(self, run):
        sample, tested = embed(run)
        detector = self.detector(run, sample)
        # The first thresholds are three times as high as the last, and times a multiple would keep it quiet for a window.
        threshold = float(detector.thresholds[-1])
        for n, x in enumerate(tested, 1):
            yield n, detector.predict(x)["data"]["test_stat"] / threshold


class Windows:
    """One of Evidently's drift scores for consecutive windows of prompts."""

    def __init__(self, name, size, default, compare, prepare):
        self.name = f"Evidently {name}, windows of {size}"
        self.default = default
        self.size, self.compare, self.prepare = size, compare, prepare

    def scores(self, run):
        sample, tested = self.prepare(run)
        for end in range(self.size, len(tested) + 1, self.size):
            yield end, float(self.compare(sample, tested[end - self.size : end]))


def alibi_detect(args):
    for window in args.windows:
        left = args.bootstraps
        for _ in range(window):
            # Each of the window's steps wants one for each prompt of the run time, and throws the highest away.
            enough = left >= args.ert
            left = math.ceil((left - 1) * (1 - 1 / args.ert) + 1) - 1
        if not enough:
            sys.exit(f"--bootstraps {args.bootstraps} are too few for --ert {args.ert:g} and a window of {window}")
    try:
        import alibi_detect
        import torch
        from alibi_detect.cd.pytorch.mmd_online import MMDDriftOnlineTorch
    except ImportError as missing:
        sys.exit(f"{missing}; install benches/drift/requirements-alibi.txt")
    # Steps are small: two threads wait for each other, fifty times as long beside other work.
    torch.set_num_threads(1)
    progress(f"alibi-detect {alibi_detect.__version__}, torch {torch.__version__}")
    return [Online(MMDDriftOnlineTorch, window, args.ert, args.bootstraps) for window in args.windows]


def evidently(args):
    try:
        import evidently
        import pandas as pd
        from evidently.legacy.calculations.stattests import wasserstein_stat_test
        from evidently.legacy.core import ColumnType
        from evidently.legacy.metrics.data_drift.embedding_drift_methods import mmd, model
        from evidently.legacy.utils.data_drift_utils import calculate_text_drift_score
    except ImportError as missing:
        sys.exit(f"{missing}; install benches/drift/requirements-evidently.txt")
    progress(f"evidently {evidently.__version__}")

    def texts(run):
        return pd.Series(run["reference"]), pd.Series(run["stream"])

    def classifier(sample, window):
        return calculate_text_drift_score(sample, window, bootstrap=False)[0]

    def descriptors(run):
        def of(texts):
            return pd.DataFrame({"length": [len(t) for t in texts], "words": [len(t.split()) for t in texts]})

        return of(run["reference"]), of(run["stream"])

    def wasserstein(sample, window):
        def of(column):
            return wasserstein_stat_test(sample[column], window[column], ColumnType.Numerical, None).drift_score

        return max(of("length"), of("words"))

    def vectors(run):
        return tuple(pd.DataFrame(v) for v in embed(run))

    def embeddings(method):
        # It adds a column to what it is given.
        return lambda sample, window: method(window.copy(), sample.copy())[0]

    check_preset(texts, classifier, pd, args.streams)
    systems = []
    for size in (200, 1000):
        systems += [
            Windows("text column (domain classifier)", size, 0.55, classifier, texts),
            Windows("text descriptors (length, words)", size, 0.1, wasserstein, descriptors),
            Windows("embeddings (domain classifier)", size, 0.55, embeddings(model()), vectors),
            Windows("embeddings (MMD)", size, 0.015, embeddings(mmd()), vectors),
        ]
    return systems


def check_preset(texts, classifier, pd, folder):
    """The preset as a person runs it says what is computed here without its report."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    streams = Streams(folder)
    sample, tested = texts(next(streams.runs(streams.null)))

    def dataset(texts):
        frame = pd.DataFrame({"prompt": texts.to_list()})
        return Dataset.from_pandas(frame, data_definition=DataDefinition(text_columns=["prompt"]))

    snapshot = Report([DataDriftPreset(columns=["prompt"])]).run(dataset(tested[:200]), dataset(sample))
    metrics = snapshot.dict()["metrics"]
    drift = [m["value"] for m in metrics if str(m.get("metric_name", m.get("metric_id"))).startswith("ValueDrift")]
    if len(drift) != 1 or abs(drift[0] - classifier(sample, tested[:200])) > 1e-9:
        sys.exit(f"DataDriftPreset says {metrics}, where {classifier(sample, tested[:200])} was computed: this script is for another version")


def measure(system, streams, minutes):
    """The system's row."""
    begun = time.monotonic()
    tops = []
    for run in streams.runs(streams.null):
        if len(tops) >= FEWEST_NULL and time.monotonic() - begun > minutes * 30:
            break
        tops.append(max(score for _, score in system.scores(run)))
        if len(tops) % 10 == 0:
            progress(f"{system.name}: {len(tops)} streams without a change")
    allowed = sum(alarm is not None for alarm in streams.null["alarms"][: len(tops)])
    level = sorted(tops, reverse=True)[min(allowed, len(tops) - 1)]
    row = {
        "name": system.name,
        "level": level,
        "false_alarms": sum(top > level for top in tops),
        "default": system.default,
        "false_alarms_by_default": sum(top > system.default for top in tops),
        "null_runs": len(tops),
        "changes": {},
    }
    share = max(minutes * 60 - (time.monotonic() - begun), 0) / max(len(streams.changes), 1)
    for change in streams.changes:
        begun = time.monotonic()
        delays = []
        for run in streams.runs(change):
            if len(delays) >= FEWEST and time.monotonic() - begun > share:
                break
            delays.append(next((n for n, score in system.scores(run) if score > level), None))
        row["changes"][change["change"]] = {"median": median(delays), "runs": len(delays)}
        progress(f"{system.name}: {change['change']}: {delays}")
    return row


def median(alarms):
    """None where at least half have no alarm."""
    value = statistics.median(float("inf") if alarm is None else alarm for alarm in alarms)
    return None if value == float("inf") else value


def table(streams, rows):
    exchanges = streams.told["exchanges"]
    runs = {change["change"]: len(change["alarms"]) for change in streams.changes}
    null = streams.null["alarms"]
    print(f"\ntexts: {streams.told['texts']}; {streams.told['sample']} in the sample, streams of {exchanges}; median exchanges to the alarm\n")
    print("| | false alarms | with its default level | " + " | ".join(runs) + " |")
    print("|" + "---|" * (len(runs) + 3))
    ours = [median(change["alarms"]) for change in streams.changes]
    cells = [f"{sum(a is not None for a in null)} of {len(null)}", "the same", *(shown(m, n, n) for m, n in zip(ours, runs.values()))]
    print("| Retune | " + " | ".join(cells) + " |")
    for row in rows:
        of = row["null_runs"]
        cells = [
            f"{row['false_alarms']} of {of}, level {row['level']:.3g}",
            f"{row['false_alarms_by_default']} of {of}, level {row['default']:g}",
            *(shown(row["changes"][c]["median"], row["changes"][c]["runs"], n) for c, n in runs.items()),
        ]
        print(f"| {row['name']} | " + " | ".join(cells) + " |")


def shown(value, runs, of):
    text = "none" if value is None else f"{value:,.0f}"
    return text if runs == of else f"{text} ({runs} runs)"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=Path, required=True)
    parser.add_argument("--peer", choices=["alibi-detect", "evidently"], required=True)
    parser.add_argument("--minutes", type=float, default=10, help="for each detector, about")
    parser.add_argument("--windows", type=int, nargs="+", default=[200], help="alibi-detect's sliding windows")
    parser.add_argument("--ert", type=float, default=200)
    parser.add_argument("--bootstraps", type=int, default=800)
    parser.add_argument("--only", default="", help="only detectors whose name has this in it")
    args = parser.parse_args()
    # scikit-learn's of Evidently's classifiers that did not converge, one a window.
    warnings.simplefilter("ignore")
    streams = Streams(args.streams)
    systems = {"alibi-detect": alibi_detect, "evidently": evidently}[args.peer](args)
    rows = []
    for system in systems:
        if args.only in system.name:
            rows.append(measure(system, streams, args.minutes))
    (args.streams / f"peers-{args.peer}.json").write_text(json.dumps(rows))
    table(streams, rows)


if __name__ == "__main__":
    main()
