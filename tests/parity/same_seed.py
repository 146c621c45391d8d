"""Two demos of one seed: the texts, the raters' noise, the drift and the split are the same again.

    python tests/parity/same_seed.py --retune target/release/retune --seed 1
    python tests/parity/same_seed.py --retune target/release/retune --stores ONE OTHER     kept by `retune demo --once --seed N --store`

How long a run waits and trains depends on the machine, so that one demo may go on for longer than the other: what is compared is all
that both of them asked the baseline. What an adapter answers may differ, since another number of rows made it.
"""

import argparse
import collections
import os
import tempfile

from kept import play, question, rows

BEFORE_DRIFT = 750
# The apps ask at the same time, so that neighbours may change places in the log.
APPS = 4
BASELINE = "triage@base"


def asked(program, store):
    """All that apps asked, in time's order, with what the raters said and where the split puts it."""
    found = rows(
        program,
        store,
        "select e.messages, e.answer, e.adapter, e.conversation, f.rating, f.correction from exchanges e "
        "left join feedback f on e.request_id = f.request_id where e.purpose = 'user' order by e.ts, e.replica, e.seq",
    )
    return [dict(row, text=question(row)) for row in found]


def counted(found, *fields):
    return collections.Counter(tuple(row.get(field) for field in fields) for row in found)


def same(what, one, other, *fields):
    """The questions that both asked: as many of each, the last few of the shorter list left out."""
    length = min(len(one), len(other))
    for a, b in ((one, other), (other, one)):
        missing = counted(a[: length - APPS], *fields) - counted(b[: length + APPS], *fields)
        assert not missing, f"{what} differ: {next(iter(missing))}"
    print(f"{what}: {length - APPS} the same")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", help="the built program")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--stores", nargs=2, help="folders that two demos of one seed kept")
    arguments = parser.parse_args()
    program = os.path.abspath(arguments.retune)
    with tempfile.TemporaryDirectory(prefix="retune-seed-") as temporary:
        stores = [os.path.abspath(store) for store in arguments.stores or []]
        if not stores:
            stores = [f"{temporary}/{name}" for name in ("one", "other")]
            for store in stores:
                play(program, store, "--seed", arguments.seed)
        one, other = (asked(program, store) for store in stores)
    same("texts", one, other, "text", "conversation")
    before, after = ([[row for row in part if row["adapter"] == BASELINE] for part in parts] for parts in (
        (one[:BEFORE_DRIFT], other[:BEFORE_DRIFT]),
        (one[BEFORE_DRIFT:], other[BEFORE_DRIFT:]),
    ))
    said = ("text", "answer", "rating", "correction")
    assert counted(before[0], *said) == counted(before[1], *said), "before the drift somebody said something else"
    print(f"texts, answers, ratings, corrections before the drift: {len(before[0])} the same")
    same("texts, answers, ratings, corrections after it", *after, *said)


if __name__ == "__main__":
    main()
