"""A LoRA for the pocket model, of random weights: it means nothing, and answers otherwise than the base, the same way every time."""

import array
import json
import math
import pathlib
import random
import tempfile
import urllib.request

POCKET = pathlib.Path(__file__).parent.parent.parent / "models" / "pocket"
RANK = 4


def write(folder):
    """PEFT's two files."""
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
                data.extend(source.gauss(0.0, 0.1) for _ in range(math.prod(shape)))
                at = [4 * begun, 4 * len(data)]
                header[f"{name}.{part}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": at}
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    (folder / "adapter_model.safetensors").write_bytes(len(told).to_bytes(8, "little") + told + data.tobytes())


def bring(url):
    """Imports it and gives its name there."""
    with tempfile.TemporaryDirectory(prefix="retune-lora-") as folder:
        write(pathlib.Path(folder))
        body = json.dumps({"task": "triage", "folder": folder}).encode()
        request = urllib.request.Request(f"{url}/admin/adapters", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["name"]
