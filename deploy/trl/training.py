"""A LoRA by TRL's SFTTrainer, held to what Retune's own trainer does: the same tokens, loss, schedule and choice of the epoch.

The tokens are made here and not by TRL. TRL renders prompt and answer with the chat template in one go, and whatever follows the prompt is
the completion: in ChatML the line feed after `<|im_end|>` too, and where a template writes an answer of the past otherwise than it asks for
a new one (thoughts, mostly), a prompt that no engine sends. Here it is what an engine reaches token by token: the prompt as the template asks
for an answer, the answer's own tokens, the end of the turn. So it needs no `{% generation %}` in the template either.
"""

import json
import math
import os
import sys

import torch
from datasets import Dataset
from folder import WHOLE, Refused
from jinja2 import TemplateError
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

IGNORED = -100
# Checkpoints in an epoch, and steps between two at most: what a kill can cost.
SAVES, FARTHEST = 8, 100


def encode(tokenizer, path, rows, longest, end_of_turn):
    """Tokens and labels of each row; those too long are left out: cut off they would teach answers without an end."""
    if tokenizer.chat_template is None:
        raise Refused(f"the base {tokenizer.name_or_path} has no chat template in tokenizer_config.json; an instruct model has one")

    def tokens(text):
        # A template that wants a beginning of text writes it.
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    encoded = []
    for line, messages in rows:
        try:
            prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise Refused(f"{path}, line {line}: the base's chat template refuses these messages ({error}); leave the example out") from error
        prompt, answer = tokens(prompt), tokens(messages[-1]["content"]) + tokens(end_of_turn)
        if len(prompt) + len(answer) <= longest:
            encoded.append({"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer})
    if len(encoded) < len(rows):
        print(f"{path}: {len(rows) - len(encoded)} of {len(rows)} examples are longer than {longest} tokens and left out", file=sys.stderr)
    if not encoded:
        raise Refused(f"{path}: every example is longer than max_length, {longest} tokens; shorten the prompts or take a base with more context")
    return encoded


def maps(model, names, base):
    """The linear maps that get a part of the adapter: those named, or all but the one to the vocabulary."""
    head = model.get_output_embeddings()
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and module is not head}
    if missing := sorted(set(names) - linear):
        raise Refused(f"config.json: lora.target_modules: {', '.join(missing)} is none of the maps of {base}: {', '.join(sorted(linear))}")
    return sorted(names or linear)


def learning_rate(lora, step, steps):
    """Of a step counted from 0, as a share of the highest: a rise in a line, then its course to the end."""
    warmup = math.ceil(lora["warmup"] * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[lora["decay"]]


def is_patience_over(history, patience):
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return bool(losses) and 0 < patience <= len(losses) - 1 - losses.index(min(losses))


class Progress(TrainerCallback):
    """Tells each step, the last of an epoch with the development loss; asks for checkpoints, and marks those that are whole."""

    def __init__(self, out, lora, epoch_steps):
        self.out, self.lora, self.epoch_steps = out, lora, epoch_steps
        self.between = min(max(epoch_steps // SAVES, 1), FARTHEST)
        self.line = None

    def on_step_end(self, args, state, control, **kwargs):
        done = state.global_step % self.epoch_steps
        # The epoch's end has its own, after the evaluation.
        if done and done % self.between == 0:
            control.should_save = True

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" not in logs:
            return
        for what in ("loss", "grad_norm"):
            if not math.isfinite(logs[what]):
                raise SystemExit(f"step {state.global_step}: the {what} is {logs[what]}; try a lower learning_rate")
        self.line = {
            "step": state.global_step,
            "steps": state.max_steps,
            "epoch": math.ceil(state.global_step / self.epoch_steps),
            "train_loss": logs["loss"],
            "development_loss": None,
            "learning_rate": logs["learning_rate"],
            "gradient_norm": logs["grad_norm"],
        }
        if state.global_step % self.epoch_steps:
            self.tell(state)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if not math.isfinite(metrics["eval_loss"]):
            raise SystemExit(f"step {state.global_step}: the development loss is {metrics['eval_loss']}; try a lower learning_rate")
        if self.line:
            self.line["development_loss"] = metrics["eval_loss"]
            self.tell(state)
        if is_patience_over(state.log_history, self.lora["patience"]):
            control.should_training_stop = True

    def tell(self, state):
        if state.is_world_process_zero:
            print(json.dumps(self.line), file=self.out, flush=True)
        self.line = None

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with open(f"{args.output_dir}/checkpoint-{state.global_step}/{WHOLE}", "w"):
                pass


class Training(SFTTrainer):
    def __init__(self, lora, **more):
        self.lora = lora
        super().__init__(**more)

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(self.lora, step, num_training_steps))
        return self.lr_scheduler

    def create_model_card(self, *args, **kwargs):
        """None: a checkpoint is no model to publish."""

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """The mean over all supervised tokens. The trainer's own is one over batches, and with several processes counts some examples twice."""
        accelerator, size = self.accelerator, self.args.per_device_eval_batch_size
        mine = [self.eval_dataset[n] for n in range(accelerator.process_index, len(self.eval_dataset), accelerator.num_processes)]
        mine.sort(key=lambda row: len(row["input_ids"]))
        total = torch.zeros(2, dtype=torch.float64)
        self.model.eval()
        for start in range(0, len(mine), size):
            batch = self._prepare_inputs(self.data_collator(mine[start : start + size]))
            with torch.no_grad(), self.compute_loss_context_manager():
                out = self.model(**batch, use_cache=False, fused_lm_head=True)
            total += torch.tensor([-out.log_probs.double().sum().item(), out.label_mask.sum().item()], dtype=torch.float64)
        # In f32 where a device has no f64; as long as the counts are below 2^24 they stay exact.
        loss, count = accelerator.reduce(total.float().to(accelerator.device), "sum").tolist()
        metrics = {"eval_loss": loss / count}
        self.log(metrics)
        self.model.train()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def training(folder, config, sets, tokens, out):
    """The trainer for a run's folder; about `tokens` tokens go through the model at once."""
    lora, base = config["lora"], config["base"]
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(base)
        rows = {name: encode(tokenizer, folder / name, examples, config["max_length"], config["end_of_turn"]) for name, examples in sets.items()}
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16 if bf16 else torch.float32)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"config.json: the base {base} cannot be loaded ({reason}); it has to be a folder or hub id that this machine can read") from error
    args = SFTConfig(
        output_dir=str(folder / "checkpoints"),
        # The libraries' generators take 32 bits.
        seed=config["seed"] % 2**32,
        bf16=bf16,
        # Said, or several processes on CPUs know nothing of each other.
        use_cpu=not torch.accelerator.is_available(),
        learning_rate=lora["learning_rate"],
        weight_decay=0.0,
        # Without a limit the length is wanted all the same.
        max_grad_norm=lora["clip"] or math.inf,
        num_train_epochs=lora["epochs"],
        gradient_checkpointing=lora["recompute"],
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
    )
    if args.world_size != int(os.environ.get("WORLD_SIZE", "1")):
        raise Refused(f"{os.environ['WORLD_SIZE']} processes were started, of which torch sees {args.world_size}; start one for each GPU")
    share, rest = divmod(lora["batch_size"], args.world_size)
    if rest or not share:
        raise Refused(f"config.json: lora.batch_size is {lora['batch_size']}, which {args.world_size} processes cannot share evenly; make it a multiple")
    train = rows["train.jsonl"]
    longest = max(len(row["input_ids"]) for row in train)
    at_once = max((n for n in range(1, share + 1) if share % n == 0 and n * longest <= tokens), default=1)
    args.per_device_train_batch_size = args.per_device_eval_batch_size = at_once
    args.gradient_accumulation_steps = share // at_once
    epoch_steps = math.ceil(len(train) / lora["batch_size"])
    if args.world_size > 1:
        # As many for each process: otherwise some examples would be seen twice. One without a label weighs nothing.
        train += [{"input_ids": train[0]["input_ids"][:1], "labels": [IGNORED]}] * (-len(train) % (at_once * args.world_size))
    # Not every reader knows of rank stabilisation: it is in alpha.
    alpha = lora["alpha"] * (math.sqrt(lora["r"]) if lora["rank_stabilised"] else 1)
    trainer = Training(
        lora,
        model=model,
        args=args,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(rows["development.jsonl"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=lora["r"],
            lora_alpha=alpha,
            lora_dropout=lora["dropout"],
            target_modules=maps(model, lora["target_modules"], base),
            bias="none",
            task_type="CAUSAL_LM",
        ),
        callbacks=[Progress(out, lora, epoch_steps)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
