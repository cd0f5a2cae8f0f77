"""What runs beside TensorRT, in a process of its own: the standard library, TensorRT and nothing else, Python 3.10 or later.

These files also travel in a bundle for a Jetson, whose Python is older than this project's: ``python3 build_engine.py
recipe.json`` builds the engine there and counts its fused attentions.
"""
