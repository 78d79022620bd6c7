"""What a path's parameters take."""

import pytest

from stentor.http.gateway import _compile


@pytest.mark.parametrize("name", ["tiny", "org/repo:Q4_K_M", "repo:Q4"])
def test_a_models_name_may_have_slashes(name: str) -> None:
    found = _compile("/v1/models/{model_name}").match(f"/v1/models/{name}")
    assert found is not None
    assert found.groupdict() == {"model_name": name}


def test_a_models_name_is_never_empty() -> None:
    assert _compile("/v1/models/{model_name}").match("/v1/models/") is None
