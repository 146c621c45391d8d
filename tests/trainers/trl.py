"""deploy/trl/train.py keeps the contract of `trainer = "command"`: what it tells, what it leaves, what it supervises, how it stops and goes on.

    pip install -r deploy/trl/requirements.txt
    python tests/trainers/trl.py --base models/pocket [--keep]

Losses and tokens are computed a second time here, with nothing of the script's. Everything is on the CPU; several processes too.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# One thread, or two runs differ in the last digit; and beside other work many threads wait for each other.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
SCRIPTS = Path(__file__).resolve().parents[2] / "deploy/trl"
# In place of this file's own folder: by its name it would be taken for the library.
sys.path[0] = str(SCRIPTS)

import folder as run
import peft
import psutil
import torch
import transformers
from safetensors.torch import load_file
from training import learning_rate, training

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TRAIN, DEVELOPMENT = 61, 10
LORA = {
    "r": 8, "alpha": 16.0, "rank_stabilised": False, "target_modules": [], "dropout": 0.0, "learning_rate": 1e-3, "warmup": 0.1, "decay": "cosine",
    "batch_size": 16, "epochs": 4, "clip": 1.0, "patience": 0, "recompute": False,
}  # fmt: skip
THINGS = ["lamp", "chair", "green bottle", "old wooden table", "key"]
ROOMS = ["the cellar", "the north hall", "room 12"]
KEYS = {"step", "steps", "epoch", "train_loss", "development_loss", "learning_rate", "gradient_norm"}


def conversations(count, seed):
    """Where a thing goes: to the shelf of its room, and fragile ones by hand. Answers of different lengths, some after an earlier answer."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        thing, room = rng.choice(THINGS), rng.choice(ROOMS)
        answer = f"shelf {ROOMS.index(room)}" + (", by hand; it is fragile" if thing in ("lamp", "green bottle") else "")
        said = [{"role": "system", "content": "Store it."}, {"role": "user", "content": f"Parcel {rng.randrange(100, 1000)}: one {thing} from {room}."}]
        if number % 5 == 0:
            said[1:1] = [{"role": "user", "content": "Are you there?"}, {"role": "assistant", "content": "Yes, go on."}]
        found.append([*said, {"role": "assistant", "content": answer}])
    return found


def write_rows(path, rows):
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))


class Runs:
    """Folders by the contract, and the script on them."""

    def __init__(self, base, root):
        self.base, self.root = str(base), root
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.base)
        self.train, self.development = conversations(TRAIN, 100), conversations(DEVELOPMENT, 900)

    def folder(self, name, **lora):
        folder = self.root / name
        folder.mkdir()
        config = {"format_version": 1, "run_id": "run-0123456789ab", "task": "store", "base": self.base, "end_of_turn": "<|im_end|>", "max_length": 512, "seed": 2**64 - 1}
        (folder / "config.json").write_text(json.dumps(config | {"lora": LORA | lora}))
        write_rows(folder / "train.jsonl", self.train)
        write_rows(folder / "development.jsonl", self.development)
        return folder

    def start(self, folder, *options, launcher=(sys.executable,)):
        command = [*launcher, str(SCRIPTS / "train.py"), *options, str(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=open(folder / "stderr", "w"), text=True)

    def finish(self, child, folder):
        out, _ = child.communicate(timeout=600)
        assert child.returncode == 0, f"{folder.name}: exit {child.returncode}\n{(folder / 'stderr').read_text()[-3000:]}"
        return [json.loads(line) for line in out.splitlines()]

    def done(self, folder, *options, **more):
        return self.finish(self.start(folder, *options, **more), folder)

    def encoded(self, messages):
        """Tokens of prompt and answer, cut out of the whole conversation as the template writes it."""
        whole = self.tokenizer.apply_chat_template(messages, tokenize=False)
        prompt = self.tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        assert whole.startswith(prompt), (whole, prompt)
        end = self.tokenizer.eos_token
        answer = whole[len(prompt) : whole.index(end, len(prompt)) + len(end)]
        assert answer == messages[-1]["content"] + end
        return [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)]

    def loss(self, model, rows):
        """The mean over all tokens of all answers, one example at a time."""
        total, count = 0.0, 0
        for messages in rows:
            prompt, answer = self.encoded(messages)
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            total += torch.nn.functional.cross_entropy(logits.double(), torch.tensor(answer), reduction="sum").item()
            count += len(answer)
        return total / count

    def model(self, adapter=None):
        base = transformers.AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        return (peft.PeftModel.from_pretrained(base, adapter) if adapter else base).eval()

    def answers(self, model):
        found = []
        for messages in self.development:
            prompt = torch.tensor([self.encoded(messages)[0]])
            made = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=40, max_length=None)
            found.append(self.tokenizer.decode(made[0, prompt.shape[1] :]))
        return found


def launcher(processes):
    """What accelerate launch does for several GPUs is torchrun; for a CPU it starts one process, whatever is asked."""
    if processes > 1:
        return (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    one = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return (sys.executable, "-m", "accelerate.commands.launch", "--cpu", *one)


def close(a, b, by=1e-4):
    assert abs(a - b) <= by * max(abs(a), abs(b), 1.0), (a, b)


def same_adapter(a, b, by):
    a, b = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (a, b))
    assert a.keys() == b.keys()
    farthest = max((a[name] - b[name]).abs().max().item() for name in a)
    assert farthest <= by, farthest
    return farthest


def well_formed(lines, lora, count=TRAIN):
    epoch_steps = -(-count // lora["batch_size"])
    steps = epoch_steps * lora["epochs"]
    assert [line["step"] for line in lines] == list(range(lines[0]["step"], lines[-1]["step"] + 1)), "a step is missing or twice"
    for line in lines:
        assert set(line) == KEYS and line["steps"] == steps, line
        assert line["epoch"] == (line["step"] - 1) // epoch_steps + 1, line
        assert (line["development_loss"] is not None) == (line["step"] % epoch_steps == 0), line
        assert line["train_loss"] > 0 and line["gradient_norm"] > 0, line
        close(line["learning_rate"], lora["learning_rate"] * learning_rate(lora, line["step"] - 1, steps), 1e-9)


def valid(folder, lora):
    assert sorted(path.name for path in (folder / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert not (folder / "adapter.part").exists()
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    wanted = {"peft_type": "LORA", "use_rslora": False, "use_dora": False, "bias": "none", "modules_to_save": None, "inference_mode": True, "r": lora["r"]}
    assert {key: config[key] for key in wanted} == wanted, config
    everything = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == (sorted(lora["target_modules"]) or everything), config
    close(config["lora_alpha"], lora["alpha"] * (lora["r"] ** 0.5 if lora["rank_stabilised"] else 1.0), 1e-9)


class Kept(transformers.TrainerCallback):
    """The adapter after each epoch, from the model itself."""

    def __init__(self):
        self.epochs = []

    def on_evaluate(self, args, state, control, model, **kwargs):
        self.epochs.append({name: weights.detach().clone() for name, weights in model.named_parameters() if weights.requires_grad})


def trained(runs):
    """The whole contract once; the model that was trained, PEFT on its files, and a second training in this process say the same."""
    lora = {"epochs": 8, "learning_rate": 2e-3}
    folder = runs.folder("trained", **lora)
    lines = runs.done(folder)
    well_formed(lines, LORA | lora)
    valid(folder, LORA | lora)
    assert lines[-1]["step"] == lines[-1]["steps"]
    losses = [line["development_loss"] for line in lines if line["development_loss"] is not None]
    before = runs.loss(runs.model(), runs.development)
    assert losses[-1] < before / 2, (before, losses)
    loaded = runs.model(folder / "adapter")
    close(runs.loss(loaded, runs.development), min(losses))
    here = runs.folder("here", **lora)
    with open(here / "stdout", "w") as out:
        trainer = training(here, *run.read(here), 4096, out)
        kept = Kept()
        trainer.add_callback(kept)
        trainer.train()
    with torch.no_grad():
        for name, weights in kept.epochs[losses.index(min(losses))].items():
            trainer.model.get_parameter(name).copy_(weights)
    answers = runs.answers(trainer.model.eval())
    assert answers == runs.answers(loaded), "PEFT on the files answers otherwise than the trained model"
    _, state = run.last_checkpoint(here)
    run.publish(here, here / "checkpoints" / f"checkpoint-{state['best_global_step']}")
    same_adapter(folder, here, 0.0)
    right = sum(text == m[-1]["content"] + runs.tokenizer.eos_token for text, m in zip(answers, runs.development, strict=True))
    return f"development loss {before:.3f} before, {', '.join(f'{loss:.3f}' for loss in losses)}; {right} of {DEVELOPMENT} greedy answers right"


def mask(runs):
    """What the model is given as labels, as the trainer's own loader has it."""
    folder = runs.folder("mask")
    trainer = training(folder, *run.read(folder), 4096, sys.stderr)
    wanted = {tuple(prompt + answer): answer for prompt, answer in map(runs.encoded, runs.train)}
    seen, tokens = 0, 0
    for batch in trainer.get_train_dataloader():
        for ids, labels, attention in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
            ids = tuple(ids[attention.bool()].tolist())
            at = [n for n, label in enumerate(labels.tolist()) if label != -100]
            answer = wanted[ids]
            assert at == list(range(len(ids) - len(answer), len(ids))), (at, ids)
            assert labels[at].tolist() == answer and answer[-1] == runs.tokenizer.eos_token_id
            seen, tokens = seen + 1, tokens + len(answer)
    assert seen == TRAIN, seen
    return f"{seen} examples, {tokens} supervised tokens: each answer's and its end of turn"


def accumulated(runs):
    """A step's loss and gradient are those of all tokens of its batch, however it is cut and shared."""
    lora = {"batch_size": 64, "epochs": 2, "learning_rate": 1e-3, "warmup": 0.0, "decay": "linear"}
    whole = runs.folder("whole", **lora)
    lines = runs.done(whole, "--tokens", "100000")
    well_formed(lines, LORA | lora)
    close(lines[0]["train_loss"], runs.loss(runs.model(), runs.train))
    cut = runs.folder("cut", **lora)
    shared = runs.folder("shared", **lora)
    for folder, others in ((cut, runs.done(cut, "--tokens", "150")), (shared, runs.done(shared, "--tokens", "300", launcher=launcher(2)))):
        for one, other in zip(lines, others, strict=True):
            for key in ("train_loss", "gradient_norm", "development_loss"):
                assert (one[key] is None) == (other[key] is None)
                if one[key] is not None:
                    close(one[key], other[key], 1e-3)
        valid(folder, LORA | lora)
    odd = runs.folder("odd", batch_size=63)
    child = runs.start(odd, launcher=launcher(2))
    assert child.wait(120) == 1
    told = (odd / "stderr").read_text()
    assert told.count("lora.batch_size is 63, which 2 processes cannot share evenly") == 1, told
    return "one batch at once, in parts, and by two processes: the same losses and gradients"


def stopped(runs):
    """Ended midway, and gone on as if nothing had been; half a checkpoint does no harm."""
    folder = runs.folder("stopped", epochs=6)
    child = runs.start(folder)
    for line in child.stdout:
        # In the third epoch, between two checkpoints or in one.
        if json.loads(line)["step"] == 10:
            break
    child.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    child.communicate(timeout=10)
    took = time.monotonic() - begun
    assert child.returncode != 0 and not (folder / "adapter").exists()
    half = folder / "checkpoints/checkpoint-23"
    half.mkdir()
    (half / "trainer_state.json").write_text("{")
    lines = runs.done(folder)
    assert 1 < lines[0]["step"] <= 11, lines[0]
    well_formed(lines, LORA | {"epochs": 6})
    unbroken = runs.folder("unbroken", epochs=6)
    others = runs.done(unbroken)
    for one, other in zip(lines, others[lines[0]["step"] - 1 :], strict=True):
        close(one["train_loss"], other["train_loss"], 1e-6)
    same_adapter(folder, unbroken, 1e-6)
    assert runs.done(folder) == [], "a finished run was trained again"
    return f"SIGTERM: exit {child.returncode} after {took:.1f} s; gone on at step {lines[0]['step']}, the same adapter as without a stop"


def launched(runs):
    """A launcher that is stopped, or killed, leaves no training behind."""
    ends = []
    for name, processes, how in (("killed", 1, signal.SIGKILL), ("terminated", 2, signal.SIGTERM)):
        folder = runs.folder(name, epochs=100)
        child = runs.start(folder, launcher=launcher(processes))
        assert json.loads(child.stdout.readline())["step"] == 1
        children = psutil.Process(child.pid).children(recursive=True)
        assert len(children) >= processes
        begun = time.monotonic()
        child.send_signal(how)
        child.wait(10)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive and child.returncode != 0, (child.returncode, alive)
        ends.append(f"{name}, {processes} process{'es' * (processes > 1)}: all ended in {time.monotonic() - begun:.1f} s")
    return "; ".join(ends)


def settings(runs):
    """Whatever else a run may ask for; development answers that training contradicts, so that patience has an end."""
    lora = {"rank_stabilised": True, "target_modules": ["v_proj", "q_proj"], "dropout": 0.1, "decay": "constant", "clip": 0.0}
    lora |= {"patience": 2, "recompute": True, "epochs": 30}
    folder = runs.folder("settings", **lora)
    wrong = [[*messages[:-1], messages[-1] | {"content": f"shelf {(number + 1) % 3}"}] for number, messages in enumerate(runs.development)]
    write_rows(folder / "development.jsonl", wrong)
    lines = runs.done(folder)
    well_formed(lines, LORA | lora)
    valid(folder, LORA | lora)
    losses = [line["development_loss"] for line in lines if line["development_loss"] is not None]
    best = losses.index(min(losses))
    assert best == len(losses) - 3 and len(losses) < 30, losses
    close(runs.loss(runs.model(folder / "adapter"), wrong), losses[best])
    shutil.rmtree(folder / "adapter")
    assert runs.done(folder) == [], "ended by patience, and trained on"
    close(runs.loss(runs.model(folder / "adapter"), wrong), losses[best])
    return f"epoch {best + 1} of {len(losses)} kept, then patience was over"


def edit(path, key, value):
    config = json.loads(path.read_text())
    table = config["lora"] if key in config["lora"] else config
    table[key] = value
    path.write_text(json.dumps(config))


def refused(runs):
    good = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'

    def line(text):
        return lambda folder: (folder / "train.jsonl").write_bytes(good + b"\n" + text + b"\n")

    def config(key, value):
        return lambda folder: edit(folder / "config.json", key, value)

    early = [
        (lambda folder: shutil.rmtree(folder), ["config.json: cannot be read"]),
        (lambda folder: (folder / "train.jsonl").unlink(), ["train.jsonl: cannot be read"]),
        (lambda folder: (folder / "development.jsonl").write_text("\n"), ["development.jsonl: no example", "collect more"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["config.json: not JSON"]),
        (config("format_version", 2), ["config.json: format_version is 2, expected 1"]),
        (config("epochs", "3"), ['lora.epochs is "3", expected int']),
        (config("batch_size", True), ["lora.batch_size is true, expected int"]),
        (config("decay", "sine"), ["lora.decay is 'sine'"]),
        (line(b'{"messages": ['), ["train.jsonl, line 2: not JSON", "expected {"]),
        (line(b'\xff\xfe"'), ["train.jsonl, line 2: not JSON"]),
        (line(b"[1]"), ["train.jsonl, line 2: no list `messages`"]),
        (line(b'{"messages": [{"role": "assistant", "content": "b"}]}'), ["train.jsonl, line 2: no list `messages` of at least two"]),
        (line(b'{"messages": [{"role": "user", "content": null}, {"role": "assistant", "content": "b"}]}'), ["train.jsonl, line 2: message 1 has no"]),
        (line(b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}'), ["train.jsonl, line 2: the last message is by 'user'"]),
    ]
    late = [
        (config("target_modules", ["q_proj", "w_proj"]), ["target_modules: w_proj", "q_proj"]),
        (config("max_length", 8), ["train.jsonl: every example is longer than max_length, 8 tokens"]),
        (config("base", str(runs.root / "nothing")), ["config.json: the base", "nothing", "cannot be loaded"]),
    ]
    for number, (spoil, wanted) in enumerate(early + late):
        folder = runs.folder(f"refused-{number}")
        spoil(folder)
        done = subprocess.run([sys.executable, SCRIPTS / "train.py", folder], capture_output=True, text=True, timeout=120)
        told = done.stderr.splitlines()
        assert done.returncode == 2 and done.stdout == "" and told, (wanted, done)
        assert all(part in told[-1] for part in wanted), (wanted, done.stderr)
        assert number >= len(early) or len(told) == 1, told
    return f"{len(early) + len(late)} bad inputs, each told in a line with exit 2"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--keep", action="store_true", help="the folders, to look at")
    parser.add_argument("--only", nargs="*", help="of the checks, by name")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="retune-trl-"))
    torch.set_num_threads(1)
    runs = Runs(args.base.resolve(), root)
    try:
        for check in (refused, mask, trained, accumulated, settings, stopped, launched):
            if not args.only or check.__name__ in args.only:
                begun = time.monotonic()
                print(f"{check.__name__}: {check(runs)} ({time.monotonic() - begun:.0f} s)", flush=True)
    finally:
        print(f"kept: {root}") if args.keep else shutil.rmtree(root)


if __name__ == "__main__":
    main()
