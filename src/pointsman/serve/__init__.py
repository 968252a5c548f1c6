"""The gateway: an OpenAI-compatible server that routes every request by a saved policy."""
