import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpo

SOURCE = Path(gpo.__file__).parent
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "safetensors", "tokenizers"}
MAY_IMPORT_TORCH = ("engines/", "methods/", "reasoner/", "images/embedding")
PACKAGES = ("tasks", "engines", "estimators", "methods")
READS_RUNS_ONLY = (
    "storage",
    "preferences",
    "report/page",
    "report/reading",
    "report/plots",
    "report/results",
    "annotate",
)


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Imported modules, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def at_module_level(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    skipped = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    body = [n for n in tree.body if n not in skipped and not isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return {name for node in body for name in imports(node)}


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE).with_suffix(""))


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_heavy_libraries_are_imported_where_the_architecture_page_says(path: Path) -> None:
    if not name_of(path).startswith(MAY_IMPORT_TORCH):
        assert not {name.partition(".")[0] for name in at_module_level(path)} & HEAVY


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_components_do_not_import_each_other(path: Path) -> None:
    package = name_of(path).partition("/")[0]
    ours = {name for name in imports(ast.parse(path.read_text())) if name == "gpo" or name.startswith("gpo.")}
    if package in PACKAGES:
        assert not {name for name in ours for other in PACKAGES if other != package and name.startswith(f"gpo.{other}")}
    if package == "errors":
        assert not ours
    if package == "contracts":
        assert ours <= {"gpo.types"}
    if package == "types":
        assert ours <= {"gpo.errors"}
    if name_of(path).startswith(READS_RUNS_ONLY):
        assert not {name for name in ours for other in PACKAGES if name.startswith(f"gpo.{other}")}
    if package != "__main__":
        assert "gpo.cli" not in ours


@pytest.mark.parametrize(
    "code",
    [
        "import gpo",
        "import gpo; gpo.Run, gpo.RunConfig, gpo.Sampler, gpo.diagnose, gpo.build_pairs",
        "from gpo.cli import main; main(['--help'])",
        "from gpo.cli import main; main(['run', '--help'])",
    ],
)
def test_torch_is_not_loaded(code: str) -> None:
    script = f"import sys\n{code}\nfound = {HEAVY!r} & set(sys.modules)\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_these() -> None:
    assert set(dir(gpo)) == {
        *("Completion", "Group", "Problem", "Score", "Start", "StepScores", "Trajectory"),
        *("ConfigError", "DataError", "EngineError", "GPOError", "MissingDependency"),
        *("Run", "RunConfig", "Spec", "make", "Results"),
        *("Diagnosis", "diagnose", "Sampler", "question_start", "Pair", "PairSettings", "build_pairs", "load_pairs"),
        "__version__",
    }
    for name in dir(gpo):
        assert getattr(gpo, name) is not None
    with pytest.raises(AttributeError, match="module 'gpo' has no attribute 'nothing'"):
        gpo.nothing  # noqa: B018


def test_the_architecture_page_names_every_module() -> None:
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {f"{path.name}/" if path.is_dir() else path.name for path in SOURCE.iterdir() if path.name[0] not in "_."}
    assert {name for name in named if f"`{name}`" not in page} <= {"py.typed"}
