"""Finding models: what is fetched from a hub, how often, and which commit; the hub is a server on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from east_ray.config.load import from_dict
from east_ray.models import pin
from east_ray.runs.directory import RunDirectory, fingerprint_source
from tests.support.hub import Hub, serve

NAME = "owner/tiny"
LOCAL_MODEL = "import sys; from east_ray.models import local_model; print(local_model(sys.argv[1], sys.argv[2] or None, weights=sys.argv[3] == 'all'))"
OPEN_RUN = "import json, sys; from east_ray.config.load import from_dict; from east_ray.launch import open_run\nwith open_run(from_dict(json.loads(sys.argv[1]), 'test')) as (run, config): print(config.model.revision)"


@pytest.fixture
def files(tiny_model: Path) -> dict[str, bytes]:
    """The bundled model, and what repositories on the hub hold besides."""
    own = {path.name: path.read_bytes() for path in tiny_model.iterdir() if path.is_file()}
    copies = (
        "original/consolidated.00.pth",
        "original/params.json",
        "consolidated.safetensors",
        "tiny-Q4.gguf",
        "rust.ot",
    )
    return own | dict.fromkeys(
        (*copies, "pytorch_model.bin", "README.md", "onnx/model.onnx"), b"the same weights again"
    )


def start(hub: Hub, home: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=hub.environment(home), **pipe)


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


def test_only_what_is_used_is_fetched_and_no_weights_for_a_tokenizer(
    files: dict[str, bytes], tiny_model: Path, tmp_path: Path
) -> None:
    with serve({NAME: files}) as hub:
        directory = Path(output(start(hub, tmp_path, LOCAL_MODEL, NAME, "", "tokenizer")))
        small = sorted(path.name for path in tiny_model.iterdir() if path.suffix in (".json", ".jinja"))
        assert hub.fetched() == small
        assert Path(output(start(hub, tmp_path, LOCAL_MODEL, NAME, "", "all"))) == directory
        assert hub.fetched() == sorted([*small, "model.safetensors"])
    assert (directory / "model.safetensors").read_bytes() == files["model.safetensors"]


def test_weights_in_the_older_format_are_fetched_where_there_are_no_others(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    del files["model.safetensors"]
    with serve({NAME: files}) as hub:
        directory = output(start(hub, tmp_path, LOCAL_MODEL, NAME, "", "all"))
    assert Path(directory, "pytorch_model.bin").exists()


def test_engines_that_start_together_fetch_a_model_once(files: dict[str, bytes], tmp_path: Path) -> None:
    with serve({NAME: files}) as hub:
        commit = hub.head[NAME]
        engines = [start(hub, tmp_path, LOCAL_MODEL, NAME, commit, "all") for _ in range(6)]
        assert len({output(engine) for engine in engines}) == 1
        assert len(hub.fetched()) == len(set(hub.fetched()))
        asked = len(hub.requests)
        output(start(hub, tmp_path, LOCAL_MODEL, NAME, commit, "all"))
        assert len(hub.requests) == asked


def test_a_run_keeps_the_commit_it_began_with_whatever_is_pushed(files: dict[str, bytes], tmp_path: Path) -> None:
    config = {"run": {"dir": str(tmp_path / "run")}, "model": {"path": NAME}, "questions": {"train": "q.jsonl"}}
    with serve({NAME: files}) as hub:
        first = hub.head[NAME]
        assert output(start(hub, tmp_path / "home", OPEN_RUN, json.dumps(config))) == first
        second = hub.push(NAME, files | {"model.safetensors": b"other weights"})
        assert output(start(hub, tmp_path / "home", OPEN_RUN, json.dumps(config))) == first
        directory = output(start(hub, tmp_path / "node", LOCAL_MODEL, NAME, first, "all"))
        assert Path(directory, "model.safetensors").read_bytes() == files["model.safetensors"]
        config["run"] = {"dir": str(tmp_path / "new")}
        assert output(start(hub, tmp_path / "home", OPEN_RUN, json.dumps(config))) == second
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["model"] == {"path": NAME, "revision": first, "fingerprint": fingerprint_source(NAME, first)}


def test_a_run_begun_without_a_pin_stays_without(tmp_path: Path) -> None:
    run = RunDirectory(str(tmp_path))
    model = from_dict({"model": {"path": NAME}, "questions": {"train": "q"}}, "test").model
    run.write_json({"inputs": {"model": fingerprint_source(NAME)}, "settings": {}}, "questions", "manifest.json")
    assert pin(run, model) == model


def test_a_name_the_hub_does_not_have_is_one_sentence(tmp_path: Path) -> None:
    config = {"run": {"dir": str(tmp_path / "run")}, "model": {"path": NAME}, "questions": {"train": "q.jsonl"}}
    with serve({}) as hub:
        process = start(hub, tmp_path / "home", OPEN_RUN, json.dumps(config))
        _, error = process.communicate(timeout=120)
    assert "UserError: model.path='owner/tiny' is not a directory here and cannot be fetched from the hub" in error


@pytest.mark.parametrize(
    ("answer", "final"),
    [
        ((401, {"X-Error-Code": "GatedRepo"}), True),
        ((404, {"X-Error-Code": "RepoNotFound"}), True),
        ((429, {}), False),
        ((503, {}), False),
    ],
)
def test_a_hub_that_is_overloaded_may_answer_later_and_one_that_refuses_will_not(
    answer: tuple[int, dict[str, str]], final: bool, tmp_path: Path
) -> None:
    code = "import sys; from east_ray.models import local_model\ntry: local_model(sys.argv[1])\nexcept ValueError as error: print(type(error).__name__)"
    with serve({}) as hub:
        hub.answer = lambda path: (*answer, b"{}")  # type: ignore[method-assign]
        assert output(start(hub, tmp_path, code, NAME)) == ("UserError" if final else "Unavailable")
