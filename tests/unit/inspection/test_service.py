# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The served page: who may use it, what it stores, and the training with marks."""

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
from rich.console import Console
from weave import draw, small_model

from anomalib_fewshot import inspect
from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.inspection import service, training, watch
from anomalib_fewshot.inspection.labels import read_labels
from anomalib_fewshot.inspection.run_folder import RunFolder
from anomalib_fewshot.inspection.server import PageServer
from anomalib_fewshot.inspection.service import InspectionService
from anomalib_fewshot.inspection.session import Session
from anomalib_fewshot.inspection.training import load


class Client:
    """Client of the server, which runs tasks of the main thread while it waits for an answer."""

    def __init__(self, service: InspectionService, server: PageServer) -> None:
        self.service = service
        self.token = server.token
        self.port = server.port
        self.cookie = f"inspect_{server.port}={server.token}"

    def request(self, method: str, path: str, content: Any = None, **headers: str) -> tuple[int, bytes]:  # noqa: ANN401
        """Send a request and return status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        host = headers.pop("Host", f"127.0.0.1:{self.port}")
        connection.putrequest(method, path, skip_host=True)
        body = b"" if content is None else json.dumps(content).encode()
        for name, value in {"Host": host, "Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read()

    def get(self, path: str) -> Any:  # noqa: ANN401
        """Return the JSON answer of a request with the cookie."""
        status, body = self.request("GET", path, Cookie=self.cookie)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, content: Any) -> tuple[int, Any]:  # noqa: ANN401
        """Send a request with the token, while this thread does the tasks."""
        answers: list[tuple[int, bytes]] = []
        headers = {"Authorization": f"Bearer {self.token}"}
        thread = threading.Thread(target=lambda: answers.append(self.request("POST", path, content, **headers)))
        thread.start()
        while thread.is_alive():
            self.service._run_next_task()  # noqa: SLF001
        return answers[0][0], json.loads(answers[0][1])


@pytest.fixture
def client(run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Return a client of a served run."""
    monkeypatch.setattr(training, "new_model", small_model)
    for module in (service, watch):
        monkeypatch.setattr(module, "WATCH_INTERVAL", 0.02)
    folder = RunFolder(run)
    session = Session(folder.settings, Console(quiet=True))
    session.resume(folder, watch=False)
    inspection = InspectionService(session, watch=False, port=0)
    with PageServer(inspection) as server:
        yield Client(inspection, server)


def test_only_the_token_opens_the_page(client: Client) -> None:
    assert client.request("GET", "/")[0] == 403
    assert client.request("GET", "/?token=wrong")[0] == 403
    assert client.request("GET", f"/?token={client.token}")[0] == 303
    status, page = client.request("GET", "/", Cookie=client.cookie)
    assert status == 200
    assert b"connect-src 'self'" in page
    for path in ("/api/data", "/api/state", "/page/thumbnails/a/0.png.jpg"):
        assert client.request("GET", path)[0] == 403
        assert client.request("GET", path, Cookie=client.cookie)[0] == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": client.cookie}):  # no request of another site
        assert client.request("POST", "/api/labels", {"labels": {"a/0.png": "bad"}}, **headers)[0] == 403
    assert not Path("runs/v0/labels.csv").exists()


def test_other_host_names_are_refused(client: Client) -> None:
    """A page of another site whose name resolves to this computer must not read the answers."""
    assert client.request("GET", "/api/data", Cookie=client.cookie, Host="example.org")[0] == 400
    assert client.request("GET", "/api/data", Cookie=client.cookie, Host=f"localhost:{client.port}")[0] == 200


@pytest.mark.parametrize("path", ["/page/../model.ckpt", "/page/%2e%2e/model.ckpt", "/page//etc/passwd", "/page/good"])
def test_only_files_of_the_page_are_served(client: Client, path: str) -> None:
    assert client.request("GET", path, Cookie=client.cookie)[0] == 404


def test_labels_are_stored_at_once(client: Client) -> None:
    version = client.get("/api/state")["version"]
    assert client.post("/api/labels", {"labels": {"a/0.png": "good", "b/0.png": "bad"}})[0] == 200
    assert client.post("/api/labels", {"labels": {"a/0.png": None}})[0] == 200
    assert read_labels(Path("runs/v0/labels.csv")) == {"b/0.png": "bad"}
    assert client.get("/api/state")["version"] == version + 2  # another tab loads the data again
    assert client.get("/api/data")["labels"] == {"b/0.png": "bad"}
    for labels in ({"a/0.png": "perhaps"}, {"c.png": "bad"}, ["a/0.png"]):
        status, answer = client.post("/api/labels", {"labels": labels})
        assert (status, "error" in answer) == (400, True)
    session = Session(RunFolder(Path("runs/v0")).settings, Console(quiet=True))
    session.resume(RunFolder(Path("runs/v0")), watch=False)  # after the server was killed
    assert session.labels == {"b/0.png": "bad"}


def test_thresholds_are_stored(client: Client) -> None:
    data = client.get("/api/data")
    scores = sorted(picture["score"] for picture in data["pictures"])
    review, defect = (scores[0] + scores[1]) / 2, (scores[1] + scores[2]) / 2
    assert client.post("/api/thresholds", {"thresholds": {"review": review, "defect": defect}})[0] == 200
    table = pd.read_csv("runs/v0/scores.csv")
    assert list(table.verdict) == ["defect", "defect", "review", "good"]
    stored = load(Path("runs/v0")).post_processor
    assert stored.metadata()["defect_score"] == pytest.approx(defect, rel=1e-6)
    assert stored.guaranteed_fpr is None
    changed = client.get("/api/data")
    assert changed["moved"] is True
    assert changed["guaranteed"]["defect"] == pytest.approx(data["defect"])
    status, answer = client.post("/api/thresholds", {"thresholds": {"review": 2, "defect": 1}})
    assert status == 400
    assert "not higher than `defect`" in answer["error"]
    assert client.post("/api/thresholds", {"thresholds": None})[0] == 200
    assert load(Path("runs/v0")).post_processor.guaranteed_fpr == pytest.approx(0.2)


def test_training_with_marks(client: Client) -> None:
    """Pictures marked good are learned from, those marked bad are not; marks and the ignored region come along."""
    for seed in range(8):
        draw(Path(f"new/more/{seed}.png"), 200 + seed)
    client.service.session.score()
    hole = next(path for path in client.get("/api/data")["pictures"] if "hole" in path["path"])["path"]
    client.post("/api/labels", {"labels": {"a/0.png": "good", hole: "bad"}})
    client.post("/api/ignore", {"path": "b/0.png", "rectangles": [[0, 0, 0.1, 0.1]]})
    assert not Path("runs/v0/ignore.png").exists()  # the current model was trained without it
    assert client.post("/api/train", {})[0] == 202
    state = client.get("/api/state")
    assert (state["job"], state["error"]) == (None, None)
    data = client.get("/api/data")
    assert data["run"] == "runs/v1"
    assert data["labels"] == {"a/0.png": "good", hole: "bad"}
    assert (data["good"], data["marked_good"]) == (["good"], ["new/a/0.png"])
    assert len(data["calibration_scores"]) == 4  # the marked picture does not set the thresholds
    assert "a/0.png" not in {picture["path"] for picture in data["pictures"]}
    assert Path("runs/v1/ignore.png").is_file()
    manifest = json.loads(Path("runs/v1/support.json").read_text(encoding="utf-8"))
    assert len(manifest["images"]) == 5
    assert len(manifest["unlabeled"]) == 10  # 12 new pictures without the two marked ones
    assert len(RunFolder(Path("runs/v0")).entries) == 12  # the earlier run remains
    assert client.request("GET", "/page/good/4.jpg", Cookie=client.cookie)[0] == 200


def test_marks_during_a_training_come_along(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    score = Session.score

    def mark_and_score(session: Session) -> None:
        score(session)
        client.service.set_labels({"b/0.jpg": "bad"})

    monkeypatch.setattr(Session, "score", mark_and_score)
    assert client.post("/api/train", {})[0] == 202
    assert read_labels(Path("runs/v1/labels.csv")) == {"b/0.jpg": "bad"}
    assert client.get("/api/data")["labels"] == {"b/0.jpg": "bad"}


def test_failed_training_keeps_the_run(client: Client) -> None:
    shutil.rmtree("good")
    assert client.post("/api/train", {})[0] == 202
    state = client.get("/api/state")
    assert "Training requires the good pictures" in state["error"]
    assert client.get("/api/data")["run"] == "runs/v0"
    assert not Path("runs/v1").exists()


def test_one_task_at_a_time(client: Client) -> None:
    client.service._job = {"text": "Training", "done": 1, "total": 9}  # noqa: SLF001
    headers = {"Authorization": f"Bearer {client.token}"}
    for path, content in (("/api/train", {}), ("/api/thresholds", {"thresholds": None})):
        status, body = client.request("POST", path, content, **headers)
        assert status == 400
        assert "Training is in progress" in json.loads(body)["error"]
    assert client.request("POST", "/api/labels", {"labels": {"a/0.png": "bad"}}, **headers)[0] == 200


def test_bad_requests(client: Client) -> None:
    headers = {"Authorization": f"Bearer {client.token}"}
    for path in ("/api/labels", "/api/thresholds", "/api/ignore"):
        for content in ([1], {}, None):
            assert client.request("POST", path, content, **headers)[0] == 400
    whole = {"path": "a/0.png", "rectangles": [[0, 0, 1, 1]]}
    assert b"leave a part" in client.request("POST", "/api/ignore", whole, **headers)[1]
    with mock.patch("anomalib_fewshot.inspection.server.MAX_BODY", 10):
        large = client.request("POST", "/api/labels", {"labels": {"a/0.png": "bad"}}, **headers)
    assert large[0] == 400


def test_ctrl_c_stops_the_server(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    session = client.service.session
    session.console = Console(soft_wrap=True)
    inspection = InspectionService(session, watch=False, port=0)
    with mock.patch.object(inspection, "_run_next_task", side_effect=KeyboardInterrupt):
        assert inspection.run() is session
    said = capsys.readouterr().out
    assert "Serving     http://127.0.0.1:" in said
    assert "To continue: anomalib inspect --resume runs/v0 --serve" in said


def test_port_in_use(client: Client) -> None:
    """The command tells it before the training."""
    with pytest.raises(ArgumentError, match=f"`port` must be a free port, got {client.port}"):
        inspect("good", "new", serve=True, port=client.port, progress=False)
    assert not Path("results").exists()


def test_watched_folder(client: Client) -> None:
    """Pictures that arrive are scored, and the page learns of it."""
    inspection = InspectionService(client.service.session, watch=True, port=0)
    draw(Path("new/later.png"), 90)
    version = inspection.version
    for _ in range(3):  # a file is scored when it no longer changes
        inspection._run_next_task()  # noqa: SLF001
    assert "later.png" in inspection.session.run.entries
    assert inspection.version > version
    assert inspection.state()["job"] is None
