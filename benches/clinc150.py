#!/usr/bin/env python3
"""Retune on what people really wrote: CLINC150's utterances, sorted by domain, by the model inside the program.

    benches/clinc150.py --retune target/release/retune --data clinc150 --json

`--data` is the folder with the data set's data_full.json and domains.json (Larson et al. 2019, CC BY 3.0). One task answers with a
text's domain, as JSON. Eight domains come first: figures of the bare base; rated exchanges; a run; figures of what it made; some
traffic on which no alarm should come. Then the owner adds two domains (schema and prompt, and a restart: before that a correction
that names one would break the format, and could not be learned), half of the traffic is theirs, and what follows is left to Retune:
the alarm, its run, the next champion. Where no alarm comes, a person starts that run.

Raters rate every answer: 5 where it is right, 2 where it is another domain, 1 where it breaks the format, and write the right one to
those two. Right is what the data set says. They see utterances of the split `train` alone; the figures' are of `test` (or, to choose
settings by, `--split val`), asked with the purpose `examination`, so that no stream of the monitor counts them.

In a temporary folder, or in `--store`, which stays. The table goes to stdout, behind it with `--json` a line of all figures; progress
to stderr. Exit code 1 where a limit was missed. Standard library alone.
"""

import argparse
import collections
import contextlib
import http.client
import json
import math
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.parse

TASK = "domains"
# What an owner would call them, in words of the kind that the model knows; and those that come later.
LABELS = {
    "banking": "banking",
    "credit_cards": "cards",
    "kitchen_and_dining": "food",
    "home": "home",
    "auto_and_commute": "car",
    "travel": "travel",
    "utility": "tools",
    "work": "work",
    "small_talk": "chat",
    "meta": "settings",
}
LATER = ("travel", "work")

PROMPT = """You sort what people say to an assistant. Answer in JSON, on one line, with exactly this key.
- "domain": what it is about: one of {labels}
"""

# `roll_back_hours` is 0 since the play has a quarter's changes within minutes: an alarm would otherwise bring the former champion back.
CONFIGURATION = """[server]
listen = "127.0.0.1:0"

[store]
url = "file:./store"

[training]
niceness = {niceness}

[[task]]
name = "{task}"
prompt = "{task}.txt"
adapter_prompt = "Domain."
format = {{ json_schema = "{task}.schema.json" }}
max_tokens = 40

[task.retrain]
on = ["format", "quality"]
roll_back_hours = 0
min_pairs = 100
min_new_examples = {min_new}
promote = "auto"

[task.retrain.lora]
{lora}
"""

# Chosen by the split `val`.
LORA = {"r": 32, "epochs": 10, "dropout": 0.15}

RUN_ENDS = 1800
LOOK = 0.5

# What has to hold.
LIMITS = {
    "every exchange is logged": lambda f: f["exchanges_logged"] == f["exchanges"] > 0,
    "every feedback is logged": lambda f: f["feedback_logged"] == f["feedback"] > 0,
    "both runs promoted": lambda f: f["first"]["promoted"] and f["second"]["promoted"],
    "the first champion is valid in 0.97": lambda f: f["figures"]["first, old"]["valid"] >= 0.97,
    "it is right twice as often as the most frequent answer, and as the base": lambda f: f["figures"]["first, old"]["right"]
    >= 2 * max(1 / f["old_domains"], f["figures"]["base, old"]["right"]),
    "no alarm before the new domains": lambda f: f["alarms_before"] == [],
    "an alarm after": lambda f: f["alarms_after"] != [],
    "the second champion keeps the old domains within 5 points": lambda f: f["figures"]["second, old"]["right"]
    >= f["figures"]["first, old"]["right"] - 0.05,
    "it is better on the new ones": lambda f: f["figures"]["second, new"]["right"] > f["figures"]["first, new"]["right"],
    "it is valid in 0.97 of both": lambda f: min(f["figures"][f"second, {of}"]["valid"] for of in ("old", "new")) >= 0.97,
    "half the prompt tokens": lambda f: f["figures"]["first, old"]["prompt_tokens"] <= f["figures"]["base, old"]["prompt_tokens"] / 2,
}


def tell(line, begun=time.monotonic()):
    seconds = int(time.monotonic() - begun)
    print(f"{seconds // 60:>2}:{seconds % 60:02}  {line}", file=sys.stderr, flush=True)


class Data:
    """The utterances with their labels, in an order that the seed draws."""

    def __init__(self, folder, seed):
        read = lambda name: json.loads((folder / name).read_text())
        self.domain = {intent: LABELS[name] for name, intents in read("domains.json").items() for intent in intents}
        self.splits = read("data_full.json")
        self.seed = seed
        self.new = [LABELS[name] for name in LATER]
        self.old = [label for label in LABELS.values() if label not in self.new]

    def rows(self, split, labels):
        rows = [(text, self.domain[intent]) for text, intent in self.splits[split] if self.domain[intent] in labels]
        random.Random(f"{self.seed} {split} {labels}").shuffle(rows)
        return rows

    def test(self, split, labels, each):
        """As many of each label."""
        taken, rows = collections.Counter(), []
        for text, label in self.rows(split, labels):
            taken[label] += 1
            if taken[label] <= each:
                rows.append((text, label))
        return rows


def write_task(folder, labels, lora, arguments):
    (folder / f"{TASK}.txt").write_text(PROMPT.format(labels=f"{', '.join(labels[:-1])} or {labels[-1]}"))
    schema = {"type": "object", "properties": {"domain": {"enum": labels}}, "required": ["domain"], "additionalProperties": False}
    (folder / f"{TASK}.schema.json").write_text(json.dumps(schema, indent=2))
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in lora.items())
    policy = {"task": TASK, "lora": settings, "min_new": arguments.more * 4 // 5, "niceness": arguments.niceness}
    (folder / "retune.toml").write_text(CONFIGURATION.format(**policy))


class Retune:
    """`retune up` in a folder, and what an app, a rater and an operator say to it."""

    def __init__(self, program, folder):
        self.program, self.folder = program, folder
        # Nothing of the caller's is configuration here.
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("RETUNE_")}
        self.run_json("check")
        log = open(folder / "up.log", "a")
        self.child = subprocess.Popen(
            [program, "up", "--json", "--stop-with-stdin"],
            cwd=folder, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        log.close()
        line = self.child.stdout.readline()
        if not line:
            raise SystemExit(f"{program} up did not start: {(folder / 'up.log').read_text()[-2000:]}")
        self.url = json.loads(line)["listening"]
        address = urllib.parse.urlparse(self.url)
        self.connection = http.client.HTTPConnection(address.hostname, address.port, timeout=300)

    def stop(self):
        self.connection.close()
        self.child.stdin.close()
        try:
            self.child.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise SystemExit("retune up did not stop within a minute") from None

    def run_json(self, *arguments):
        """A command's lines of JSON."""
        done = subprocess.run([self.program, *arguments, "--json"], cwd=self.folder, env=self.env, capture_output=True, text=True)
        # 3: `monitor --once` where an alarm stands.
        if done.returncode not in (0, 3):
            raise SystemExit(f"retune {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def call(self, method, path, body=None, headers=None):
        text = None if body is None else json.dumps(body)
        for last in (False, True):
            try:
                self.connection.request(method, path, text, {"content-type": "application/json"} | (headers or {}))
                answer = self.connection.getresponse()
                break
            except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
                # The server closes connections on which nothing is said for a while; before it has read anything.
                self.connection.close()
                if last:
                    raise
        read = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{method} {path}: {answer.status} {read.decode()}")
        return json.loads(read), answer.headers

    def ask(self, model, text, headers=None):
        body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0}
        answer, headers = self.call("POST", "/v1/chat/completions", body, headers)
        return {
            "id": answer["id"],
            "text": answer["choices"][0]["message"]["content"],
            "valid": headers["retune-format"] == "valid",
            "adapter": headers["retune-adapter"],
            "tokens": answer["usage"]["prompt_tokens"],
        }

    def listed(self, path):
        return self.call("GET", path)[0]["data"]


def known(label):
    return json.dumps({"domain": label})


def is_right(text, label):
    try:
        return json.loads(text) == {"domain": label}
    except ValueError:
        return False


class Play:
    def __init__(self, retune, data):
        self.retune, self.data = retune, data
        self.told = []  # (text, label) of every rated exchange
        self.ids = []

    def rated(self, rows):
        """One exchange a row, each rated; the share that was right."""
        right = 0
        for text, label in rows:
            answer = self.retune.ask(TASK, text)
            good = is_right(answer["text"], label)
            said = {"completion_id": answer["id"], "rating": 5 if good else 2 if answer["valid"] else 1, "source": "clinc150"}
            if not good:
                said["correction"] = known(label)
            self.retune.call("POST", "/v1/feedback", said)
            right += good
            self.told.append((text, label))
            self.ids.append(answer["id"])
        return right / max(1, len(rows))

    def figures(self, model, rows):
        begun, valid, right, tokens, wrong = time.monotonic(), 0, 0, 0, collections.Counter()
        by = collections.defaultdict(lambda: [0, 0])
        for text, label in rows:
            answer = self.retune.ask(model, text, {"retune-purpose": "examination"})
            good = is_right(answer["text"], label)
            valid, right, tokens = valid + answer["valid"], right + good, tokens + answer["tokens"]
            by[label][0] += good
            by[label][1] += 1
            if not good:
                wrong[f"{label}: {answer['text']}"] += 1
        n = len(rows)
        return {
            "model": model,
            "asked": n,
            "valid": round(valid / n, 4),
            "right": round(right / n, 4),
            "prompt_tokens": round(tokens / n, 1),
            "seconds": round(time.monotonic() - begun, 1),
            "right_by_domain": {label: round(good / of, 3) for label, (good, of) in sorted(by.items())},
            "often_wrong": dict(wrong.most_common(5)),
        }

    def words_alone(self, rows):
        """What naive Bayes on words and pairs of words learns from the same examples, right answers in `rows`: a yardstick."""
        parts = lambda text: (words := re.findall(r"[a-z0-9']+", text.lower())) + list(zip(words, words[1:]))
        seen, labels, every = collections.defaultdict(collections.Counter), collections.Counter(), set()
        for text, label in self.told:
            labels[label] += 1
            seen[label].update(parts(text))
            every.update(parts(text))
        total = {label: sum(seen[label].values()) + 0.3 * len(every) for label in labels}
        score = lambda label, of: math.log(labels[label]) + sum(math.log((seen[label][p] + 0.3) / total[label]) for p in of)
        right = 0
        for text, label in rows:
            of = [part for part in parts(text) if part in every]
            right += max(labels, key=lambda candidate: score(candidate, of)) == label
        return round(right / len(rows), 4)

    def alarms(self, adapter=None):
        number = {request: n + 1 for n, request in enumerate(self.ids)}
        found = self.retune.listed("/admin/alarms")
        return [
            {"kind": a["kind"], "adapter": a["adapter"], "exchange": number.get(a["request_id"]), "alarm": a["alarm"]}
            for a in found
            if adapter in (None, a["adapter"])
        ]

    def serving(self, adapter):
        """Waits until the bare name means that adapter."""
        text = self.data.rows("val", self.data.old)[0][0]
        for _ in range(100):
            if self.retune.ask(TASK, text, {"retune-purpose": "examination"})["adapter"] == adapter:
                return
            time.sleep(0.1)
        raise SystemExit(f"{adapter} was promoted, and does not serve")


def of_run(run, seconds):
    keys = ("adapter", "started_by", "verdict", "promoted", "examples_train", "examples_development", "examples_held_out")
    more = ("examples_examined", "votes", "wins", "ties", "loss_first", "loss_last", "reasons", "error")
    return {key: run.get(key) for key in keys + more if run.get(key) is not None} | {"seconds": round(seconds, 1)}


def by_hand(retune):
    begun = time.monotonic()
    report = retune.run_json("retrain", "--task", TASK, "--server", retune.url)[-1]
    return of_run(report, time.monotonic() - begun) | {
        "left_out": {key: n for key, n in report["dataset"]["curated"].items() if n},
        "chosen_epoch": report["chosen_epoch"],
        "training_seconds": round(report["training_seconds"], 1),
    }


def by_alarm(play, alarm, more, arguments):
    """Asks on until the alarm's run has what it wants, and waits for its end."""
    asked = 0
    run = lambda: next((r for r in play.retune.listed("/admin/runs") if r["started_by"] == f"trigger:{alarm}"), {})
    while run().get("state", "waiting") == "waiting" and asked < 2 * arguments.more:
        play.rated([next(more) for _ in range(10)])
        asked += 10
    tell(f"its run has begun after {asked} exchanges more")
    begun, state = time.monotonic(), ""
    while (found := run()).get("state") not in ("done", "failed") and time.monotonic() - begun < RUN_ENDS:
        if found.get("state") != state:
            state = found.get("state")
            tell(f"the run: {state}")
        time.sleep(LOOK)
    return of_run(found, time.monotonic() - begun)


def act(arguments, folder):
    data = Data(pathlib.Path(arguments.data), arguments.seed)
    program = os.path.abspath(arguments.retune)
    lora = LORA | json.loads(arguments.lora)
    every = data.old + data.new
    tests = {of: data.test(arguments.split, labels, arguments.test_each) for of, labels in (("old", data.old), ("new", data.new))}
    old, new = (iter(data.rows("train", labels)) for labels in (data.old, data.new))
    take = lambda rows, n: [row for _, row in zip(range(n), rows)]
    figures, words = {}, {}
    found = {"seed": arguments.seed, "split": arguments.split, "lora": lora, "old_domains": len(data.old)}
    found |= {"figures": figures, "words_alone": words}

    write_task(folder, data.old, lora, arguments)
    with contextlib.closing(Stopping(Retune(program, folder))) as held:
        play = Play(held.retune, data)
        tell(f"{len(tests['old'])} utterances of {len(data.old)} domains are asked of the bare base")
        figures["base, old"] = play.figures(f"{TASK}@base", tests["old"])
        tell(f"{figures['base, old']['right']:.1%} right; now {arguments.exchanges} exchanges are rated")
        begun = time.monotonic()
        play.rated(take(old, arguments.exchanges))
        found["rated_seconds"] = round(time.monotonic() - begun, 1)
        words["first, old"] = play.words_alone(tests["old"])
        tell("a person starts a run")
        first = found["first"] = by_hand(held.retune)
        tell(f"verdict {first['verdict']} after {first['seconds']} s: {'; '.join(first['reasons'])}")
        if not first["promoted"]:
            raise SystemExit(f"the first run promoted nothing, and the play ends here: {json.dumps(first)}")
        play.serving(first["adapter"])
        figures["first, old"] = play.figures(first["adapter"], tests["old"])
        tell(f"{figures['first, old']['right']:.1%} right, {words['first, old']:.1%} by words alone")
        tell(f"{arguments.between} exchanges more of the same, rated")
        found["between_right"] = round(play.rated(take(old, arguments.between)), 4)
        time.sleep(5)
        found["alarms_before"] = play.alarms()

    tell(f"the owner adds {' and '.join(data.new)}, and starts the server again")
    write_task(folder, every, lora, arguments)
    with contextlib.closing(Stopping(Retune(program, folder))) as held:
        play.retune = held.retune
        figures["base, old, ten domains"] = play.figures(f"{TASK}@base", tests["old"])
        figures["base, new"] = play.figures(f"{TASK}@base", tests["new"])
        figures["first, new"] = play.figures(first["adapter"], tests["new"])
        tell(f"{figures['first, new']['right']:.1%} of the new domains right; now every second exchange is of those, and all are rated")
        change = len(play.ids)
        more = (next(new if n % 2 else old) for n in range(10**6))
        found["more_right"] = round(play.rated(take(more, arguments.more)), 4)
        time.sleep(5)
        alarms = [a for a in play.alarms(first["adapter"]) if a not in found["alarms_before"]]
        found["alarms_after"] = [a | {"after": a["exchange"] and a["exchange"] - change} for a in alarms]
        found["streams"] = [s for s in held.retune.run_json("monitor", "--once") if s["adapter"] == first["adapter"]]
        starts = next((a for a in alarms if a["kind"] in ("format", "quality")), None)
        tell("alarms: " + (", ".join(f"{a['kind']} after {a['after']} exchanges" for a in found["alarms_after"]) or "none"))
        second = found["second"] = by_alarm(play, starts["alarm"], more, arguments) if starts else by_hand(held.retune)
        if not {"adapter", "verdict", "votes"} <= set(second):
            raise SystemExit(f"the second run came to no verdict on an adapter, and the play ends here: {json.dumps(second)}")
        tell(f"verdict {second['verdict']} after {second['seconds']} s: {second['wins']} of {second['votes']} votes, {second['ties']} ties")
        for of in ("old", "new"):
            words[f"second, {of}"] = play.words_alone(tests[of])
            figures[f"second, {of}"] = play.figures(second["adapter"], tests[of])
        count = lambda query: held.retune.run_json("ledger", "sql", query)[0]["n"]
        found |= {"exchanges": len(play.ids), "feedback": len(play.ids)}
        found["exchanges_logged"] = count("select count(*) as n from exchanges where purpose = 'user'")
        found["feedback_logged"] = count("select count(*) as n from feedback")
    return found


class Stopping:
    """A server that is told to stop, whatever happened."""

    def __init__(self, retune):
        self.retune = retune

    def close(self):
        self.retune.stop()


def table(found):
    figures, words = found["figures"], found["words_alone"]
    yield "| answered by | domains, questions | valid | right | prompt tokens | right by words alone |"
    yield "|---|---|---|---|---|---|"
    yield f"| always the same answer | eight | 1.000 | {1 / found['old_domains']:.3f} | | |"
    for name, f in figures.items():
        known_by = f"{words[name]:.3f}" if name in words else ""
        right = f"{f['right']:.3f} ± {1.96 * math.sqrt(f['right'] * (1 - f['right']) / f['asked']):.3f}"
        asked = f"{name.split(', ', 1)[1]} ({f['asked']})"
        yield f"| `{f['model']}` | {asked} | {f['valid']:.3f} | {right} | {f['prompt_tokens']} | {known_by} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", help="the built program")
    parser.add_argument("--data", required=True, help="the folder with data_full.json and domains.json")
    parser.add_argument("--seed", type=int, default=1, help="draws the utterances and their order")
    parser.add_argument("--exchanges", type=int, default=1000, help="rated before the first run")
    parser.add_argument("--between", type=int, default=300, help="rated after it, of the old domains still")
    parser.add_argument("--more", type=int, default=500, help="rated with the new domains; an alarm's run waits for four fifths of that")
    parser.add_argument("--test-each", type=int, default=150, help="utterances of each domain for the figures, up to 450")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="whose utterances these are")
    parser.add_argument("--lora", default="{}", metavar="JSON", help=f"of [task.retrain.lora], beside or in place of {json.dumps(LORA)}")
    parser.add_argument("--niceness", type=int, default=15, help="training.niceness; a lower one is quicker beside other programs")
    parser.add_argument("--store", type=pathlib.Path, help="an empty folder that stays, with configuration, store and log")
    parser.add_argument("--json", action="store_true", help="print all figures as a last line")
    arguments = parser.parse_args()
    if arguments.store:
        arguments.store.mkdir(parents=True, exist_ok=True)
        if any(arguments.store.iterdir()):
            parser.error(f"--store {arguments.store} is not empty")
        kept = contextlib.nullcontext(arguments.store)
    else:
        kept = tempfile.TemporaryDirectory(prefix="retune-clinc150-")
    begun = time.monotonic()
    with kept as folder:
        found = act(arguments, pathlib.Path(folder).resolve())
    found["seconds"] = round(time.monotonic() - begun, 1)
    found["missed"] = missed = [name for name, holds in LIMITS.items() if not holds(found)]
    print("\n".join(table(found)))
    for name in LIMITS:
        tell(f"{'MISSED' if name in missed else 'held'}: {name}")
    if arguments.json:
        print(json.dumps(found))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
