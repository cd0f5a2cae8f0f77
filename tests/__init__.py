"""Tests, mirroring the three parts."""
