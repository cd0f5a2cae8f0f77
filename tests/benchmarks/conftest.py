"""Fixtures: tiny real bundles on disk."""

import pytest
from tiny_bundles import IMAGE, write_bundle


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "tiny")


@pytest.fixture
def image_bundle(tmp_path):
    return write_bundle(tmp_path / "image", **IMAGE)
