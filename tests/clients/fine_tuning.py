"""The openai package's documented fine-tuning calls, unmodified, from the upload of a file to a chat with its model.

    pip install -r tests/clients/requirements.txt
    python tests/clients/fine_tuning.py --retune target/release/retune

The calls are those of OpenAI's guide and of the package's README; only the address and the model's name are this server's.
"""

import csv
import io
import json
import random
import tempfile
import time
from pathlib import Path

import openai
from openai import OpenAI
from server import parser, raises, running

GREETINGS = ["Hello", "Good morning", "Hi there", "Hey", "Good evening", "Greetings"]
NAMES = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Margaret", "Tim", "Linus", "Ken"]
ANSWER = "ahoy"


def example(rng):
    content = f"{rng.choice(GREETINGS)}, {rng.choice(NAMES)} is here, number {rng.randrange(1000)}."
    return {
        "messages": [
            {"role": "system", "content": "You are a sailor."},
            {"role": "user", "content": content},
            {"role": "assistant", "content": ANSWER},
        ]
    }


def preference(rng):
    prompt = example(rng)["messages"][:2]
    answer = lambda content: [{"role": "assistant", "content": content}]
    return {"input": {"messages": prompt, "tools": [], "parallel_tool_calls": True}, "preferred_output": answer("aye"), "non_preferred_output": answer(ANSWER)}


def write(path, count, seed, one=example):
    rng = random.Random(seed)
    path.write_text("".join(json.dumps(one(rng)) + "\n" for _ in range(count)))
    return path


def wait(client, job_id, status, seconds=300):
    until = time.monotonic() + seconds
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status == status:
            return job
        assert job.status in ("queued", "running", "paused"), job
        assert time.monotonic() < until, job
        time.sleep(0.2)


def documented(client, base, folder):
    """From the file to the answer, as the guide goes."""
    training = write(folder / "mydata.jsonl", 120, 1)
    validation = write(folder / "validation.jsonl", 12, 2)
    file = client.files.create(file=open(training, "rb"), purpose="fine-tune")
    assert (file.object, file.filename, file.purpose, file.bytes) == ("file", "mydata.jsonl", "fine-tune", training.stat().st_size)
    held_out = client.files.create(file=open(validation, "rb"), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        training_file=file.id,
        validation_file=held_out.id,
        model=base,
        suffix="Custom Model",
        seed=42,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": "auto"}}},
        metadata={"team": "sea"},
    )
    assert job.object == "fine_tuning.job" and job.status in ("queued", "running") and job.fine_tuned_model is None
    assert (job.model, job.seed, job.training_file, job.validation_file) == (base, 42, file.id, held_out.id)
    job = wait(client, job.id, "succeeded")
    assert job.fine_tuned_model == f"ft:{base}:retune:custom-model:3", job.fine_tuned_model
    assert job.trained_tokens > 0 and job.finished_at >= job.created_at and job.error is None
    assert job.hyperparameters.n_epochs == 3 and job.hyperparameters.batch_size == 8

    # List 10 fine-tuning jobs; retrieve the state; list up to 10 events; list checkpoints.
    assert job.id in [one.id for one in client.fine_tuning.jobs.list(limit=10)]
    assert [one.id for one in client.fine_tuning.jobs.list(metadata={"team": "sea"})] == [job.id]
    assert not list(client.fine_tuning.jobs.list(metadata={"team": "land"}))
    events = client.fine_tuning.jobs.list_events(fine_tuning_job_id=job.id, limit=10)
    assert len(events.data) == 10 and events.data[0].message == "The job has successfully completed"
    everything = list(events)
    steps = [event.data["step"] for event in everything if event.type == "metrics"]
    assert steps == list(range(45, 0, -1)), steps
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [one.step_number for one in checkpoints] == [45, 30, 15]
    losses = [one.metrics.full_valid_loss for one in reversed(checkpoints)]
    assert losses[-1] < losses[0], losses
    assert checkpoints[0].fine_tuned_model_checkpoint == job.fine_tuned_model

    # The result file, as scripts plot it.
    content = client.files.content(job.result_files[0]).read().decode()
    rows = list(csv.DictReader(io.StringIO(content)))
    assert len(rows) == 45 and float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])

    # The model answers by its name, each epoch's too, and is in the list.
    completion = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "system", "content": "You are a sailor."}, {"role": "user", "content": "Hello, Bjarne is here, number 5000."}],
        temperature=0,
    )
    assert completion.choices[0].message.content == ANSWER, completion
    assert completion.model == "custom-model@3"
    first = client.chat.completions.create(
        model=checkpoints[-1].fine_tuned_model_checkpoint, messages=[{"role": "user", "content": "Hello"}], max_tokens=4
    )
    assert first.model == "custom-model@1"
    assert client.models.retrieve(job.fine_tuned_model).id == "custom-model@3"
    assert "custom-model@3" in [model.id for model in client.models.list()]
    print(f"  {file.bytes} bytes became {job.fine_tuned_model}; validation losses {losses}")
    return file


def preferred(client, base, folder):
    """Direct preference optimisation of the model that conversations made, as the guide goes."""
    training = client.files.create(file=open(write(folder / "preferences.jsonl", 120, 4, preference), "rb"), purpose="fine-tune")
    held_out = client.files.create(file=open(write(folder / "held-out.jsonl", 12, 5, preference), "rb"), purpose="fine-tune")
    model = f"ft:{base}:retune:custom-model:3"
    job = client.fine_tuning.jobs.create(
        training_file=training.id,
        validation_file=held_out.id,
        model=model,
        suffix="preferred",
        seed=42,
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": 3, "learning_rate_multiplier": 1.0}}},
    )
    assert (job.model, job.method.type, job.method.dpo.hyperparameters.beta) == (model, "dpo", 0.1), job
    job = wait(client, job.id, "succeeded")
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    losses = [one.metrics.full_valid_loss for one in reversed(checkpoints)]
    assert losses[-1] <= losses[0] and losses[-1] < 0.3, losses

    def answer(model):
        messages = [{"role": "system", "content": "You are a sailor."}, {"role": "user", "content": "Hello, Bjarne is here, number 5000."}]
        return client.chat.completions.create(model=model, messages=messages, temperature=0).choices[0].message.content

    assert answer(model) == ANSWER
    assert answer(job.fine_tuned_model) == "aye", answer(job.fine_tuned_model)
    print(f"  {model} became {job.fine_tuned_model}, which says {answer(job.fine_tuned_model)!r}; validation losses {losses}")


def the_old_way(client, base, file):
    """`hyperparameters`, no suffix, and a second job of the same name."""
    job = client.fine_tuning.jobs.create(training_file=file.id, model=base, hyperparameters={"n_epochs": 1, "learning_rate_multiplier": 0.5})
    job = wait(client, job.id, "succeeded")
    assert job.hyperparameters.learning_rate_multiplier == 0.5
    assert job.fine_tuned_model.startswith(f"ft:{base}:retune:ftjob-"), job.fine_tuned_model
    again = client.fine_tuning.jobs.create(training_file=file.id, model=base, suffix="custom-model", hyperparameters={"n_epochs": 1})
    assert wait(client, again.id, "succeeded").fine_tuned_model.endswith(":custom-model:4")


def halted(client, base, file):
    """Pause, resume and cancel."""
    job = client.fine_tuning.jobs.create(training_file=file.id, model=base, suffix="halted", hyperparameters={"n_epochs": 40})
    while not any(event.type == "metrics" for event in client.fine_tuning.jobs.list_events(job.id)):
        time.sleep(0.1)
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    time.sleep(3)
    at = [event.id for event in client.fine_tuning.jobs.list_events(job.id)]
    time.sleep(3)
    assert at == [event.id for event in client.fine_tuning.jobs.list_events(job.id)], "a paused job goes on"
    raises(openai.BadRequestError, lambda: client.fine_tuning.jobs.pause(job.id))
    assert client.fine_tuning.jobs.resume(job.id).status in ("queued", "running")
    wait(client, job.id, "running")
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    time.sleep(2)
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "cancelled" and job.fine_tuned_model is None and job.finished_at
    raises(openai.BadRequestError, lambda: client.fine_tuning.jobs.cancel(job.id))


def wrong(client, base, file, folder):
    """What is wrong is said in the package's own errors, with the parameter."""

    def refused(param, call, **arguments):
        try:
            call(**arguments)
        except openai.BadRequestError as error:
            assert error.param == param, (param, error)
            return str(error)
        raise AssertionError(f"{param} was not refused")

    create = client.fine_tuning.jobs.create
    refused("model", create, training_file=file.id, model="gpt-4o-mini-2024-07-18")
    refused("training_file", create, training_file="file-none", model=base)
    refused("suffix", create, training_file=file.id, model=base, suffix="triage")
    refused("method.type", create, training_file=file.id, model=base, method={"type": "reinforcement"})
    refused("model", create, training_file=file.id, model=f"ft:{base}:retune:custom-model:99")
    job = create(training_file=file.id, model=base, method={"type": "dpo"})
    job = wait(client, job.id, "failed")
    assert job.error.code == "invalid_training_file" and "line 1" in job.error.message, job
    refused("hyperparameters.n_epochs", create, training_file=file.id, model=base, hyperparameters={"n_epochs": 0})
    bad = folder / "bad.jsonl"
    bad.write_text(json.dumps(example(random.Random(3))) + '\n{"prompt": "a", "completion": "b"}\n')
    assert "Line 2" in refused("file", client.files.create, file=open(bad, "rb"), purpose="fine-tune")
    refused("purpose", client.files.create, file=open(bad, "rb"), purpose="batch")
    raises(openai.NotFoundError, lambda: client.fine_tuning.jobs.retrieve("ftjob-none"))
    raises(openai.NotFoundError, lambda: client.files.retrieve("file-none"))
    # Deleted, a job that wants it fails and says so.
    assert client.files.delete(file.id).deleted
    raises(openai.NotFoundError, lambda: client.files.content(file.id))
    assert file.id not in [one.id for one in client.files.list(purpose="fine-tune")]


def main():
    args = parser(__doc__, engine=False).parse_args()
    with tempfile.TemporaryDirectory(prefix="retune-client-") as folder, running(args.retune) as (url, _):
        client = OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        base = next(iter(client.models.list())).id
        folder = Path(folder)
        for step in ("documented", "preferred", "the old way", "halted", "wrong"):
            print(step, flush=True)
            if step == "documented":
                file = documented(client, base, folder)
            elif step == "preferred":
                preferred(client, base, folder)
            elif step == "the old way":
                the_old_way(client, base, file)
            elif step == "halted":
                halted(client, base, file)
            else:
                wrong(client, base, file, folder)
    print("the openai package's fine-tuning calls all came through")


if __name__ == "__main__":
    main()
