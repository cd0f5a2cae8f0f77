"""Tests of the package shallowvit. A package itself, so that its files may have the names of files elsewhere in tests/."""
