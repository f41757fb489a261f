"""The documents and the code agree: the tree and its sentences, the floors, the files and tests that are named."""

import ast
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import innerspace

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "innerspace"
MODULES = sorted(SOURCE.rglob("*.py"))
TREE = dict(re.findall(r"^- `([\w/.]+)`: (.+)$", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, f"{path} should open with a docstring"
    return docstring.splitlines()[0]


def test_the_tree_names_every_module_with_its_own_sentence() -> None:
    own = {str(p.relative_to(SOURCE)): first_line(p) for p in MODULES if p.name != "__init__.py"}
    assert {name: sentence for name, sentence in TREE.items() if name.endswith(".py")} == own


def test_the_tree_names_every_other_file() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    others = [p for p in SOURCE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    missing = [p.name for p in others if f"`{p.relative_to(SOURCE)}`" not in text]
    assert others
    assert not missing
    assert all((SOURCE / name).is_file() for name in TREE)


def test_every_package_says_its_sentence_in_the_tree() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for path in SOURCE.glob("*/__init__.py"):
        assert f"**`{path.parent.name}/`** {first_line(path)}\n" in text


def test_the_written_floors_are_the_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    floors = " > ".join(contract["layers"]).replace("innerspace.", "")
    assert f"    {floors}\n" in (ROOT / "ARCHITECTURE.md").read_text()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_module_is_long(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_packages_hold_a_docstring_only() -> None:
    for path in MODULES:
        if path.name == "__init__.py" and path.parent != SOURCE:
            assert len(ast.parse(path.read_text()).body) == 1, f"{path} should hold a docstring and nothing else"


def test_the_root_re_exports_and_does_nothing_else() -> None:
    body = ast.parse((SOURCE / "__init__.py").read_text()).body
    imports = [entry for entry in body if isinstance(entry, ast.ImportFrom)]
    (later,) = [entry for entry in body if isinstance(entry, ast.If)]
    assert ast.unparse(later.test) == "TYPE_CHECKING"
    told = [entry for entry in later.body if isinstance(entry, ast.ImportFrom)]
    values = {
        ast.unparse(entry.targets[0]): ast.literal_eval(entry.value) for entry in body if isinstance(entry, ast.Assign)
    }
    assert set(values) == {"_LATER", "__all__"}
    assert [entry.name for entry in body if isinstance(entry, ast.FunctionDef)] == ["__getattr__", "__dir__"]
    assert len(body) == 1 + len(imports) + 1 + 2 + 2
    own = [entry for entry in imports if str(entry.module).startswith("innerspace")]
    imported = [alias.name for entry in (*own, *told) for alias in entry.names]
    assert sorted(imported) == values["__all__"]
    assert {a.name: f"innerspace.{values['_LATER'][a.name]}" for entry in told for a in entry.names} == {
        a.name: entry.module for entry in told for a in entry.names
    }
    assert {a.name for entry in told for a in entry.names} == set(values["_LATER"])


def test_every_name_of_the_root_is_there() -> None:
    for name in innerspace.__all__:
        assert getattr(innerspace, name).__name__ == name
    assert dir(innerspace) == innerspace.__all__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = innerspace.Nothing


def test_nothing_is_imported_from_a_package_that_does_not_define_it() -> None:
    for path in [*MODULES, *sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "innerspace"):
                continue
            place = SOURCE.joinpath(*str(node.module).split(".")[1:])
            for alias in node.names if place.is_dir() else ():
                found = (place / f"{alias.name}.py").is_file() or (place / alias.name).is_dir()
                assert found, f"{path}: {alias.name} should be imported from the module that defines it"


HEAVY = ("pyarrow", "jinja2", "tyro", "rich", "transformers", "datasets", "scipy", "umap", "google.protobuf", "h5py",
         "sklearn", "pandas", "matplotlib", "innerspace.motion", "innerspace.report", "innerspace.jobs",
         "innerspace.language", "innerspace.learn", "innerspace.measure", "innerspace.harvest")  # fmt: skip
"""What must not come with the root: it costs time, or an extra that may be missing."""


def loaded(code: str) -> list[str]:
    """Which of the heavy modules a fresh interpreter has after some code."""
    code = f"import sys\n{code}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_the_root_is_light() -> None:
    assert loaded("import innerspace") == []
    # that the test can fail
    assert loaded("import innerspace; innerspace.gather") == ["innerspace.harvest"]


def test_a_view_needs_no_extra() -> None:
    assert {name for name in loaded("import innerspace; innerspace.view") if not name.startswith("innerspace")} == set()


def spans(path: Path) -> Iterator[str]:
    """What stands in backticks outside of code blocks."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_what_exists(document: Path) -> None:
    for span in spans(document):
        name, _, test = span.partition("::")
        if not re.fullmatch(r"[\w./-]+\.(py|md|toml|txt|cff|jinja|css|js)|[\w./-]+/", name) or name.startswith("runs/"):
            continue
        places = [base / name for base in (ROOT, SOURCE) if (base / name).exists()]
        assert places, f"{document.name} names {name}, which does not exist"
        assert not test or f"def {test}(" in places[0].read_text(), f"{document.name} names {span}, no such test"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_inside_the_repository_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", document.read_text()):
        assert "://" in target or (document.parent / target).exists(), f"{document.name} links to {target}"


def test_no_name_is_undefined() -> None:
    # shapes in annotations are strings of names that exist nowhere, for which the linter's own rule is off
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "json"]
    folders = [str(ROOT / name) for name in ("src", "tests", "benchmarks", "examples")]
    found = json.loads(subprocess.run([*command, *folders], capture_output=True, text=True, check=False).stdout)
    assert found, "the shapes are not looked at"
    quoted = {name: strings(Path(name)) for name in {one["filename"] for one in found}}
    undefined = list[str]()
    for one in found:
        place = one["location"]["row"], one["location"]["column"] - 1
        if not any(start <= place < end for start, end in quoted[one["filename"]]):
            undefined.append(f"{one['filename']}:{place[0]}: {one['message']}")
    assert not undefined


def strings(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the string literals of a file begin and end."""
    with path.open("rb") as file:
        return [(token.start, token.end) for token in tokenize.tokenize(file.readline) if token.type == tokenize.STRING]
