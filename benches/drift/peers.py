"""river's detectors on the streams of failures that `cargo bench --bench drift -- format --streams DIR` wrote, at no more false alarms.

    python benches/drift/peers.py --streams DIR

Each detector is set so that it raises no more false alarms on the streams without a change than Retune's test did, which the folder's
`retune.json` says; of the settings tried, the one that is quickest then counts.
"""

import argparse
import json
import statistics
from pathlib import Path

from river import drift

ADWIN = [{"delta": d} for d in (0.002, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10)]
PAGE_HINKLEY = [
    {"min_instances": 30, "delta": delta, "threshold": threshold, "alpha": 1.0, "mode": "up"}
    for delta in (0.005, 0.01, 0.02)
    for threshold in (2, 4, 6, 8, 12, 16, 24, 32, 50)
]


def first_alarm(make, bits):
    detector, rate = make(), 0
    for n, bit in enumerate(bits, 1):
        detector.update(int(bit))
        if detector.drift_detected:
            # ADWIN notices falls as well; only a rise is an alarm here.
            if not hasattr(detector, "estimation") or detector.estimation >= rate:
                return n
        rate = getattr(detector, "estimation", 0)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=Path, required=True)
    args = parser.parse_args()
    retune = json.loads((args.streams / "retune.json").read_text())
    streams = {}
    for path in sorted(args.streams.glob("format-*.txt")):
        streams[path.stem.removeprefix("format-")] = [line.split() for line in path.read_text().splitlines()]
    null = streams.pop("null")
    print(f"false alarms on {len(null)} streams of {len(null[0][1])}: Retune {retune['null']}")
    for name, kind, settings in (("ADWIN", drift.ADWIN, ADWIN), ("Page-Hinkley", drift.PageHinkley, PAGE_HINKLEY)):
        best = None
        for setting in settings:
            def make(setting=setting):
                return kind(**setting)
            alarms = sum(first_alarm(make, bits) is not None for _, bits in null)
            if alarms > retune["null"]:
                continue
            medians = {}
            for change, runs in streams.items():
                # It has seen normal times before the change, as long as Retune's reference.
                delays = []
                for before, bits in runs:
                    found = first_alarm(make, before + bits)
                    delays.append(float("inf") if found is None or found <= len(before) else found - len(before))
                medians[change] = statistics.median(delays)
            print(f"{name} {setting}: {alarms} false alarms, medians {medians}")
            total = sum(min(m, 1e6) for m in medians.values())
            if best is None or total < best[0]:
                best = (total, setting, alarms, medians)
        print(f"{name}: best {best and best[1:]}")
    print(f"Retune: {retune}")


if __name__ == "__main__":
    main()
