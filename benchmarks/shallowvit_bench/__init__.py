"""Measure latency, memory and accuracy of a bundle on the device it will run on.

Imports neither torch nor ``shallowvit``: on a device it needs numpy and onnxruntime. A newcomer's trap: a bundle's graph may
take uint8 frames or normalised floats; ``preprocessing`` reads which from the manifest, so pass uint8 frames either way.
"""
