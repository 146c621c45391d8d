"""What TRL's DPO makes of preferences, on the tiny models of every family that families.py left: what Retune's is held to.

    pip install -r tests/parity/requirements.txt trl
    python tests/parity/preferences.py --cases retrain/trainer/parity
    RETUNE_PARITY=FOLDER cargo test --release --workspace --lib parity

Each case gets `preferences.json`, the tokens of some preferences as TRL's trainer has them with its losses over the steps, and
`preferences.safetensors`, the first gradient of each A and B and all of them after the last step. The adapter of the case is gone on
from and compared with.
"""

import argparse
import json
import os
import pathlib
import random
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from families import CLIP, RATE, VOCABULARY, plain

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
disable_progress_bars()

STEPS, BETA, PREFERENCES = 20, 0.3, 5


def tokenizer():
    """A word a token."""
    words = Tokenizer(models.WordLevel({f"t{n}": n for n in range(VOCABULARY)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", eos_token="t2", unk_token="t0")


def preferences(rng):
    def words(count):
        return " ".join(f"t{rng.randrange(3, VOCABULARY)}" for _ in range(count))

    def one():
        return {"prompt": words(rng.randrange(3, 9)), "chosen": " " + words(rng.randrange(2, 9)), "rejected": " " + words(rng.randrange(2, 9))}

    return Dataset.from_list([one() for _ in range(PREFERENCES)])


def case(folder, rng, sft):
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)
    with tempfile.TemporaryDirectory() as out:
        kinds = ("sigmoid", "sft") if sft else ("sigmoid",)
        weights = [1.0, sft] if sft else [1.0]
        config = trl.DPOConfig(output_dir=out, beta=BETA, loss_type=list(kinds), loss_weights=weights, use_cpu=True, report_to=[], per_device_train_batch_size=PREFERENCES, bf16=False)
        trainer = trl.DPOTrainer(model=model, args=config, train_dataset=preferences(rng), processing_class=tokenizer())
    model = trainer.model
    rows = list(trainer.train_dataset)
    batch = trainer.data_collator(rows)
    lora = {plain(n): p for n, p in model.named_parameters() if p.requires_grad}
    assert lora and not any(".ref." in name for name in lora), sorted(lora)
    optimizer = torch.optim.AdamW(lora.values(), lr=RATE, weight_decay=0.0)
    losses, tensors = [], {}
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        if not losses:
            tensors |= {f"gradient.{name}": p.grad.clone() for name, p in lora.items()}
        torch.nn.utils.clip_grad_norm_(lora.values(), CLIP)
        optimizer.step()
        losses.append(loss.item())
    tensors |= {f"after.{name}": p.detach().clone() for name, p in lora.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "preferences.safetensors")
    names = {"prompt": "prompt_ids", "preferred": "chosen_ids", "other": "rejected_ids"}
    expected = {
        "preferences": [{name: row[ids] for name, ids in names.items()} for row in rows],
        "beta": BETA,
        "sft": sft,
        "losses": losses,
        "learning_rate": RATE,
        "clip": CLIP,
        "made_with": {m.__name__: m.__version__ for m in (torch, transformers, peft, trl)},
    }
    (folder / "preferences.json").write_text(json.dumps(expected))
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(arguments.seed)
    for number, folder in enumerate(sorted(arguments.cases.iterdir())):
        # With and without a share of the preferred answers' own loss.
        losses = case(folder, rng, 0.2 * (number % 2))
        print(f"{folder.name}: {losses[0]:.4f} to {losses[-1]:.4f}")


if __name__ == "__main__":
    main()
