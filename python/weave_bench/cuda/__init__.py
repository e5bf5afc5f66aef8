"""A routed MoE layer on a GPU, without an engine: what the part ``gpu`` measures, and how.

``geometry``, ``traffic``  sizes of layers; adapters, tokens and their router logits, made up with fixed seeds
``weights``               the layer's experts four ways: virtual, padded, the base model's alone, a merged model's
``sorting``, ``grouped_matmul``, ``combine``  Triton kernels: tokens by row, matrix products a row, sums a token
``layer``, ``reference``  one step of the layer from these, and what it should be, in float64
``timing``, ``cases``, ``limits``  pairs of ways in turn, with events or as graphs; what is paired; the device's speed

Nothing here needs vLLM. The modules of kernels import triton, the others do not.
"""
