"""The yardstick of http_single: a FastAPI endpoint with the models of a send that does nothing.

Everything that FastAPI would do beside the endpoint is switched off, as in the gateway.
"""

from __future__ import annotations

from fastapi import FastAPI

from api.schemas import Offset, SendRequest, SendResponse

app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})


@app.post("/v1/conversations/{conv_id}/messages", status_code=201, response_model=SendResponse)
async def send(conv_id: str, message: SendRequest) -> SendResponse:
    """An answer of the right shape, made up."""
    return SendResponse(
        conv_id=conv_id,
        conv_seq=1,
        client_msg_id=message.client_msg_id,
        duplicate=False,
        epoch=1,
        offset=Offset(shard=0, segment=1, row=0),
        server_ts=1_700_000_000_000,
        stable_seq=1,
    )
