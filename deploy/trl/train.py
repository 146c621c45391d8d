"""Trains the LoRA of a Retune run with TRL, on one or many GPUs or a CPU: a `command` for `trainer = "command"` in retune.toml.

    pip install -r deploy/trl/requirements.txt
    python3 deploy/trl/train.py FOLDER
    accelerate launch --multi_gpu --num_processes 4 deploy/trl/train.py FOLDER

FOLDER has config.json, train.jsonl and development.jsonl; the adapter comes to FOLDER/adapter. Progress is on stdout, a line of JSON for
each step, all else on stderr. A second start goes on from FOLDER/checkpoints. Exit 2: the input cannot be trained on, and why.
"""

import argparse
import os
import sys
import threading
import time
from pathlib import Path

import folder as run


def end_with_parent():
    """A launcher that is killed leaves its children behind, and two trainings in one folder must not be."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(143)

    threading.Thread(target=watch, daemon=True).start()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=4096, help="go through the model at once, on each GPU: less needs less memory (default 4096)")
    args = parser.parse_args()
    folder = args.folder.resolve()
    # Libraries print what they like: it goes to stderr.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    end_with_parent()
    if (folder / "adapter").exists():
        print(f"{folder}/adapter is there: nothing to do", file=sys.stderr)
        return
    if "LOCAL_RANK" not in os.environ:
        # Several GPUs in one process: TRL refuses it, and accelerate launch is the better way.
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        config, sets = run.read(folder)
        try:
            from training import is_patience_over, training
        except ImportError as error:
            raise run.Refused(f"{error}; pip install -r {Path(__file__).with_name('requirements.txt')}") from error
        trainer = training(folder, config, sets, args.tokens, out)
    except run.Refused as refused:
        if os.environ.get("RANK", "0") == "0":
            print(refused, file=sys.stderr)
        sys.exit(2)
    if trainer.is_world_process_zero():
        run.sweep(folder)
    trainer.accelerator.wait_for_everyone()
    checkpoint, state = run.last_checkpoint(folder)
    if not state or not is_patience_over(state["log_history"], config["lora"]["patience"]):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.is_world_process_zero():
        _, state = run.last_checkpoint(folder)
        run.publish(folder, folder / "checkpoints" / f"checkpoint-{state['best_global_step']}")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
