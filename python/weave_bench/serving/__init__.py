"""Servers under load: the paper's workload, a client for any OpenAI-compatible server, and the systems compared."""
