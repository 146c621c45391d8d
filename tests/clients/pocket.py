"""What the scripts make of the pocket model: a LoRA of random weights, and a copy whose chat template knows tools."""

import array
import json
import math
import pathlib
import random
import shutil
import urllib.request

POCKET = pathlib.Path(__file__).parent.parent.parent / "models" / "pocket"
RANK = 4
# In front of a conversation, as templates of the Hermes kind have it.
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\nTools:\n' }}{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endif %}"
)


def with_tools(folder):
    """A copy in the folder `pocket` in there; gives its path."""
    copy = pathlib.Path(folder, "pocket")
    copy.mkdir()
    for file in POCKET.glob("*.*"):
        if file.suffix in (".json", ".safetensors"):
            shutil.copy(file, copy)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config["chat_template"] = TOOLS + config["chat_template"]
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    return str(copy)


def write_lora(folder):
    """PEFT's two files: they mean nothing, and change every answer, the same way every time."""
    base = json.loads((POCKET / "config.json").read_text())
    hidden, layers = base["hidden_size"], base["num_hidden_layers"]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "models/pocket",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj", "o_proj"],
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    source, header, data = random.Random(5), {}, array.array("f")
    for layer in range(layers):
        for module in config["target_modules"]:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            for part, shape in (("lora_A", [RANK, hidden]), ("lora_B", [hidden, RANK])):
                begun = len(data)
                data.extend(source.gauss(0.0, 0.3) for _ in range(math.prod(shape)))
                at = [4 * begun, 4 * len(data)]
                header[f"{name}.{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": at}
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    (folder / "adapter_model.safetensors").write_bytes(len(told).to_bytes(8, "little") + told + data.tobytes())


def bring_lora(url, folder):
    """Makes one in the folder, imports it there and gives its name."""
    write_lora(pathlib.Path(folder))
    return post(f"{url}/admin/adapters", {"task": "triage", "folder": folder})["name"]


def post(url, body):
    """What comes back for a question in JSON."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)
