# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""HTTP service that scores images with an exported ONNX model.

Requires score_images.py in the same folder and `pip install onnxruntime numpy pillow starlette uvicorn`.

Usage: python service.py weights/onnx/model.onnx
       curl --data-binary @part.png http://127.0.0.1:8000/inspect
"""

import argparse
import io
import math
import time
from pathlib import Path
from threading import Lock

import uvicorn
from PIL import Image
from score_images import READ_ERRORS, Model, Result, read_image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

MAX_BYTES = 32 * 2**20


class Service:
    """The endpoints `POST /inspect` and `GET /health`. Requests with more than `max_bytes` are refused."""

    def __init__(self, model: Path, max_bytes: int = MAX_BYTES) -> None:
        self.model = Model(model)
        self.max_bytes = max_bytes
        self.name, self.sha256 = self.model.metadata.get("model"), self.model.metadata.get("state_sha256")
        self.lock = Lock()  # ONNX Runtime uses all cores for one image, so simultaneous images would only compete

    async def inspect(self, request: Request) -> JSONResponse:
        """Score the image in the body of the request."""
        start = time.perf_counter()
        body = await self.read_body(request)
        result = await run_in_threadpool(self.score, body)
        milliseconds = round(1000 * (time.perf_counter() - start), 1)
        score = None if math.isnan(result.score) else result.score
        values = {"score": score, "verdict": result.verdict, "p_value": result.p_value}
        return JSONResponse({**values, "model": self.sha256, "milliseconds": milliseconds})

    async def read_body(self, request: Request) -> bytes:
        """Read the body, and stop as soon as it is too large."""
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(
                415,
                "Send the bytes of the image as the body, without a form: curl --data-binary @FILE",
            )
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.max_bytes:
                raise HTTPException(413, f"The image must have at most {self.max_bytes} bytes.")
        if not body:
            raise HTTPException(400, "The body is empty. Send the bytes of an image.")
        return bytes(body)

    def score(self, body: bytes) -> Result:
        """Score the bytes of an image file."""
        try:
            image = read_image(io.BytesIO(body))
            self.model.check_size(image)
        except READ_ERRORS as error:
            reason = "its format is not known" if isinstance(error, Image.UnidentifiedImageError) else str(error)
            raise HTTPException(400, f"The image cannot be read: {reason}") from error
        with self.lock:
            return self.model.score(image[None])[0]

    def health(self, request: Request) -> JSONResponse:
        """Return the name and the hash of the loaded model."""
        del request
        return JSONResponse({"status": "ok", "name": self.name, "model": self.sha256})


def error_response(request: Request, error: Exception) -> JSONResponse:
    """Return an error as JSON."""
    del request
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)


def create_app(model: Path, max_bytes: int = MAX_BYTES) -> Starlette:
    """Return the application, for any ASGI server."""
    service = Service(model, max_bytes)
    inspect = Route("/inspect", service.inspect, methods=["POST"])
    health = Route("/health", service.health, methods=["GET"])
    return Starlette(routes=[inspect, health], exception_handlers={HTTPException: error_response})


def main() -> None:
    """Serve a model until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Score images with an exported ONNX model over HTTP.")
    parser.add_argument("model", type=Path, help="ONNX file, with metadata.json in the same folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 accepts other computers")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max_bytes", type=int, default=MAX_BYTES, metavar="N", help="largest accepted image file")
    args = parser.parse_args()
    uvicorn.run(create_app(args.model, args.max_bytes), host=args.host, port=args.port)


if __name__ == "__main__":
    main()
