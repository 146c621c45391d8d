"""A tiny random model of every family, and what transformers and PEFT make of it: what Retune's trainer is held to.

    pip install -r tests/parity/requirements.txt
    python tests/parity/families.py --out FOLDER
    RETUNE_PARITY=FOLDER cargo test --release --workspace --lib parity

Each case is a folder: the model as save_pretrained leaves it, a LoRA with a random B (a B of zeros would hide half of all errors), some
sequences with loss weights, and in f32 with eager attention the logits of each sequence, the loss, the gradient of each A and B, and all of
them after 50 steps of AdamW. The cases under retrain/trainer/parity were made so (--seed 1), and are tested wherever there is no Python.
"""

import argparse
import copy
import json
import os
import pathlib
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from safetensors.torch import save_file

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

VOCABULARY = 48
STEPS, RATE, CLIP = 50, 5e-4, 1.0
LENGTHS = [17, 9, 23, 12]
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e3,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.1, 1.7],
    "long_factor": [2.0, 4.0],
    "original_max_position_embeddings": 32,
}
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
# The name, its configuration's class, what it has beside the shape, and how it is kept.
CASES = [
    ("llama", "LlamaConfig", {"rope_parameters": LLAMA3}, {"dtype": torch.bfloat16}),
    ("llama-biases", "LlamaConfig", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 6}, {}),
    ("mistral", "MistralConfig", {"sliding_window": 5, "head_dim": 8}, {"shards": "12KB"}),
    ("qwen2", "Qwen2Config", {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 2}, {"dtype": torch.float16}),
    ("qwen3", "Qwen3Config", {"head_dim": 8, "tie_word_embeddings": True}, {}),
    ("gemma2", "Gemma2Config", {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 12}, {}),
    ("gemma3", "Gemma3TextConfig", {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 12, "layer_types": ["sliding_attention"] * 2 + ["full_attention"], "rope_parameters": GEMMA3}, {}),
    ("phi3", "Phi3Config", {"head_dim": 8, "hidden_size": 32, "sliding_window": 7, "rope_parameters": LONG, "original_max_position_embeddings": 32}, {}),
    ("smollm3", "SmolLM3Config", {"no_rope_layer_interval": 2}, {}),
]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
APART = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def random(shape, spread, generator):
    return torch.randn(shape, generator=generator) * spread


def model_of(kind, more, dtype, generator):
    """Weights large enough that each path matters, and no larger: rounding errors would grow; norms and biases that are not what they begin as."""
    config = getattr(transformers, kind)(**{**SHAPE, **more})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    spread = 1.2 / config.hidden_size**0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(random(parameter.shape, 0.2, generator))
            else:
                parameter.copy_(random(parameter.shape, spread, generator))
            # As it will be read from the file.
            parameter.copy_(parameter.to(dtype).float())
    model.tie_weights()
    return model


def with_lora(model, generator):
    names = FUSED if model.config.model_type == "phi3" else APART
    config = peft.LoraConfig(r=3, lora_alpha=6, lora_dropout=0.0, target_modules=names, bias="none", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(random(parameter.shape, 0.2, generator))
    return model


def sequences(generator):
    def one(length):
        tokens = torch.randint(3, VOCABULARY, (length,), generator=generator)
        supervised = torch.rand(length, generator=generator) < 0.4
        weights = torch.where(supervised, torch.tensor(1.0), torch.tensor(0.0))
        weights[0], weights[length // 2], weights[-1] = 0.0, 0.25, 1.0
        return tokens, weights

    return [one(length) for length in LENGTHS]


def loss_of(model, batch):
    """The sum of weight times -log p, over the weights' sum; and the logits of each sequence."""
    total, weight, logits = 0.0, 0.0, []
    for tokens, weights in batch:
        out = model(tokens[None], use_cache=False).logits[0]
        logits.append(out)
        nll = torch.nn.functional.cross_entropy(out[:-1], tokens[1:], reduction="none")
        total = total + (nll * weights[1:]).sum()
        weight += weights[1:].sum()
    return total / weight, logits


def plain(name):
    """As PEFT's files name it."""
    return name.replace(".default.", ".")


def case(folder, kind, more, kept, seed):
    generator = torch.Generator().manual_seed(seed)
    dtype = kept.get("dtype", torch.float32)
    base = model_of(kind, more, dtype, generator)
    # A copy: the rotary embedding's own numbers would be rounded, too.
    copy.deepcopy(base).to(dtype).save_pretrained(folder, max_shard_size=kept.get("shards", "1GB"))
    model = with_lora(base, generator)
    model.save_pretrained(folder / "adapter")
    batch = sequences(generator)
    lora = {plain(n): p for n, p in model.named_parameters() if p.requires_grad}
    loss, logits = loss_of(model, batch)
    loss.backward()
    tensors = {f"logits.{i}": out.detach().clone() for i, out in enumerate(logits)}
    tensors |= {f"gradient.{name}": p.grad.clone() for name, p in lora.items()}
    optimizer = torch.optim.AdamW(lora.values(), lr=RATE, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        now, _ = loss_of(model, batch)
        now.backward()
        torch.nn.utils.clip_grad_norm_(lora.values(), CLIP)
        optimizer.step()
        losses.append(now.item())
    tensors |= {f"after.{name}": p.detach().clone() for name, p in lora.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "expected.safetensors")
    expected = {
        "batch": [{"tokens": t.tolist(), "weights": w.tolist()} for t, w in batch],
        "loss": loss.item(),
        "losses": losses,
        "learning_rate": RATE,
        "clip": CLIP,
        "made_with": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
    }
    (folder / "expected.json").write_text(json.dumps(expected))
    for name in ("generation_config.json", "adapter/README.md"):
        (folder / name).unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for number, (name, kind, more, kept) in enumerate(CASES):
        folder = arguments.out / name
        shutil.rmtree(folder, ignore_errors=True)
        case(folder, kind, more, kept, arguments.seed * 100 + number)
        print(f"{name}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()) // 1024} KiB")


if __name__ == "__main__":
    main()
