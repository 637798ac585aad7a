"""Make preference pairs at critical steps, and hand them to a trainer that is not ours.

    python examples/pairs_for_trl.py [DIRECTORY]

The data set has TRL's columns `prompt`, `chosen` and `rejected`, and our token ids beside them.
"""

import sys

import gpo

if __name__ == "__main__":
    directory = sys.argv[1] if len(sys.argv) > 1 else "runs/pairs"
    run = gpo.Run(
        directory, gpo.RunConfig(problems=9, rollouts=4, locate_share=0.4, reset_turns=0, arms={"gpo": "adaptive"})
    )
    run.build("gpo")
    pairs = gpo.load_pairs(directory, "gpo")
    print(pairs)
    print(pairs[0]["prompt"], "\n+", pairs[0]["chosen"], "\n-", pairs[0]["rejected"])
    # MODEL is the one that sampled: of other models the pairs say less.
    # import torch
    # from trl import DPOConfig, DPOTrainer
    # rows, gpu = pairs.select_columns(["prompt", "chosen", "rejected"]), torch.cuda.is_available()
    # settings = DPOConfig("trained", bf16=gpu, use_cpu=not gpu)  # TRL computes in bfloat16 unless told otherwise
    # DPOTrainer("MODEL", args=settings, train_dataset=rows).train()
