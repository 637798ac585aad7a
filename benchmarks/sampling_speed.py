"""Sampled tokens a second of a pretrained model on the search workload, by engine and by type of its weights.

    python benchmarks/sampling_speed.py MODEL [--gguf FILE ...] [--threads 2] [--repeats 1] [--only hf-float32,...]
    python benchmarks/sampling_speed.py MODEL --device cuda --solutions 24 --max-tokens 96 --repeats 3

MODEL is a Hugging Face directory (Qwen2.5-Coder-0.5B-Instruct, say); each FILE is the same model for llama.cpp, which
takes part if llama-cpp-python is installed. From every step boundary of a few reference solutions of GSM8K (`GPO_DATA`)
8 rollouts are sampled. All samplers take turns in one process, each loaded for its turn alone. Processor time is stated
beside the clock's, because the machine may be busy: with one thread it does not see what else runs. Ratios are of
processor time, to `generate` with float32. On a GPU it is the clock's time, to `generate` with bfloat16.

llama.cpp gets every advantage that a caller can give it: prompts are computed once and what they have in common too,
sequences are forked by naming cells of one unified cache, all rows are one batch, and tokens are drawn as `hf` does.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpo.engines.draw import NextToken, stream_keys, uniforms
from gpo.engines.hf import HFEngine
from gpo.engines.loading import load_model, load_tokenizer
from gpo.rollout.prompting import render
from gpo.tasks.gsm8k import GSM8K
from gpo.types import Request

Sampler = Callable[[Sequence[Request]], int]  # tokens sampled
PLAIN, PLAIN_CUDA = "generate-float32", "generate-bfloat16"
BATCH = 256  # tokens of one call of llama.cpp
CELLS = 16384  # tokens in its cache


def starts(tokenizer: Any, solutions: int) -> list[tuple[int, ...]]:
    """Token ids of the prompt and each number of whole lines of the solution, all but the last."""
    task, found = GSM8K(), []
    for problem in task.problems("train")[:solutions]:
        prompt = render(task.prompt(problem), tokenizer)
        solution = re.sub(r"<<[^<>]*>>", "", str(problem.metadata["solution"]))  # marks for a calculator
        lines = solution.splitlines(keepends=True)
        for end in range(len(lines)):
            written = tokenizer.encode("".join(lines[:end]), add_special_tokens=False)
            found.append((*prompt, *written))
    return found


def generate(model: Any, pad: int) -> Sampler:
    """The library's own, all requests in one batch, padded on the left."""

    def sample(requests: Sequence[Request]) -> int:
        longest = max(len(request.token_ids) for request in requests)
        ids = torch.full((len(requests), longest), pad, device=model.device)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, longest - len(request.token_ids) :] = torch.tensor(request.token_ids, device=model.device)
            mask[row, longest - len(request.token_ids) :] = 1
        new = model.generate(
            ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, repetition_penalty=1.0, pad_token_id=pad,
            num_return_sequences=requests[0].n, max_new_tokens=requests[0].max_tokens,
        )[:, longest:]  # fmt: skip
        ends = (new == model.generation_config.eos_token_id).int()
        return int((ends.cumsum(-1) - ends == 0).sum())  # but for what follows a stop token

    return sample


def engine(made: HFEngine) -> Sampler:
    def sample(requests: Sequence[Request]) -> int:
        return sum(len(c.token_ids) for group in made.generate(requests) for c in group)

    return sample


class LlamaCpp:
    """A sampler on the low-level interface of llama-cpp-python."""

    def __init__(self, path: Path, stop: int, threads: int) -> None:
        import llama_cpp

        self.api, self.stop = llama_cpp, stop
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.kv_unified, settings.n_seq_max = CELLS, True, BATCH
        settings.n_batch = settings.n_ubatch = settings.n_outputs_max = BATCH
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(model, settings)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)

    def feed(self, tokens: Sequence[int], positions: Sequence[int], rows: Sequence[int], wanted: Sequence[bool]) -> Any:
        """Logits (wanted, V) of at most BATCH tokens."""
        self.batch.n_tokens = len(tokens)
        for index, (token, position, row, want) in enumerate(zip(tokens, positions, rows, wanted, strict=True)):
            self.batch.token[index], self.batch.pos[index] = token, position
            self.batch.n_seq_id[index], self.batch.seq_id[index][0] = 1, row
            self.batch.logits[index] = want
        assert self.api.llama_decode(self.context, self.batch) == 0
        return np.ctypeslib.as_array(self.api.llama_get_logits(self.context), (sum(wanted), self.vocabulary))

    def __call__(self, requests: Sequence[Request]) -> int:
        self.api.llama_memory_clear(self.memory, False)
        keys = stream_keys([r.seed for r in requests for _ in range(r.n)], [i for r in requests for i in range(r.n)])
        rows, lengths, logits = [], [], []
        before, first = (), 0
        for request in requests:  # sequence `first` holds what the next prompt may begin with
            ids, row = request.token_ids, len(rows)
            shared = next((i for i, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b), len(before))
            shared = min(shared, len(ids) - 1)
            if shared:
                self.api.llama_memory_seq_cp(self.memory, first, row, 0, shared)
            for begin in range(shared, len(ids), BATCH):
                part = ids[begin : begin + BATCH]
                last = [begin + index == len(ids) - 1 for index in range(len(part))]
                found = self.feed(part, range(begin, begin + len(part)), [row] * len(part), last)
            for other in range(row + 1, row + request.n):
                self.api.llama_memory_seq_cp(self.memory, row, other, 0, -1)
            logits += [torch.from_numpy(found.copy())] * request.n
            rows += range(row, row + request.n)
            lengths += [len(ids)] * request.n
            before, first = ids, row
        return self.decode(np.array(rows), np.array(lengths), keys, torch.cat(logits), requests[0].max_tokens)

    def decode(self, rows: Any, lengths: Any, keys: Any, logits: Tensor, steps: int) -> int:
        count = 0
        for step in range(steps):
            drawn = NextToken(logits, 1.0).draw(
                np.arange(len(rows)), uniforms(keys, np.full(len(rows), step, dtype=np.uint64))
            )
            count += len(rows)
            on = drawn != self.stop
            rows, lengths, keys, drawn = rows[on], lengths[on], keys[on], drawn[on]
            if not len(rows) or step == steps - 1:
                break
            logits = torch.from_numpy(self.feed(drawn.tolist(), lengths.tolist(), rows.tolist(), [True] * len(rows)))
            lengths = lengths + 1
        return count


def samplers(path: str, files: Sequence[Path], tokenizer: Any, threads: int) -> dict[str, Callable[[], Sampler]]:
    pad, stop = tokenizer.pad_token_id or tokenizer.eos_token_id, tokenizer.eos_token_id

    def loaded(dtype: str) -> Any:
        return load_model(path, None, device="cpu", dtype=dtype, attention=None)

    found: dict[str, Callable[[], Sampler]] = {
        PLAIN: lambda: generate(loaded("float32"), pad),
        "generate-bfloat16": lambda: generate(loaded("bfloat16"), pad),
        "hf-float32": lambda: engine(HFEngine(path, tokenizer, dtype="float32")),
        "hf-bfloat16": lambda: engine(HFEngine(path, tokenizer, dtype="bfloat16")),
        # What is handed over is left as it is, its weights not packed.
        "hf-float32-plain": lambda: engine(HFEngine(loaded("float32"), tokenizer)),
        "hf-bfloat16-plain": lambda: engine(HFEngine(loaded("bfloat16"), tokenizer)),
    }
    for file in files:
        found[file.stem] = lambda file=file: LlamaCpp(file, stop, threads)  # type: ignore[misc]
    return found


def on_gpu(path: str, tokenizer: Any) -> dict[str, Callable[[], Sampler]]:
    pad = tokenizer.pad_token_id or tokenizer.eos_token_id
    return {
        PLAIN_CUDA: lambda: generate(load_model(path, None, device="cuda", dtype="bfloat16", attention=None), pad),
        "hf-library": lambda: engine(HFEngine(path, tokenizer, device="cuda", dtype="bfloat16", kernel="library")),
        "hf": lambda: engine(HFEngine(path, tokenizer, device="cuda", dtype="bfloat16")),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--gguf", type=Path, nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--solutions", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--only", help="names of samplers, separated by commas")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    tokenizer = load_tokenizer(options.model)
    contexts = starts(tokenizer, options.solutions)
    requests = [Request(ids, options.rollouts, options.max_tokens, seed) for seed, ids in enumerate(contexts)]
    cuda = options.device == "cuda"
    known = (
        on_gpu(options.model, tokenizer) if cuda else samplers(options.model, options.gguf, tokenizer, options.threads)
    )
    plain, clock_or_processor = (PLAIN_CUDA, 1) if cuda else (PLAIN, 2)
    names = options.only.split(",") if options.only else list(known)
    warm = [Request(contexts[0], 2, 4, 0)]
    times: dict[str, list[tuple[int, float, float]]] = {name: [] for name in names}
    print(f"{len(requests)} starts of {min(map(len, contexts))} to {max(map(len, contexts))} tokens, "
          f"{options.rollouts} rollouts of at most {options.max_tokens} tokens, {options.threads} threads")  # fmt: skip
    for _ in range(options.repeats):
        for name in names:
            sample = known[name]()
            sample(warm)
            wall, cpu = time.perf_counter(), time.process_time()
            count = sample(requests)
            times[name].append((count, time.perf_counter() - wall, time.process_time() - cpu))
            count, wall, cpu = times[name][-1]
            print(f"  {name:20} {count:5} tokens {wall:6.1f} s {cpu:6.1f} s of processor", flush=True)
            del sample
            gc.collect()
    for name, rows in times.items():
        clock, processor = (statistics.median(row[0] / row[i] for row in rows) for i in (1, 2))
        told = f"{name:20} {clock:6.1f} tokens/s {processor:6.1f} per second of processor"
        if plain in times:
            pairs = zip(rows, times[plain], strict=True)
            i = clock_or_processor
            ratio = statistics.median(row[0] / row[i] / (base[0] / base[i]) for row, base in pairs)
            told += f" {ratio:5.1f} times generate"
        print(told)


if __name__ == "__main__":
    main()
