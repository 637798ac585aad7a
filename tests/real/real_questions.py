"""Questions of one word that SmolLM2-135M answers rightly now and then at temperature 1, and how to ask them."""

from __future__ import annotations

import json
from pathlib import Path

from gpo.tasks.file import File

QUESTIONS = (
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Spain?", "Madrid"),
    ("What is the capital of Germany?", "Berlin"),
)
EXAMPLES = (("What is the capital of Italy?", "The capital of Italy is Rome.\nSo the answer is Rome."),)


def write(folder: Path) -> dict[str, str]:
    """Files of the task, and the options that take them."""
    questions, examples = folder / "questions.jsonl", folder / "examples.jsonl"
    questions.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in QUESTIONS))
    examples.write_text("".join(json.dumps({"question": q, "response": r}) + "\n" for q, r in EXAMPLES))
    of_task = {"path": questions, "test_path": questions, "examples": examples, "form": "text", "instruction": ""}
    return {"task": "file", **{f"task.{name}": str(value) for name, value in of_task.items()}}


def one_word(folder: Path) -> File:
    options = {name.removeprefix("task."): text for name, text in write(folder).items() if name != "task"}
    return File(**options)  # type: ignore[arg-type]
