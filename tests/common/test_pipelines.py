"""dvc.yaml, params.yaml, conf/ and the imports agree, for every paper there is and will be."""

import ast
import importlib
import re
import subprocess
from functools import cache
from pathlib import Path

import dvc.repo
import dvc.stage
import grimp
import pytest
import yaml
from ruamel.yaml import YAML

from stages.common.presets import compose
from stages.common.stage.params import Section, load_params
from tests.common.workspace import ROOT

# pipelines by target: `chex` in stages/chex, `chex-detection` in stages/chex/detection
FOLDERS = {
    "-".join(path.parent.relative_to(ROOT / "stages").parts): path.parent
    for path in sorted((ROOT / "stages").glob("**/params.py"))
    if "common" not in path.parts
}
PAPERS = sorted(FOLDERS)
COMMAND = re.compile(r"-m stages[ .](\w+(?:\.\w+)+)( |$)")
LAUNCHERS = {
    "stages/__main__.py",
    "stages/common/warm.py",
}  # they decide how a stage starts, not what it does
HOUSE = {"dvc", "mlflow", "prefect", "pandas"}  # what a paper's method must do without
MACHINE_PATH = re.compile(r"(?<![\w.:/<$}~-])/(?:home|root|work|Users|mnt|scratch|tmp)/[\w.-]+")


@cache
def tracked() -> tuple[str, ...]:
    """Files of the project: tracked by git, or to be."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return tuple(sorted(name for name in set(listed.stdout.splitlines()) if (ROOT / name).is_file()))


@cache
def pipeline() -> dict[str, dvc.stage.PipelineStage]:
    """Every stage of every dvc.yaml as DVC sees it, parameters and matrices resolved."""
    with dvc.repo.Repo(str(ROOT)) as repo:
        stages = [stage for stage in repo.index.stages if isinstance(stage, dvc.stage.PipelineStage)]
    assert len({stage.name for stage in stages}) == len(stages)
    return {stage.name: stage for stage in stages}


@cache
def graph() -> grimp.ImportGraph:
    """Imports within the project, those inside functions included."""
    return grimp.build_graph("stages", include_external_packages=True, cache_dir=None)


def module_file(module: str) -> str:
    """Path of a module of the project."""
    base = module.replace(".", "/")
    return f"{base}.py" if (ROOT / f"{base}.py").is_file() else f"{base}/__init__.py"


@cache
def has_code(name: str) -> bool:
    """Whether a Python file is more than a docstring."""
    body = ast.parse((ROOT / name).read_text()).body
    return not all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def closure(module: str) -> set[str]:
    """Project files that a stage runs: its module, what it imports, their packages; files that only speak are left out."""
    modules = {module} | {m for m in graph().find_upstream_modules(module) if m.startswith("stages")}
    packages = {m.rsplit(".", depth)[0] for m in modules for depth in range(1, m.count(".") + 1)}
    files = {module_file(name) for name in modules | packages}
    return {name for name in files if has_code(name)} - LAUNCHERS


def code_deps(stage: dvc.stage.PipelineStage) -> set[str]:
    """Files under stages/ that a stage depends on; a folder stands for the project files in it."""
    deps = {
        str(Path(dep.fs_path).relative_to(ROOT))
        for dep in stage.deps
        if not dep.def_path.startswith("params")
    }
    deps = {dep for dep in deps if dep == "stages" or dep.startswith("stages/")}
    return {name for name in tracked() if any(name == dep or name.startswith(f"{dep}/") for dep in deps)}


def shortest(files: set[str]) -> list[str]:
    """The files, or their folder where all code of a folder is among them."""
    folders = {str(Path(file).parent) for file in files}
    whole = {
        folder
        for folder in folders
        if {
            name
            for name in tracked()
            if name.startswith(f"{folder}/") and name.endswith(".py") and has_code(name)
        }
        <= files
    }
    return sorted(whole | {file for file in files if str(Path(file).parent) not in whole})


def stage_names() -> list[str]:
    """Stages by name, one of each matrix."""
    return sorted({name.partition("@")[0] for name in pipeline()})


def cells(name: str) -> list[dvc.stage.PipelineStage]:
    return [stage for found, stage in pipeline().items() if found.partition("@")[0] == name]


def paper_of(name: str) -> str:
    """The pipeline that a stage belongs to: the longest that its name starts with."""
    return max((paper for paper in PAPERS if f"{name}-".startswith(f"{paper}-")), key=len, default="")


def module_of(stage: dvc.stage.PipelineStage) -> str:
    found = COMMAND.search(str(stage.cmd))
    assert found, f"{stage.addressing}: cmd runs no stage of this project: {stage.cmd}"
    return f"stages.{found[1]}"


def test_there_are_pipelines() -> None:
    assert "chex" in PAPERS
    assert {"chex-prepare", "chex-pretrain", "chex-prune", "chex-evaluate", "chex"} <= set(stage_names())
    assert {paper_of(name) for name in stage_names()} == set(PAPERS)


def test_the_file_at_the_top_holds_the_targets() -> None:
    """`dvc repro chex` finds what else it needs in the paper's own folder, with a lock of its own."""
    for name, stage in pipeline().items():
        target = name in PAPERS
        assert Path(stage.path) == (ROOT if target else FOLDERS[paper_of(name)]) / "dvc.yaml"
        assert Path(stage.wdir) == ROOT, (
            f"{name}: paths are relative to the repository's root: wdir is missing"
        )


@pytest.mark.parametrize("name", stage_names())
def test_code_dependencies_are_the_import_closure(name: str) -> None:
    (stage, *_) = cells(name)
    imported = closure(module_of(stage))
    listed = code_deps(stage)
    python = {file for file in listed if file.endswith(".py") and has_code(file)}
    advice = "its code deps have to be:\n" + "".join(f"      - {dep}\n" for dep in shortest(imported))
    assert imported - python == set(), f"imported, but an edit would not run {name} again; {advice}"
    assert python - imported == set(), f"not imported, but an edit would run {name} again; {advice}"
    # files that are no code (a page's template) belong to the module beside them that names them
    beside = {
        file
        for file in tracked()
        if file.startswith("stages/") and not file.endswith(".py")
        and any(Path(code).parent == Path(file).parent and Path(file).name in (ROOT / code).read_text() for code in imported)
    }  # fmt: skip
    assert {file for file in listed if not file.endswith(".py")} == beside


@pytest.mark.parametrize("name", stage_names())
def test_stage_belongs_to_its_paper(name: str) -> None:
    for stage in cells(name):
        paper = paper_of(name)
        module = module_of(stage)
        assert (ROOT / module_file(module)).is_file()
        assert (ROOT / module_file(module)).parent == FOLDERS[paper]
        if name != paper:
            assert all(not str(out.def_path).startswith("reports/") for out in stage.outs)
        else:
            assert any(str(out.def_path).startswith(f"reports/{paper}/") for out in stage.outs)


@pytest.mark.parametrize("name", stage_names())
def test_meta_says_what_a_stage_needs(name: str) -> None:
    for stage in cells(name):
        meta = stage.meta
        assert isinstance(meta, dict), f"{stage.addressing}: no meta"
        assert meta.keys() == {"gpu", "cpus", "memory"}
        assert meta["gpu"] == "optional" or (isinstance(meta["gpu"], int) and meta["gpu"] >= 0)
        assert isinstance(meta["cpus"], int)
        assert meta["cpus"] >= 1
        assert re.fullmatch(r"\d+[MG]", meta["memory"])


def test_no_two_stages_write_the_same() -> None:
    outs = [str(out.fs_path) for stage in pipeline().values() for out in stage.outs]
    assert len(outs) == len(set(outs))


def test_params_yaml_is_the_composed_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    compose(tmp_path / "params.yaml")
    composed = YAML(typ="safe").load((tmp_path / "params.yaml").read_text())
    committed = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    assert committed == composed, "run `python -m stages.common.presets`"
    assert (ROOT / "params.yaml").read_text() == (tmp_path / "params.yaml").read_text()
    assert set(committed) == set(PAPERS)


def package(paper: str) -> str:
    """`stages.chex.detection` of `chex-detection`."""
    return ".".join(FOLDERS[paper].relative_to(ROOT).parts)


def params_model(paper: str) -> type[Section]:
    """The paper's top Section: the one in its params.py that has `scale` and `seeds`."""
    module = importlib.import_module(f"{package(paper)}.params")
    (model,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Section)
        and {"scale", "seeds"} <= value.model_fields.keys()
    ]
    return model


@pytest.mark.parametrize(
    ("paper", "preset"),
    [(paper, path.stem) for paper in PAPERS for path in sorted((ROOT / "conf" / paper).glob("*.yaml"))],
)
def test_every_preset_is_valid(paper: str, preset: str, tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "conf" / paper / f"{preset}.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({paper: content}))
    params = load_params(params_model(paper), paper, tmp_path / "params.yaml")
    assert getattr(params, "scale") == preset  # noqa: B009


@pytest.mark.parametrize("paper", PAPERS)
def test_every_paper_is_complete(paper: str) -> None:
    presets = {path.stem for path in (ROOT / "conf" / paper).glob("*.yaml")}
    assert presets == {"quick", "real", "paper"}
    assert (ROOT / "reports" / "published" / f"{package(paper).split('.')[1]}.csv").is_file()
    assert not has_code(str((FOLDERS[paper] / "__init__.py").relative_to(ROOT)))
    assert paper in stage_names()
    for preset in presets:
        opening = (ROOT / "conf" / paper / f"{preset}.yaml").read_text().partition("\nscale:")[0]
        assert all(line.startswith("#") for line in opening.splitlines())
        for word in ("Expect:", "Cost:", "Run:"):
            assert word in opening, f"conf/{paper}/{preset}.yaml does not open with {word}"


def test_imports_point_one_way() -> None:
    wrong = []
    for importer in graph().modules:
        if not importer.startswith("stages."):
            continue
        owner = importer.split(".")[1]
        for imported in graph().find_modules_directly_imported_by(importer):
            if not imported.startswith("stages."):
                continue
            other = imported.split(".")[1]
            if other not in (owner, "common", "__main__") or (other == "__main__" and owner != "common"):
                wrong.append(f"{importer} -> {imported}")
    assert wrong == []


@pytest.mark.parametrize("paper", PAPERS)
def test_the_method_is_plain(paper: str) -> None:
    method = f"{package(paper)}.method"
    modules = [module for module in graph().modules if module == method or module.startswith(f"{method}.")]
    assert modules or "-" in paper  # which may use its paper's
    for module in modules:
        imported = graph().find_modules_directly_imported_by(module)
        assert not HOUSE & {name.partition(".")[0] for name in imported}, module
        outside = {
            name for name in imported if name.startswith("stages.") and not name.startswith(f"{method}.")
        }
        assert outside == set(), f"{module} cannot be taken home alone"


def test_no_path_of_a_machine() -> None:
    found = []
    for name in tracked():
        content = (ROOT / name).read_bytes()
        if name.startswith("tests/golden/") or b"\0" in content[:8000]:
            continue
        found += [f"{name}: {match[0]}" for match in MACHINE_PATH.finditer(content.decode(errors="replace"))]
    assert found == []


def test_what_is_a_machine_path() -> None:
    for parts in (("home", "someone"), ("root", ".cache"), ("work", "main"), ("tmp", "x"), ("Users", "me")):
        path = "/" + "/".join(parts)
        for text in (path, f"x = '{path}/y'", f"({path})", f"a {path}"):
            assert MACHINE_PATH.search(text), text
    for text in ("https://example.org/work/x", "runs/work/x", "$OUT/tmp/x", "../work/x", "~/work/x"):
        assert not MACHINE_PATH.search(text), text
