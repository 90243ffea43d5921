"""Jobs that train in a second on twins, a reporter that stops them where a test wants, and what they leave behind."""

import json
import os

from fastllm.checkpoint import load_progress, read_arrays
from fastllm.training.config import JobConfig

FACTS, DIALOGUE_STEPS = 16, 8  # of make_job
TEXTS = [{"text": f"{subject} {verb} {thing}."} for subject in ("Bees", "Ants", "We", "They")
         for verb in ("make", "like") for thing in ("honey", "rain")]  # fmt: skip
DIALOGUES = [
    {
        "messages": [
            {"role": role, "content": content}
            for role, content in (("user", f"Who likes {thing}?"), ("assistant", "Bees like it."))
        ]
    }
    for thing in ("honey", "rain")
]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def make_job(folder, **changes):
    """Two phases of 16 and 8 updates, with dropout, accumulation, clipping and validation."""
    facts = write_lines(folder / "facts.jsonl", TEXTS)
    dialogues = write_lines(folder / "dialogues.jsonl", DIALOGUES)
    phase = {"learning_rate": 1e-2, "schedule": "cosine", "warmup": 2, "accumulate": 2}
    return JobConfig.from_dict(
        {
            "backend": "numpy",
            "seed": 3,
            "checkpoint_seconds": 0,
            "model": {
                "preset": "nano", "width": 8, "hidden": 12, "layers": 1, "heads": 2, "context": 16, "dropout": 0.1,
            },
            "optimizer": {"weight_decay": 0.1},
            "phases": [
                {
                    "name": "facts", "data": facts, "validation": dialogues, "evaluate_every": 4, "epochs": 4,
                    "rows_per_update": 4, **phase,
                },
                {"name": "dialogues", "data": dialogues, "epochs": 8, "rows_per_update": 2, **phase},
            ],
            **changes,
        }
    )  # fmt: skip


def make_text_job(folder):
    """One phase of 6 updates on a text."""
    (folder / "text.txt").write_text("".join(f"Line {i} of a text. " for i in range(40)))
    phase = {"name": "text", "data": str(folder / "text.txt"), "steps": 6, "learning_rate": 1e-2,
             "sequence_length": 10, "rows_per_update": 2}  # fmt: skip
    return make_job(folder, tokenizer={"type": "character"}, phases=[phase])


class Recorder:
    """A Reporter that keeps what it is told, and calls `at_step` after every update."""

    def __init__(self, at_step=lambda phase, step: None):
        self.steps, self.records, self.phases = [], [], []
        self._at_step = at_step

    def begin(self, phase, done, steps):
        self.phases.append((phase.name, done, steps))

    def step(self, done):
        self.steps.append(done)
        self._at_step(self.phases[-1][0], done.step)

    def log(self, record):
        self.records.append(record)

    def end(self):
        pass


def stop_at(phase, step):
    """A Reporter at which someone presses Ctrl-C after an update; phase None: of whichever phase."""

    def press(at_phase, at_step):
        if at_step == step and phase in (None, at_phase):
            os.kill(os.getpid(), 2)

    return Recorder(press)


def finished(folder):
    """Everything that a run writes, except times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"], line["tokens_per_second"]
    arrays = {
        file: {name: array.tobytes() for name, array in read_arrays(folder / "checkpoint" / file).items()}
        for file in ("model.safetensors", "optimizer.safetensors")
    }
    return lines, arrays, load_progress(folder)


def place(folder):
    """Phase and step of the checkpoint."""
    progress = load_progress(folder)
    return progress["phase"], progress["step"]
