"""What a server tells of itself: durations in buckets (`histogram`), metrics by their Prometheus names (`prometheus`).

Engines fill snapshots (`engine/vllm/status.py` says what is in one); nothing here knows an engine.
"""
