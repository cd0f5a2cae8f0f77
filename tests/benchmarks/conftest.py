"""Fixtures: tiny real bundles on disk, and a real SSH server on loopback."""

import pytest
from loopback import start_loopback
from tiny_bundles import IMAGE, write_bundle


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "tiny")


@pytest.fixture
def image_bundle(tmp_path):
    return write_bundle(tmp_path / "image", **IMAGE)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    # sshd names the files of its configuration by absolute paths, and sockets have short ones
    found = start_loopback(tmp_path_factory.mktemp("loopback"))
    yield found
    found.stop()
