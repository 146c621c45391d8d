"""What is learned of a conversation, token by token, as TRL has it: cases for the tests of `retrain`.

    python tests/parity/masks.py --out retrain/src/masks.json
    RETUNE_MASKS=cases.json cargo test --release --workspace --lib masks

For each family that can be trained there are the template that its models are served with and TRL's own for training, with
`{% generation %}` around what is learned. TRL's mask comes of the latter by `return_assistant_tokens_mask`, over the whole conversation at
once; Retune has only the former, and reaches each answer as serving does. Both must name the same tokens. The tokenizer is the pocket
model's with the family's special tokens added, so that the cases need nothing from a hub.
"""

import argparse
import json
import re
from pathlib import Path

import trl
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

POCKET = Path(__file__).resolve().parents[2] / "models" / "pocket"
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# The template, its training variant, and what the family's tokenizer_config.json says of the ends of a text.
FAMILIES = {
    "llama3": ("llama3", "<|begin_of_text|>", "<|eot_id|>"),
    "llama3_1": ("llama3_1", "<|begin_of_text|>", "<|eot_id|>"),
    "llama3_2": ("llama3_2", "<|begin_of_text|>", "<|eot_id|>"),
    "qwen2_5": ("qwen2_5", None, "<|im_end|>"),
    "qwen3": ("qwen3", None, "<|im_end|>"),
    "qwen3_instruct_2507": ("qwen3_instruct_2507", None, "<|im_end|>"),
    "gemma": ("gemma", "<bos>", "<eos>"),
    "gemma3": ("gemma3", "<bos>", "<eos>"),
    "phi3": ("phi3", "<s>", "<|endoftext|>"),
    "phi3_5": ("phi3_5", "<s>", "<|endoftext|>"),
}
SYSTEM = {"role": "system", "content": "You answer briefly: one line, no more."}
QUESTIONS = ["Where is order 4711?", "And the second\none?", "  Thanks, bye! {x} "]
ANSWERS = ["It was sent on Monday.", "{\"order\": 4712, \"sent\": null}", "You are welcome."]


def conversations(has_system):
    turns = []
    for question, answer in zip(QUESTIONS, ANSWERS):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    yield turns[:2]
    yield turns
    if has_system:
        yield [SYSTEM] + turns[:2]
        yield [SYSTEM] + turns


def special_tokens(template, beginning, end):
    """Every special token that a template names, in order."""
    named = set(re.findall(r"<\|[a-z_]+\|>|<(?:start|end)_of_turn>", template)) | {beginning, end}
    return sorted(named - {None})


def tokenizer(added, beginning, end):
    """The pocket model's, with these."""
    raw = Tokenizer.from_file(str(POCKET / "tokenizer.json"))
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=beginning, eos_token=end)


def family(name, stem, beginning, end):
    served = (TEMPLATES / f"{stem}.jinja").read_text()
    path = TEMPLATES / f"{stem}_training.jinja"
    own = path.exists()
    if not own:
        # It marks what is learned as the family does, and has another head.
        path = TEMPLATES / f"{stem.split('_')[0]}_training.jinja"
    training = path.read_text()
    added = special_tokens(served + training, beginning, end)
    tokens = tokenizer(added, beginning, end)
    cases = []
    for messages in conversations("System role not supported" not in served):
        whole = tokens.apply_chat_template(messages, chat_template=training, return_assistant_tokens_mask=True, return_dict=True)
        assert any(whole["assistant_masks"]), name
        cases.append({"messages": messages, "ids": whole["input_ids"], "mask": whole["assistant_masks"]})
    return {"name": name, "chat_template": served, "bos_token": beginning, "eos_token": end, "added": added, "own": own, "cases": cases}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file for the cases")
    args = parser.parse_args()
    families = [family(name, *how) for name, how in FAMILIES.items()]
    args.out.write_text(json.dumps({"by": f"trl {trl.__version__}", "families": families}, indent=None, separators=(",", ":")) + "\n")
    print(f"{sum(len(f['cases']) for f in families)} cases of {len(families)} families by trl {trl.__version__}")


if __name__ == "__main__":
    main()
