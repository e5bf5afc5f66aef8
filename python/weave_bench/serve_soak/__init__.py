"""A server under skewed traffic while adapters come, go and are re-pointed, and things go wrong on purpose.

``truth``     adapters with two contents each, and what plain vLLM answers with every content merged
``history``   which contents a name stood for at an instant
``traffic``   requests, some of which hang up
``changes``   loads, unloads, re-points, calls that must be refused, processes that are killed
``verdict``   each answer held to the contents its request may have met
``report``    what is found, as text; memory over time
"""
