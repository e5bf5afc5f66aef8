"""Plain vLLM, one checkpoint after the other, in a process of its own with every plugin off: what answers should be.

Run as ``python -m weave_lab.demo.plain SPEC OUT`` by `answers_of`. One process, because an engine core and a worker of
their own for every checkpoint would spend most of the time importing vLLM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from weave_lab.demo.report import Answers
from weave_lab.demo.servers import ENGINE, SETTINGS
from weave_lab.demo.traffic import SAMPLING, Reply


def answers_of(models: Mapping[str, Path], prompts: Mapping[str, Sequence[str]], scratch: Path) -> dict[str, Answers]:
    """The answers of each of `models` (name -> checkpoint) to its `prompts`: all together, then one by one.

    Raises:
        RuntimeError: vLLM failed; its log is in the message.
    """
    spec, out, log = scratch / "plain.json", scratch / "plain-answers.json", scratch / "plain.log"
    spec.write_text(json.dumps({name: [str(path), list(prompts[name])] for name, path in models.items()}))
    environment = {**os.environ, **SETTINGS, "VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    with log.open("w") as output:
        command = [sys.executable, "-m", "weave_lab.demo.plain", str(spec), str(out)]
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"plain vLLM ended with status {done.returncode}:\n{log.read_text()[-3000:]}")
    return {name: Answers(*map(_replies, found)) for name, found in json.loads(out.read_text()).items()}


def _replies(rows: Sequence[Mapping[str, Any]]) -> list[Reply]:
    return [Reply(row["text"], tuple(row["tokens"]), tuple(row["logprobs"])) for row in rows]


def main() -> None:
    """Answer the prompts of the spec in ``argv[1]``; write the answers to ``argv[2]``."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    answers = {name: _ask(model, prompts) for name, (model, prompts) in spec.items()}
    assert "npu_weave" not in sys.modules, "not plain vLLM"
    Path(sys.argv[2]).write_text(json.dumps(answers))


def _ask(model: str, prompts: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(model, **ENGINE)
    params = SamplingParams(**SAMPLING)
    together = [_reply(output) for output in llm.generate(prompts, params, use_tqdm=False)]
    alone = [_reply(output) for prompt in prompts for output in llm.generate(prompt, params, use_tqdm=False)]
    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    return together, alone


def _reply(output: Any) -> dict[str, Any]:
    (sample,) = output.outputs
    logprobs = tuple(step[token].logprob for step, token in zip(sample.logprobs, sample.token_ids, strict=True))
    return asdict(Reply(sample.text, tuple(sample.token_ids), logprobs))


if __name__ == "__main__":
    main()
