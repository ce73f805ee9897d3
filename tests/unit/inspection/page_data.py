# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A page with invented results, without a model, and a small server for it."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

from anomalib_fewshot.inspection.page import write_page

WIDTH, HEIGHT = 96, 64
QUOTED = 'b/1, "x".png'


def picture(path: str, score: float, region: list[int] | None = None, nearest: list[int] | None = None) -> dict:
    """Return the data of a picture."""
    size = {"width": WIDTH, "height": HEIGHT}
    return {"path": path, "score": score, "p": None, **size, "region": region, "nearest": nearest}


def page_data(**changes: object) -> dict[str, Any]:
    """Return the data of a page: six pictures, of which two are defects and one is for review."""
    data = {
        "id": "2026-11-29T10:00:00",
        "title": "Line 3: 6 pictures of new/",
        "date": "2026-11-29",
        "run": "results/inspect/v0",
        "labels_key": "ab12",
        "good": ["good"],
        "marked_good": [],
        "bad": [],
        "new": "new",
        "unlabeled": [],
        "pool": True,
        "ignore": None,
        "options": ["--image_size", "448"],
        "notes": ["Calibrated on three good pictures."],
        "warnings": ["good/1.png is unusual."],
        "issues": [["new/9.png", "error", "cannot be read."]],
        "num_issues": 3,
        "calibration_scores": [0.7, 0.9, 1.0],
        "review": 0.9,
        "defect": 1.0,
        "guaranteed": {"review": 0.9, "defect": 1.0},
        "moved": False,
        "guarantees": {"review": "Half of them.", "defect": "A quarter of them."},
        "min_area": None,
        "pictures": [
            picture("a/0.png", 2.0, [30, 20, 24, 16, 300], [1, 50, 40, 16, 42, 28]),
            picture("a/1.png", 1.05, [0, 0, 5, 5, 20]),
            picture("b/0.png", 0.95),
            picture(QUOTED, 0.8),
            picture("b/2.png", 0.5),
            picture("b/3.png", 0.2),
        ],
        "support": [
            {"path": "good/0.png", "width": WIDTH, "height": HEIGHT},
            {"path": "good/1.png", "width": HEIGHT, "height": WIDTH},
        ],
        "labels": {},
        "server": None,
        "inlined": None,
        "inlined_good": None,
    }
    return data | changes


def write_files(folder: Path, data: dict[str, Any]) -> Path:
    """Write a page and its image files, and return the path of the page."""
    for one in data["pictures"]:
        size = (one["width"], one["height"])
        for part, suffix, color in (("photos", "jpg", 90), ("thumbnails", "jpg", 90), ("heat", "png", 200)):
            path = folder / "page" / part / f"{one['path']}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", size, color).save(path)
    (folder / "page" / "good").mkdir(exist_ok=True)
    for index, good in enumerate(data["support"]):
        Image.new("L", (good["width"], good["height"]), 120).save(folder / "page" / "good" / f"{index}.jpg")
    write_page(folder, data)
    return folder / "index.html"


class FakeServer:
    """Server with canned answers. It records the changes that the page sends.

    Args:
        folder (Path): Folder of the page.
        data (dict[str, Any]): Data of the page. Tests change it and increase the version.
    """

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        self.folder = folder
        self.data = data
        self.state: dict[str, Any] = {"version": 1, "job": None, "error": None, "log_end": False}
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.refuses = False
        self.address = ""

    def answer_post(self, path: str, content: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Record a change and return the status and the answer."""
        if self.refuses:
            return 409, {"error": "Wait for the end of the training."}
        self.posts.append((path, content))
        if path == "/api/labels":
            labels = self.data["labels"] | content["labels"]
            self.data["labels"] = {path: label for path, label in labels.items() if label is not None}
        if path == "/api/thresholds":
            self.data |= content["thresholds"] or self.data["guaranteed"]
        if path == "/api/train":
            self.state["job"] = {"text": "Training on 6 good pictures", "done": 3, "total": 10}
            return 202, {}
        self.state["version"] += 1
        return 200, {"version": self.state["version"]}


@contextmanager
def serve(folder: Path, data: dict[str, Any]) -> Generator[FakeServer, None, None]:
    """Serve a page until the end of the block."""
    fake = FakeServer(folder, data)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:  # noqa: ANN401
            super().__init__(*args, directory=str(folder))

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            canned = {"/api/state": fake.state, "/api/data": fake.data}
            if self.path in canned:
                self.send_answer(200, canned[self.path])
            else:
                super().do_GET()

        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.headers["Authorization"] == f"Bearer {data['server']['token']}":
                self.send_answer(*fake.answer_post(self.path, content))
            else:
                self.send_answer(401, {"error": "The token is wrong."})

        def send_answer(self, status: int, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.address = f"http://127.0.0.1:{server.server_port}/index.html"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
