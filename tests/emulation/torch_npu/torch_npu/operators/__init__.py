"""The operators, a file a subject. Each is computed in float32 and rounded once, to the type documented."""
