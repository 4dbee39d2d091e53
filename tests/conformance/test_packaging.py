"""The wheel holds every module once, the list of packages is complete, the pins fit the ranges."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import fl_shield

ROOT = Path(__file__).resolve().parents[2]
LINKS = ("strategies", "simulations")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NOT_COPIED = shutil.ignore_patterns(
    ".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "tests", "docs"
)


def files_of_packages(pattern: str) -> dict[str, Path]:
    """Files of the three trees by their path in the wheel, the links not followed."""
    found: dict[str, Path] = {}
    for folder, prefix in (
        ("fl_shield", "fl_shield"),
        ("strategies", "fl_shield/strategies"),
        ("simulations", "fl_shield/simulations"),
    ):
        for path in sorted((ROOT / folder).rglob(pattern)):
            inside = path.relative_to(ROOT / folder)
            linked = folder == "fl_shield" and inside.parts[0] in LINKS
            if not linked and "__pycache__" not in inside.parts:
                found[f"{prefix}/{inside.as_posix()}"] = path
    return found


def data_files() -> set[str]:
    """Paths in the wheel of everything that ``package-data`` names."""
    table: dict[str, list[str]] = PROJECT["tool"]["setuptools"]["package-data"]
    paths = PROJECT["tool"]["setuptools"]["package-dir"]
    found: set[str] = set()
    for package, patterns in table.items():
        owner = max((p for p in paths if f"{package}.".startswith(f"{p}.")), key=len)
        folder = ROOT / paths[owner] / Path(*package.removeprefix(owner).strip(".").split("."))
        for pattern in patterns:
            found |= {f"{package.replace('.', '/')}/{p.name}" for p in folder.glob(pattern)}
    return found


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    found: dict[str, Version] = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            assert canonicalize_name(name) not in found, f"{name} is pinned twice"
            found[canonicalize_name(name)] = Version(version)
    return found


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(r for rows in extras.values() for r in rows)]
    return [Requirement(line) for line in [*lines, *PROJECT["build-system"]["requires"]]]


def test_the_list_of_packages_equals_the_folders() -> None:
    """An unlisted subpackage would be missing from the wheel without a word."""
    listed = PROJECT["tool"]["setuptools"]["packages"]
    folders = [str(Path(p).parent).replace("/", ".") for p in files_of_packages("__init__.py")]
    assert sorted(listed) == sorted(folders)


def test_every_module_lies_in_a_package() -> None:
    listed = {p.replace(".", "/") for p in PROJECT["tool"]["setuptools"]["packages"]}
    assert {str(Path(p).parent) for p in files_of_packages("*.py")} <= listed


def test_every_pattern_of_package_data_finds_a_file() -> None:
    table: dict[str, list[str]] = PROJECT["tool"]["setuptools"]["package-data"]
    found = data_files()
    for package, patterns in table.items():
        for pattern in patterns:
            name = re.escape(f"{package.replace('.', '/')}/") + pattern.replace("*", ".*")
            assert any(re.fullmatch(name, path) for path in found), f"{package}: {pattern}"


def test_every_file_beside_the_modules_is_shipped() -> None:
    """A file that is no code and that ``package-data`` does not name would stay at home."""
    found = files_of_packages("*")
    assert {n for n, p in found.items() if p.is_file() and p.suffix != ".py"} == data_files()


def test_the_links_show_the_installed_shape() -> None:
    for name in LINKS:
        link = ROOT / "fl_shield" / name
        if not link.is_symlink():
            pytest.skip(f"{link.name} is no link in this checkout (git without symbolic links)")
        assert os.readlink(link) == f"../{name}"
        assert link.resolve() == (ROOT / name).resolve()


def test_the_version_is_told_once() -> None:
    assert PROJECT["project"]["version"] == fl_shield.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(r"^## \[Unreleased\]$", changelog, re.MULTILINE)


def test_the_pins_fit_the_ranges() -> None:
    pinned = pins()
    for requirement in requirements():
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is required and not pinned"
        assert version in requirement.specifier, f"{requirement} against {version}"


def test_the_pins_resolve_everywhere() -> None:
    """No local version (``+cpu``), no pre-release, no path, and not ourselves."""
    pinned = pins()
    assert "fl-shield" not in pinned
    assert all(v.local is None and not v.is_prerelease for v in pinned.values())
    assert pinned["torch"] == Version("2.13.0")
    assert pinned["flwr"] in Requirement("flwr>=1.41,<1.42").specifier


def test_no_file_names_a_package_index() -> None:
    """Where packages come from is the machine's business, never the repository's."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/run"):
        text = (ROOT / name).read_text("utf-8")
        assert not re.search(r"index-url|find-links|--index", text), name


def test_ci_runs_what_a_person_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text("utf-8").rstrip().endswith("make --no-print-directory test")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built without a network from a copy of the source, links and all."""
    folder = tmp_path_factory.mktemp("wheel")
    source, out = folder / "source", folder / "dist"
    shutil.copytree(ROOT, source, symlinks=True, ignore=NOT_COPIED)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", build, str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if ".dist-info/" not in n]
        metadata = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        license_files = [n for n in archive.namelist() if n.endswith("licenses/LICENSE")]
        assert f"Version: {fl_shield.__version__}\n" in archive.read(metadata[0]).decode()
    assert len(license_files) == 1
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert set(names) == set(files_of_packages("*.py")) | data_files()
    assert {n.split("/")[0] for n in names} == {"fl_shield"}


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Installed without its dependencies; these are lent by this environment, not the checkout."""
    target, out = tmp_path / "site", tmp_path / "run"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, str(target), str(wheel)], check=True, capture_output=True, timeout=120)
    lent = next(p for p in sys.path if p.endswith("site-packages"))
    # -S keeps out this environment's .pth files, and with them the editable checkout.
    start = f"import sys; sys.path.append({lent!r}); import fl_shield; print(fl_shield.__file__)"
    call = f"{start}; from fl_shield.cli import main; main()"
    size = ["--clients", "4", "--clients-per-round", "4", "--rounds", "1"]
    options = ["simulate", "--dataset", "digits", *size]
    done = subprocess.run(
        [sys.executable, "-S", "-c", call, *options, "--out", str(out)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(target / "fl_shield"))
    assert (out / "results.json").is_file()
