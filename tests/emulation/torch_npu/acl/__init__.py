"""CANN's Python package `acl`, of which vllm-ascend imports one name and calls none unless sleep mode is on."""
