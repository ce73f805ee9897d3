# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Fresh Python processes that start in a fraction of a second.

A server process imports the large packages that anomalib imports, but neither anomalib nor this package. It forks for
each request. The fork then runs the code as an interpreter runs a script: with its own exit status and excepthook.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

# The imports take most of the time of `import anomalib.models`. They print nothing and configure nothing. Lightning is
# not one of them: its import adds a log handler, unless anomalib was imported before.
SERVER = """
import gc, json, os, sys

import jsonargparse, kornia, matplotlib.pyplot, pandas, sklearn, timm, torch, torchmetrics, torchvision

for name in ("anomalib_fewshot._autoload", "anomalib_fewshot"):  # the start-up file of an installation imports them
    sys.modules.pop(name, None)
assert not [name for name in sys.modules if name.startswith(("anomalib", "lightning."))]
gc.collect()
gc.freeze()


def next_request():
    "Return a request, each in a process of its own."
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    sys.exit()


request = next_request()
for number, name in enumerate((os.devnull, request["stdout"], request["stderr"])):
    file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.dup2(file, number)
    os.close(file)
sys.stdin = open(0)
os.environ.clear()
os.environ.update(request["environment"])
os.chdir(request["cwd"])
sys.argv = request["argv"]
exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
"""


class FreshPython:
    """Starts processes. Without `os.fork`, each of them is a new interpreter."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def __call__(
        self,
        code: str,
        *arguments: str,
        program: str = "-c",
        cwd: Path | None = None,
        environment: dict[str, str] | None = None,
        one_stream: bool = False,
    ) -> "subprocess.CompletedProcess[str]":
        """Run code, and return its exit status and what it prints.

        Args:
            code (str): Code of the module `__main__`.
            *arguments (str): Command-line arguments.
            program (str): Name of the program, `sys.argv[0]`. Defaults to `"-c"`.
            cwd (Path | None): Working directory. Defaults to `None`: the current one.
            environment (dict[str, str] | None): Environment variables to add. Those that Python reads at its start have
                no effect. Defaults to `None`.
            one_stream (bool): Print errors to the standard output. Defaults to `False`.
        """
        environment = os.environ | (environment or {})
        if not hasattr(os, "fork"):
            code = f"import sys; sys.argv[0] = {program!r}\n{code}"
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT if one_stream else subprocess.PIPE}
            command = [sys.executable, "-c", code, *arguments]
            return subprocess.run(command, **streams, text=True, check=False, cwd=cwd, env=environment)
        with TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = {
                "code": code,
                "argv": [program, *arguments],
                "cwd": str(cwd or Path.cwd()),
                "environment": environment,
                "stdout": str(out),
                "stderr": str(out if one_stream else err),
            }
            server = self._start()
            server.stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
            server.stdin.flush()  # type: ignore[union-attr]
            status = int(server.stdout.readline())  # type: ignore[union-attr]
            printed = [path.read_text(encoding="utf-8") if path.exists() else "" for path in (out, err)]
            return subprocess.CompletedProcess(request["argv"], status, *printed)

    def _start(self) -> "subprocess.Popen[str]":
        """Start the server with the first request."""
        if self._server is None:
            command = [sys.executable, "-c", SERVER]
            environment = os.environ | {"ANOMALIB_FEWSHOT_AUTOLOAD": "0"}  # of this server alone
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self._server = subprocess.Popen(command, text=True, env=environment, **pipes)
        return self._server

    def close(self) -> None:
        """Stop the server."""
        if self._server is not None:
            self._server.communicate()
