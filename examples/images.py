"""Teach a tiny vision-language model to count squares a little, and run GPO on it: images from prompt to report.

    python examples/images.py [DIRECTORY]

The model has the architecture of SmolVLM (Idefics3 of transformers) and 0.1 M random parameters; some seconds of
supervised training on pictures that the task draws make it right now and then. Nothing is downloaded.
"""

import random
import re
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

import gpo
from gpo.images.embedding import see
from gpo.images.tokenizer import ImageTokenizer
from gpo.report.command import write_report
from gpo.rollout.prompting import render
from gpo.tasks.squares import Squares

WORD = r" ?\w+|\n|[^\w\s]| "
TEMPLATE = (
    "{% for turn in messages %}{% for part in turn.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}\n{% endfor %}"
)
TASK = Squares(instruction="", train_problems=700, test_problems=40)
STEPS = 200


def response(problem: gpo.Problem) -> str:
    """The right one."""
    asked = re.search("How many (.)", problem.question)[1]
    rows = problem.metadata["cells"].split("/")
    lines = [f"Row {i} has {row.count(asked)}.\n" for i, row in enumerate(rows, 1)]
    return "".join(lines) + f"So the answer is {problem.answer}."


def processor(problems: list[gpo.Problem]) -> Idefics3Processor:
    """One token for each word of the task; a picture of 24 by 24 pixels is nine tokens."""
    texts = [problem.question + "\n" + response(problem) for problem in problems]
    words = sorted({word for text in texts for word in re.findall(WORD, text)} | {str(n) for n in range(10)})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    words_of = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words_of.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    words_of.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_of,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<global-img>"],
    )
    size = {"longest_edge": 24}
    pictures = Idefics3ImageProcessorPil(do_image_splitting=False, size=size, max_image_size=size)
    return Idefics3Processor(pictures, tokenizer, image_seq_len=9, chat_template=TEMPLATE)


def untrained(made: Idefics3Processor) -> Idefics3ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "hidden_size": 64}
    config = Idefics3Config(
        image_token_id=made.image_token_id,
        pad_token_id=0,
        scale_factor=1,
        tie_word_embeddings=True,
        vision_config={**sizes, "image_size": 24, "patch_size": 8, "num_hidden_layers": 1},
        text_config={
            **sizes,
            "model_type": "llama",
            "num_key_value_heads": 2,
            "vocab_size": len(made.tokenizer),
            "max_position_embeddings": 128,
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 0,
            "tie_word_embeddings": True,
        },
    )
    return Idefics3ForConditionalGeneration(config)


def teach(model: Idefics3ForConditionalGeneration, tokenizer: ImageTokenizer, problems: list[gpo.Problem]) -> float:
    """Supervised training on right responses; the last loss in nats per token."""
    see(model, tokenizer)
    rows = []
    for problem in problems:
        prompt = render(TASK.prompt(problem), tokenizer)
        rows.append((len(prompt), [*prompt, *tokenizer.encode(response(problem)), tokenizer.eos_token_id]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS)
    chance = random.Random(0)
    for _ in range(STEPS):
        batch = chance.sample(rows, 24)
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for _, row in batch], batch_first=True)
        targets = ids.clone()
        for target, (begin, row) in zip(targets, batch, strict=True):
            target[:begin] = -100
            target[len(row) :] = -100
        logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return loss.item()


def make(directory: Path) -> float:
    """Write the model and its processor; the last loss."""
    problems = TASK.problems("train")
    made = processor(problems)
    model = untrained(made)
    loss = teach(model, ImageTokenizer(made), problems[200:])
    model.save_pretrained(directory)
    made.save_pretrained(directory)
    return loss


def main(directory: Path) -> None:
    loss = make(directory / "model")
    print(f"The model has a loss of {loss:.3f} nats per token.")
    config = gpo.RunConfig(
        model=str(directory / "model"),
        task=TASK,
        problems=12,
        test_problems=24,
        rollouts=8,
        max_tokens=40,
        arms={"plain": "none", "gpo": gpo.Spec("estimator", "monte_carlo")},
        method=gpo.Spec("method", "dpo", {"learning_rate": 1e-4}),
    )
    run = gpo.Run(directory / "run", config)
    run.all()
    print((directory / "run" / "table.md").read_text())
    print(write_report(directory / "run"))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
