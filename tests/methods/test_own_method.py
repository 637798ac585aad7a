"""The method of docs/methods.md, as it stands on the page."""

import json
import re
from pathlib import Path

from gpo.config.check import check_component
from gpo.config.components import Spec
from gpo.experiment.run import Run
from toy import toy_config


def test_the_method_on_the_page_goes_through_a_run(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "class Imitation" in block]
    (tmp_path / "my_methods.py").write_text(code)
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        given = Spec("method", "my_methods:Imitation", {"most": 5})
        check_component("method", given)
        run = Run(tmp_path / "run", toy_config(method=given, arms={"plain": "none"}))
        model = run.train("plain")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("my_methods", None)
    assert len(json.loads((model / "right.json").read_text())) == 5
    assert json.loads((run.files.arm("plain") / "training.json").read_text())["kept"] == 5
