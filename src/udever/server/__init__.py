"""The service: an OpenAI-compatible API over the engine, with keys, credits and limits."""
