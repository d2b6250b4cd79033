"""An OpenAI-compatible endpoint without a model, for the chat's tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from rlhf.serve.chat.endpoint import Endpoint


class Fake:
    """An OpenAI-compatible endpoint that answers 'MODEL says: QUESTION', with a seed's last digit."""

    def __init__(self, *names: str, multi_turn: bool = True) -> None:
        self.names, self.multi_turn = names, multi_turn
        self.asked: list[dict[str, Any]] = []
        self.fail = ""
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
            ]
        )

    async def models(self, request: Request) -> Response:
        rows = [
            {"id": name, "artifact": f"artifact-{name}", "multi_turn": self.multi_turn} for name in self.names
        ]
        return JSONResponse({"object": "list", "data": rows})

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        if self.fail == "busy":
            return JSONResponse({"error": {"message": "too many wait"}}, 429)
        if self.fail == "gone":
            return JSONResponse({"error": {"message": f"there is no model '{body['model']}'"}}, 404)

        async def events() -> AsyncIterator[bytes]:
            text = f"**{body['model'][-3:]}{body['seed'] % 10}** says: {body['messages'][-1]['content']} "
            for word in text.split(" "):
                yield self.event(body, {"content": word + " "})
            if self.fail == "break":
                yield b'data: {"error": {"message": "the model fell over"}}\n\n'
                return
            yield self.event(body, {}, "stop")
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    @staticmethod
    def event(body: dict[str, Any], delta: dict[str, str], finish: str | None = None) -> bytes:
        event = {
            "model": body["model"],
            "system_fingerprint": f"runs/{body['model']}@1",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        return f"data: {json.dumps(event)}\n\n".encode()

    def endpoint(self) -> Endpoint:
        return Endpoint("http://model/v1", transport=httpx.ASGITransport(app=self.app))
