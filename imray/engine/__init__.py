"""The gateway's side of the engine: routing, batching, retries."""
