"""What deploy/ holds fits the project, and Kubernetes: nothing is built or started here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from npu_weave.cli.main import app

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFEST = DEPLOY / "kubernetes" / "npu-weave.yaml"
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(MANIFEST.read_text()))
DEV = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: f"{each['kind']} {each['metadata']['name']}")
def test_the_manifest_is_what_kubernetes_takes(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def of_kind(kind: str) -> dict[str, Any]:
    return next(document for document in DOCUMENTS if document["kind"] == kind)


def container(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = of_kind(kind)["spec"]["template"]["spec"]["containers"][0]
    return found


def test_the_server_is_started_with_options_there_are() -> None:
    """Ours are those of the command; what is left goes to vLLM."""
    commands: dict[str, Any] = vars(get_command(app))["commands"]
    ours = {option for parameter in commands["serve"].params for option in parameter.opts}
    options = {argument.split("=")[0] for argument in container("StatefulSet")["args"] if argument.startswith("--")}
    assert options - ours == {"--served-model-name", "--max-loras", "--max-cpu-loras", "--shutdown-timeout"}


def test_the_router_knows_every_replica_and_is_the_one_that_is_tested() -> None:
    service, replicas = of_kind("StatefulSet")["spec"]["serviceName"], of_kind("StatefulSet")["spec"]["replicas"]
    (command,) = container("Deployment")["args"]
    hosts = re.findall(r"http://(\S+):8000", command)
    assert hosts == [f"npu-weave-{number}.{service}" for number in range(replicas)]
    assert re.findall(r"vllm-router==\S+", command) == [each for each in DEV if each.startswith("vllm-router")]


def test_a_stopping_replica_has_time_for_its_streams() -> None:
    (seconds,) = [argument.split("=")[1] for argument in container("StatefulSet")["args"] if "shutdown" in argument]
    assert int(seconds) < of_kind("StatefulSet")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]


def test_the_image_has_the_torch_that_the_set_up_pins() -> None:
    (pinned,) = re.findall(r"^readonly TORCH_VERSION=(\S+)", (ROOT / "scripts" / "environment.sh").read_text(), re.M)
    assert f"torch=={pinned}+cpu" in (DEPLOY / "docker" / "Dockerfile.cpu").read_text()


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.ascend"])
def test_images_serve_and_say_whether_they_do(name: str) -> None:
    text = (DEPLOY / "docker" / name).read_text()
    assert 'ENTRYPOINT ["npu-weave", "serve"]' in text and "/health" in text and "EXPOSE 8000" in text


def test_the_ascend_image_installs_what_the_project_depends_on() -> None:
    """Without letting pip choose another torch: so each dependency is named there."""
    (listed,) = re.findall(r"install_requires=\[(.*?)\]", (ROOT / "setup.py").read_text(), re.S)
    wanted = {re.match(r"[\w-]+", name)[0] for name in re.findall(r'"([a-z_]\S*)"', listed)}  # type: ignore[index]
    text = (DEPLOY / "docker" / "Dockerfile.ascend").read_text()
    brought = {"numpy", "packaging"}  # by torch and vLLM
    assert {name for name in wanted - brought if not re.search(rf"\b{name}\b", text)} == set()


def test_nothing_of_a_checkout_that_was_built_goes_into_an_image() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv*", "build", "**/*.so"} <= set(ignored)
