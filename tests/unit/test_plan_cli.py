"""`npu-weave plan`: tables, JSON, adapters in all their forms, refusals."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from fixtures.adapters import write_adapter, write_expert_config
from typer.testing import CliRunner

from npu_weave.cli.main import app
from npu_weave.residency.plan_paper import PAPER_MODEL

GIB = 1 << 30
EXPERT = 17301504  # bytes of one of DeepSeek-V2-Lite's experts


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A config without weights, and adapters: a directory of configurations, one of adapters, one with weights."""
    (tmp_path / "lite").mkdir()
    (tmp_path / "lite/config.json").write_text(json.dumps(dict(PAPER_MODEL)))
    configs = tmp_path / "configs"
    configs.mkdir()
    for name, experts in (("law", {"1": [1, 2, 3], "26": [63]}), ("math", {"5": [9, 8]})):
        (configs / f"expert_cfg_{name}.json").write_text(json.dumps({"experts": experts}))
    (configs / "scores.json").write_text("{}")
    write_expert_config(tmp_path / "adapters/one", {2: [4]})
    write_expert_config(tmp_path / "adapters/two", {3: [5], 4: [6, 7]})
    write_adapter(tmp_path / "whole", {1: [0]})
    return tmp_path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)], env={"COLUMNS": "200"})


def run_json(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def lite(files: Path, *arguments: object) -> dict[str, Any]:
    return run_json("--base", files / "lite", "--device-memory", "64GiB", "--overhead", "4.9GiB", *arguments)


def test_a_document_of_everything(files: Path) -> None:
    found = lite(files, "--adapter", files / "configs", "--max-model-len", 4096)
    base = found["base"]
    assert base["origin"] == "config"
    assert base["weights_bytes"] == sum(base["parts"].values()) == 2 * 15706484224
    assert (base["kv_bytes_per_token"], base["expert_bytes"]) == (31104, EXPERT)
    assert found["device"] == {
        "memory_bytes": 64 * GIB,
        "utilization": 0.9,
        "overhead_bytes": int(4.9 * GIB),
        "least_kv_tokens": 4096,
    }
    assert found["adapters"] == [
        {"name": "law", "experts": 4, "most_in_a_layer": 3},
        {"name": "math", "experts": 2, "most_in_a_layer": 2},
    ]
    assert (found["e_max"], found["page_bytes"]) == (3, 2 << 20)
    rows = found["rows_per_layer"]
    assert (len(rows), rows["1"], rows["2"], rows["5"], rows["26"]) == (26, 67, 64, 66, 65)
    exact, mapped, padded, merged = (found["designs"][name] for name in ("exact", "mapped", "padded", "merged"))
    assert exact["weights_bytes"] == base["weights_bytes"] + 6 * EXPERT
    # w13 has 5.5 pages a row, w2 2.75: 3 rows 17 + 9, 2 rows 11 + 6, 1 row 6 + 3
    assert mapped["weights_bytes"] == base["weights_bytes"] + (26 + 17 + 9) * (2 << 20)
    assert padded["weights_bytes"] == base["weights_bytes"] + 26 * 2 * 3 * EXPERT
    assert merged["weights_bytes"] == 2 * base["weights_bytes"]
    assert mapped["kv_tokens"] == (int(57.6 * GIB) - int(4.9 * GIB) - mapped["weights_bytes"]) // 31104
    assert (mapped["fits"], merged["fits"], merged["most_adapters"], merged["kv_tokens"]) == (True, False, 1, 0)
    assert exact["most_adapters"] >= mapped["most_adapters"] > padded["most_adapters"] > 1
    assert [step["adapters"] for step in found["steps"]] == [0, 1, 2]
    assert found["steps"][2]["mapped"]["weights_bytes"] == mapped["weights_bytes"]
    settings = found["settings"]
    assert (settings["max_loras"], settings["adapter_rows"]) == (2, 3)
    assert settings["arguments"][:3] == ["--enable-lora", "--max-loras", "2"]


def test_the_settings_are_those_that_serve_takes(files: Path) -> None:
    from npu_weave.config import config_from

    settings = lite(files, "--adapter", files / "configs")["settings"]
    given = config_from(json.loads(settings["arguments"][4]))
    assert given is not None
    assert (given.adapter_rows, given.adapter_memory) == (3, settings["adapter_memory_bytes"])


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["{}/adapters"], ["one", "two"]),
        (["{}/adapters/two"], ["two"]),
        (["mine={}/adapters/two"], ["mine"]),
        (["{}/configs/expert_cfg_law.json", "other={}/configs/expert_cfg_law.json"], ["law", "other"]),
        (["{}/adapters/one/expert_cfg.json"], ["one"]),
        (["{}/whole", "{}/whole", "{}/configs"], ["whole", "whole-2", "law", "math"]),
    ],
)
def test_adapters_in_every_form(files: Path, values: list[str], names: list[str]) -> None:
    arguments = [word for value in values for word in ("--adapter", value.format(files))]
    assert [each["name"] for each in lite(files, *arguments)["adapters"]] == names


def test_directories_of_configurations_of_other_names(files: Path) -> None:
    (files / "plain").mkdir()
    (files / "plain/sql.json").write_text(json.dumps({"experts": {"1": [1]}}))
    assert [each["name"] for each in lite(files, "--adapter", files / "plain")["adapters"]] == ["sql"]


def test_a_path_with_an_equals_sign(files: Path) -> None:
    write_expert_config(files / "a=b", {2: [4]})
    assert [each["name"] for each in lite(files, "--adapter", files / "a=b")["adapters"]] == ["a=b"]


@pytest.mark.parametrize(("wish", "count"), [(("--adapters", 5), 5), (("--copies", 3), 6), (("--adapters", 0), 0)])
def test_numbers_of_adapters(files: Path, wish: tuple[str, int], count: int) -> None:
    found = lite(files, "--adapter", files / "adapters", *wish)
    assert len(found["adapters"]) == count
    assert [each["name"] for each in found["adapters"]][2:4] == ["one#2", "two#2"][: max(0, count - 2)]
    assert found["steps"][-1]["adapters"] == count


def test_many_adapters_are_shown_by_powers_of_two(files: Path) -> None:
    found = lite(files, "--adapter", files / "adapters", "--adapters", 100)
    assert [step["adapters"] for step in found["steps"]] == [0, 1, 2, 4, 8, 16, 32, 64, 100]


def test_without_adapters(files: Path) -> None:
    found = lite(files)
    assert (found["adapters"], found["settings"], found["e_max"]) == ([], None, 0)
    text = run("--base", files / "lite", "--device-memory", "64GiB").stdout
    assert "no adapters" in text
    assert "29.256" in text


def test_tensor_parallel(files: Path) -> None:
    whole, half = lite(files), lite(files, "--tensor-parallel-size", 2)
    assert half["base"]["tensor_parallel_size"] == 2
    assert half["base"]["expert_bytes"] == EXPERT // 2
    assert half["base"]["kv_bytes_per_token"] == whole["base"]["kv_bytes_per_token"]
    text = run("--base", files / "lite", "--device-memory", "64GiB", "--tensor-parallel-size", 2).stdout
    assert "one of 2 tensor parallel ranks" in " ".join(text.split())


def test_tables(files: Path) -> None:
    arguments = ["--base", files / "lite/config.json", "--device-memory", "64GiB", "--adapter", files / "configs"]
    text = run(*arguments).stdout
    assert "2 adapters, 6 tuned experts; rows a layer: 64 and 0 to 3 (mean 0.2); E_max = 3" in text
    assert "does not fit" in text
    (line,) = [line for line in text.splitlines() if line.startswith("--enable-lora")]
    assert shlex.split(line) == run_json(*arguments)["settings"]["arguments"]
    assert "1 + law" in text
    many = run(*arguments, "--copies", "4000", "--max-model-len", "1").stdout
    assert "of 8000: the others do not fit at once" in many
    none = run(*arguments, "--device-memory", "33.4GiB", "--overhead", "0", "--gpu-memory-utilization", "1")
    assert none.exit_code == 4
    tight = [*arguments, "--device-memory", "29.26GiB", "--overhead", "0", "--gpu-memory-utilization", "1"]
    assert "no adapter fits" in run(*tight, "--max-model-len", "1").stdout


def test_the_papers_figure() -> None:
    text = run("--paper").stdout
    assert "published" in text and "deviation" in text
    documented = (Path(__file__).parents[2] / "docs/planning.md").read_text()
    assert [line.rstrip() for line in text.strip().splitlines()] == [
        line.rstrip()
        for line in documented.partition("npu-weave plan --paper`:\n\n```\n")[2].partition("\n```")[0].splitlines()
    ]
    found = run_json("--paper")
    assert found["fitted_overhead_bytes"] == pytest.approx(4.9 * GIB, rel=0.01)
    assert len(found["figures"]) == 12
    for figure in found["figures"]:
        assert abs(figure["deviation"]) < (0.04 if figure["quantity"] == "kv_tokens" else 0.02)


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        ([], "PLAN_ARGUMENT", 2),
        (["--base", "{}/lite"], "PLAN_ARGUMENT", 2),
        (["--device-memory", "64GiB"], "PLAN_ARGUMENT", 2),
        (["--paper", "--base", "{}/lite"], "PLAN_ARGUMENT", 2),
        (["--base", "{}/lite", "--device-memory", "64GB"], "PLAN_ARGUMENT", 2),
        (["--base", "{}/lite", "--device-memory", "-1GiB"], "PLAN_ARGUMENT", 2),
        (["--base", "{}/lite", "--device-memory", "64GiB", "--overhead", "some"], "PLAN_ARGUMENT", 2),
        (["--base", "{}/lite", "--device-memory", "64GiB", "--gpu-memory-utilization", "90"], "PLAN_ARGUMENT", 2),
        (["--base", "{}/lite", "--device-memory", "64GiB", "--tensor-parallel-size", "3"], "PLAN_ARGUMENT", 2),
        (["--base", "{}/lite", "--device-memory", "64GiB", "--max-model-len", "0"], "PLAN_ARGUMENT", 2),
        (["--base", "{}/lite", "--device-memory", "64GiB", "--adapters", "2"], "PLAN_ARGUMENT", 2),
        (["--base", "{}/lite", "--device-memory", "64GiB", "--copies", "2"], "PLAN_ARGUMENT", 2),
        (["--base", "{}/lite", "--device-memory", "64GiB", "--adapter", "x={}/configs"], "PLAN_ARGUMENT", 2),
        (["--base", "{}/lite", "--device-memory", "24GiB"], "PLAN_BASE_TOO_LARGE", 4),
        (["--base", "{}/lite", "--device-memory", "40GiB", "--max-model-len", "999999"], "PLAN_BASE_TOO_LARGE", 4),
        (["--base", "{}/nothing", "--device-memory", "64GiB"], "CHECKPOINT_NOT_FOUND", 8),
        (["--base", "{}/configs", "--device-memory", "64GiB"], "FILE_MISSING", 3),
        (["--base", "{}/configs/scores.json", "--device-memory", "64GiB"], "MODEL_TYPE_UNSUPPORTED", 6),
        (["--base", "{}/lite", "--device-memory", "64GiB", "--adapter", "{}/nothing"], "ADAPTER_NOT_FOUND", 3),
        (["--base", "{}/lite", "--device-memory", "64GiB", "--adapter", "x y={}/whole"], "ADAPTER_NAME_INVALID", 3),
        (["--base", "{}/lite", "--device-memory", "64GiB", "--adapter", "{}/empty"], "EXPERT_CONFIG_MISSING", 3),
        (["--base", "{}/lite", "--device-memory", "64GiB", "--adapter", "{}/shared"], "ADAPTER_MODULES_UNSUPPORTED", 3),
        (["--base", "{}/lite", "--device-memory", "64GiB", "--adapter", "{}/far"], "ADAPTER_LAYER_INVALID", 3),
    ],
)
def test_refusals(files: Path, arguments: list[str], code: str, exit_code: int) -> None:
    (files / "empty").mkdir()
    write_expert_config(files / "shared", {2: [4]}, shared_experts=True)
    write_expert_config(files / "far", {27: [4]})
    filled = [argument.format(files) for argument in arguments]
    as_json = run(*filled, "--json")
    assert as_json.exit_code == exit_code, as_json.output
    assert json.loads(as_json.stdout)["error"]["code"] == code
    as_text = run(*filled)
    assert (as_text.exit_code, as_text.stdout) == (exit_code, "")
    assert as_text.stderr.startswith(f"error [{code}]")


def test_both_numbers_of_adapters(files: Path) -> None:
    arguments = ["--base", files / "lite", "--device-memory", "64GiB", "--adapter", files / "whole"]
    for wish in (["--adapters", 2, "--copies", 2], ["--copies", 0], ["--adapters", -1]):
        result = run(*arguments, *wish, "--json")
        assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (2, "PLAN_ARGUMENT")
