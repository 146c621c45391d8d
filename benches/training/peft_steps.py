"""PEFT's side of benches/training: steps of a LoRA's training as its documentation has them, timed.

Sequences are of one length, so that nothing is padded. Prints a line: tokens a second without the first step, and the process' peak memory.
"""

import argparse
import json
import os
import resource
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCABULARY = 32_000
MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def sequence(n, length):
    return [(n * 7_919 + i * 104_729 + i * i * 31) % (VOCABULARY - 3) + 3 for i in range(length)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("batch", "steps", "length", "learned"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--attention", choices=["eager", "sdpa"], required=True)
    parser.add_argument("--dtype", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    dtype = getattr(torch, arguments.dtype)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=dtype, attn_implementation=arguments.attention
    )
    config = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=MAPS, bias="none", task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config)
    model.train()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=2e-4, weight_decay=0.0)
    begun = None
    for step in range(arguments.steps):
        first = step * arguments.batch
        tokens = torch.tensor([sequence(first + n, arguments.length) for n in range(arguments.batch)])
        labels = tokens.clone()
        labels[:, : arguments.length - arguments.learned] = -100
        loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            begun = time.perf_counter()
    seconds = time.perf_counter() - begun
    done = arguments.batch * arguments.length * (arguments.steps - 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens_per_second": done / seconds, "peak_mib": peak, "loss": loss.item()}))


if __name__ == "__main__":
    main()
