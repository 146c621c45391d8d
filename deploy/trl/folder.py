"""A run's folder, as Retune lays it for a trainer of one's own: read and checked here, before gigabytes of libraries are loaded.

What is wrong with it is one line that names file, line and remedy (`Refused`). The adapter goes out of it whole or not at all.
"""

import json
import os
import shutil
from pathlib import Path

FORMAT = 1
NUMBER = (int, float)
# Keys of config.json, and of its `lora`, that are needed.
RUN = {"base": str, "end_of_turn": str, "max_length": int, "seed": int, "lora": dict}
LORA = {
    "r": int,
    "alpha": NUMBER,
    "rank_stabilised": bool,
    "target_modules": list,
    "dropout": NUMBER,
    "learning_rate": NUMBER,
    "warmup": NUMBER,
    "decay": str,
    "batch_size": int,
    "epochs": int,
    "clip": NUMBER,
    "patience": int,
    "recompute": bool,
}
DECAYS = ("cosine", "linear", "constant")
EXAMPLE = 'expected {"messages": [..., {"role": "assistant", "content": "..."}]}, the answer last'
# In a checkpoint that is whole: a killed process may leave half of one.
WHOLE = "whole"


class Refused(Exception):
    """The input cannot be trained on; one line for whoever has to mend it."""


def lines(path):
    """The lines of a file that are not blank, by their numbers."""
    try:
        # Not splitlines: JSON may hold U+2028 as it is.
        text = path.read_bytes().split(b"\n")
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({error.strerror}); the folder has to be one that Retune made for a run") from error
    return [(number, line) for number, line in enumerate(text, 1) if line.strip()]


def configuration(path):
    text = b"\n".join(line for _, line in lines(path))
    try:
        config = json.loads(text)
    except ValueError as error:
        raise Refused(f"{path}: not JSON ({error}); start the run again, and Retune writes it anew") from error
    if not isinstance(config, dict) or config.get("format_version") != FORMAT:
        found = config.get("format_version") if isinstance(config, dict) else None
        raise Refused(f"{path}: format_version is {found}, expected {FORMAT}; take deploy/trl from the same release as retune")
    check(path, config, RUN, "")
    check(path, config["lora"], LORA, "lora.")
    if config["lora"]["decay"] not in DECAYS:
        raise Refused(f"{path}: lora.decay is {config['lora']['decay']!r}, expected one of {', '.join(DECAYS)}")
    return config


def check(path, table, keys, where):
    for key, kind in keys.items():
        value = table.get(key)
        # A bool is an int to Python.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
            raise Refused(f"{path}: {where}{key} is {json.dumps(value)}, expected {kinds}; take deploy/trl from the same release as retune")


def examples(path):
    """The messages of each line, with the line's number."""
    found = [(number, messages(f"{path}, line {number}", line)) for number, line in lines(path)]
    if not found:
        raise Refused(f"{path}: no example in it; at least one is needed, collect more")
    return found


def messages(where, line):
    try:
        row = json.loads(line)
    except ValueError as error:
        raise Refused(f"{where}: not JSON ({error}); {EXAMPLE}") from error
    found = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(found, list) or len(found) < 2:
        raise Refused(f"{where}: no list `messages` of at least two; {EXAMPLE}")
    for number, message in enumerate(found, 1):
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise Refused(f"{where}: message {number} has no role and content, both text; {EXAMPLE}")
    if found[-1]["role"] != "assistant":
        raise Refused(f"{where}: the last message is by {found[-1]['role']!r}, expected 'assistant'; {EXAMPLE}")
    return found


def read(folder):
    """The configuration, and the examples of both sets by their file."""
    config = configuration(folder / "config.json")
    return config, {name: examples(folder / name) for name in ("train.jsonl", "development.jsonl")}


def last_checkpoint(folder):
    """The newest whole one, and the trainer's state in it."""
    found = [path.parent for path in (folder / "checkpoints").glob(f"checkpoint-*/{WHOLE}")]
    if not found:
        return None, None
    newest = max(found, key=lambda path: int(path.name.rsplit("-", 1)[1]))
    return newest, json.loads((newest / "trainer_state.json").read_text())


def sweep(folder):
    """Takes away checkpoints that a killed process left unfinished."""
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if not (path / WHOLE).exists():
            shutil.rmtree(path)


def publish(folder, checkpoint):
    """The adapter of a checkpoint as the run's, in one step."""
    part = folder / "adapter.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    shutil.copyfile(checkpoint / "adapter_model.safetensors", part / "adapter_model.safetensors")
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    alpha = config["lora_alpha"]
    config |= {
        # The same file for the same run: PEFT has a set there.
        "target_modules": sorted(config["target_modules"]),
        # As most readers expect it, where it can be.
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "inference_mode": True,
    }
    (part / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for path in (*part.iterdir(), part):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    part.rename(Path(folder) / "adapter")
