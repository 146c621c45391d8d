"""The adapter that the demo made, loaded by PEFT: greedy, it must give the tokens that Retune gives, on 20 prompts.

    pip install -r tests/parity/requirements.txt
    python tests/parity/adapter_parity.py --retune target/release/retune --base models/pocket

Without --store the demo is played first, which takes minutes; with it, a folder that `retune demo --once --store` kept.
"""

import argparse
import json
import os
import subprocess
import tempfile
import urllib.request

import peft
import torch
import transformers

from kept import environment, play, question, rows

transformers.logging.set_verbosity_error()

PROMPTS = 20
# As task/builtin/retune.toml has it: what adapters of the built-in task are trained and served with.
ADAPTER_PROMPT = "Triage."
MAX_TOKENS = 256


def questions(program, store, adapter):
    """What apps asked the adapter, each question once, as many of every length as there are."""
    asked = rows(program, store, f"select messages from exchanges where adapter = '{adapter}' order by ts, replica, seq")
    texts = dict.fromkeys(question(row) for row in asked)
    assert len(texts) >= PROMPTS, f"only {len(texts)} different questions to {adapter}"
    return list(texts)[:PROMPTS]


def by_retune(program, store, adapter, texts):
    """Text, prompt tokens and answer tokens (the end of the turn is one) of each answer, over HTTP."""
    child = subprocess.Popen(
        [program, "serve", "--json", "--stop-with-stdin"],
        cwd=store,
        env=environment(store),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = json.loads(child.stdout.readline())["listening"]
        answers = []
        for text in texts:
            body = {"model": adapter, "messages": [{"role": "user", "content": text}], "temperature": 0}
            request = urllib.request.Request(
                f"{url}/v1/chat/completions",
                json.dumps(body | {"max_tokens": MAX_TOKENS}).encode(),
                {"content-type": "application/json"},
            )
            answer = json.load(urllib.request.urlopen(request))
            usage = answer["usage"]
            answers.append((answer["choices"][0]["message"]["content"], usage["prompt_tokens"], usage["completion_tokens"]))
        return answers
    finally:
        child.stdin.close()
        child.wait(timeout=60)


def by_peft(base, folder, texts):
    """The same by transformers and PEFT. A missing or unexpected key is an error: PEFT only warns."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    config = peft.PeftConfig.from_pretrained(folder)
    model = peft.get_peft_model(model, config)
    loaded = model.load_adapter(folder, adapter_name="default")
    missing = [key for key in loaded.missing_keys if "lora" in key]
    assert not missing and not loaded.unexpected_keys, (missing, loaded.unexpected_keys)
    model.eval()
    answers = []
    for text in texts:
        messages = [{"role": "system", "content": ADAPTER_PROMPT}, {"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        length = prompt["input_ids"].shape[1]
        with torch.no_grad():
            tokens = model.generate(
                **prompt,
                do_sample=False,
                max_new_tokens=MAX_TOKENS,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.eos_token_id,
            )[0, length:]
        text = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        answers.append((text, length, len(tokens)))
    return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", help="the built program")
    parser.add_argument("--base", default="models/pocket", help="the pocket model's folder")
    parser.add_argument("--store", help="a folder that `retune demo --once --store` kept")
    parser.add_argument("--adapter", help="its adapter's name [default: the newest of triage]")
    arguments = parser.parse_args()
    program = os.path.abspath(arguments.retune)
    with tempfile.TemporaryDirectory(prefix="retune-parity-") as temporary:
        store = os.path.abspath(arguments.store or temporary)
        if arguments.store:
            numbers = [int(name) for name in os.listdir(f"{store}/store/adapters/triage") if name.isdigit()]
            adapter = arguments.adapter or f"triage@{max(numbers)}"
        else:
            adapter = play(program, store)["adapter"]
        task, number = adapter.split("@")
        texts = questions(program, store, adapter)
        retune = by_retune(program, store, adapter, texts)
        reference = by_peft(arguments.base, f"{store}/store/adapters/{task}/{number}", texts)
    different = [(text, ours, theirs) for text, ours, theirs in zip(texts, retune, reference) if ours != theirs]
    for text, ours, theirs in different:
        print(f"asked  {text!r}\nRetune {ours}\nPEFT   {theirs}\n")
    assert not different, f"{len(different)} of {PROMPTS} answers differ"
    print(f"{adapter}: {PROMPTS} of {PROMPTS} answers are the same, Retune's and PEFT's")


if __name__ == "__main__":
    main()
