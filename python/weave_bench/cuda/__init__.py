"""A routed MoE layer on a GPU, without an engine: what the part ``gpu`` measures, and how.

``geometry``, ``traffic`` sizes of layers; adapters, tokens and their router logits, made up with fixed seeds
``step``, ``weights``     what a step is given; the layer's experts: virtual, padded, the base's alone, a merged model's
``sorting``, ``grouped_matmul``, ``combine``  Triton kernels: tokens by row, matrix products a row, sums a token
``layer``, ``reference``  one step of the layer from these, and what it should be, in float64
``checks``                whether it is
``plan``, ``cases``       which batches are measured, and what is paired with what on each
``timing``, ``limits``    ways in turn, with events or as graphs; the device's own speed
``tables``                what columns mean, and rows from times

Nothing here needs vLLM. Kernels, and ``layer``, ``checks`` and ``cases``, which use them, import triton.
"""
