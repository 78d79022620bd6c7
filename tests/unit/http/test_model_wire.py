"""What the API's description says of a model's fields, and its answer to what can't be one."""

from typing import Any

import pytest

from stentor.control.models.book import OPERATORS_OWN, make_spec
from stentor.core.errors import Refused
from stentor.http.admin.models import RegisterModelRequest
from stentor.runtime.spec import ModelSpec


def test_every_field_that_may_be_said_over_the_api_is_described() -> None:
    described = set(RegisterModelRequest.__struct_fields__)
    assert described == set(ModelSpec.__struct_fields__) - OPERATORS_OWN | {"path"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ctx": "16k"}, "The model can't be used: ctx: must be a whole number, not text."),
        ({"engine": "vllm"}, "The model can't be used: engine: 'vllm' is none of llama, llama-server, "),
        ({"remote": {"price": {"input": "1,5"}}}, "can't be used: remote.price.input: must be a number, not text."),
        ({"source": ""}, "The model can't be used: Model 'm': source is missing."),
    ],
)
def test_what_is_wrong_with_a_model_is_told_in_words(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as refused:
        make_spec({"id": "m", "source": "file:/a.gguf", **fields})
    assert said in refused.value.message
