"""The decode runtime: opens an artifact, prefills, steps, samples, detokenises, measures.

Decoding needs numpy, onnxruntime, tokenizers and jinja2 only: no torch, no transformers. Nothing is imported
here, so `import ingot.runtime` costs nothing.
"""
