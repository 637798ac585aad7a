"""What a model's own pass over the solutions of a ground of prose tells, kept so that ranking needs no model.

    python benchmarks/search_prose_states.py --model qwen-coder_DIRECTORY [--ground prose_large] [--results FOLDER]

search_GROUND_probe.jsonl: for each solution and boundary the log-probability of the reference answer, of the solution's
own and of some others, forced behind the prefix in two forms.
search_GROUND_states.npz: the hidden states at each boundary, of the token before it and as the mean over the step
before it, of four layers, in float16. They are turned to their principal axes, over all boundaries, which loses
nothing.

One pass for each solution, 20 thousand tokens in all, in bfloat16. A command that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from time import process_time

import numpy as np
import torch

from gpo.engines.hf import HFEngine
from gpo.estimators.forced import Ids, forced_logprobs
from search_grounds import Valued, load

FORMS = {"hashes": ("#### ", ""), "boxed": ("The final answer is \\boxed{", "}")}
LAYERS = (6, 12, 18, 24)


def forms(row: Valued, engine: HFEngine) -> dict[str, tuple[Ids, Ids]]:
    """Phrase and answer by name."""
    own = row.trajectory.score.answer
    answers = {"right": row.problem.answer, "own": own or ""}
    encode = engine.tokenizer.encode
    found = {}
    for form, (before, behind) in FORMS.items():
        for kind, answer in answers.items():
            if answer:
                ids = tuple(encode(answer + behind, add_special_tokens=False))
                if form == "hashes":
                    ids += (engine.tokenizer.eos_token_id,)
                found[f"{form} {kind}"] = (tuple(encode(before, add_special_tokens=False)), ids)
    return found


def probed(engine: HFEngine, row: Valued) -> dict[str, list[float]]:
    """(K + 1,) nats by name."""
    model, trajectory = engine._network(), row.trajectory
    prompt = trajectory.start.prompt_ids
    ids = prompt + trajectory.response_ids
    names = forms(row, engine)
    rows = [(len(prompt) + b, *each) for each in names.values() for b in trajectory.boundaries]
    nats = forced_logprobs(model, ids, rows)
    size = len(trajectory.boundaries)
    return {name: [round(x, 4) for x in nats[i * size : (i + 1) * size]] for i, name in enumerate(names)}


def states(engine: HFEngine, row: Valued) -> np.ndarray:
    """(K + 1, 2 * layers, H): the token before each boundary and the mean over its step, layer by layer."""
    trajectory = row.trajectory
    prompt = len(trajectory.start.prompt_ids)
    ids = trajectory.start.prompt_ids + trajectory.response_ids
    with torch.no_grad():
        found = engine._network().get_decoder()(
            input_ids=torch.tensor([ids], device=engine._network().device), output_hidden_states=True, use_cache=False
        )
    rows = []
    ends = [prompt + b for b in trajectory.boundaries]
    for begin, end in zip([ends[0] - 1, *ends[:-1]], ends, strict=True):
        parts = [found.hidden_states[layer][0].float().cpu() for layer in LAYERS]
        rows.append([of for part in parts for of in (part[end - 1], part[begin:end].mean(0))])
    return np.array([[each.numpy() for each in row] for row in rows])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--ground", default="prose", choices=["prose", "prose_large"])
    options = parser.parse_args(arguments)
    stem = f"search_{options.ground}"
    ground = load(options.results / f"{stem}.jsonl.gz")
    engine = HFEngine(options.model, dtype="bfloat16")
    print("loaded", flush=True)
    file = options.results / f"{stem}_probe.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    known = {json.loads(line)["id"] for line in lines}
    for row in ground:
        if row.trajectory.id in known:
            continue
        began = process_time()
        found = probed(engine, row)
        line = {"id": row.trajectory.id, "seconds": round(process_time() - began, 2), "nats": found}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        print(row.trajectory.id, line["seconds"], flush=True)
    every = [states(engine, row) for row in ground]
    stacked = np.concatenate(every)
    turned = []
    for layer in range(stacked.shape[1]):
        centred = stacked[:, layer] - stacked[:, layer].mean(0)
        left, size, _ = np.linalg.svd(centred, full_matrices=False)
        turned.append((left * size).astype(np.float16))
    np.savez_compressed(
        options.results / f"{stem}_states.npz",
        ids=np.array([row.trajectory.id for row in ground for _ in row.trajectory.boundaries]),
        states=np.stack(turned, 1),
    )


if __name__ == "__main__":
    main()
