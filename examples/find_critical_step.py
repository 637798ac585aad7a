"""Sample a trajectory, find the step that decides it, and see whether fresh rollouts agree.

    python examples/find_critical_step.py

Put your own model in place of the embedded one: `gpo.make("engine", "hf", model=PATH_OR_HUB_ID)` and
`gpo.make("task", "gsm8k")`, or an object with `problems`, `prompt` and `score`.
"""

import gpo

task = gpo.make("task", "reasoner")
with gpo.make("engine", "hf", model="reasoner") as engine:
    for problem in task.problems("dev")[:3]:
        diagnosis = gpo.diagnose(problem, task, engine)
        print(problem.question)
        print(diagnosis)
        print()
