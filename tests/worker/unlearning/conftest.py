"""Adapters that only the tests of the engine need."""

from __future__ import annotations

import pytest

from tests.worker.conftest import ARCHITECTURES, UNUSUAL_ARCHITECTURES, Tiny, make_tiny


@pytest.fixture(scope="session", params=(*ARCHITECTURES, *UNUSUAL_ARCHITECTURES))
def every(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Every architecture in turn, the unusual ones too."""
    return make_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session", params=("llama", "granite", "gemma2"))
def headed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Output layers as they are, scaled and capped."""
    return make_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def outer(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """An adapter that trains the output layer too."""
    return make_tiny(tmp_path_factory.mktemp("outer"), "qwen2", ["q_proj", "down_proj", "lm_head"])


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """An adapter that trains the embeddings too."""
    return make_tiny(tmp_path_factory.mktemp("embedded"), "qwen2", ["embed_tokens", "q_proj", "down_proj"])
