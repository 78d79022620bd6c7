"""What the API's description says of a model's fields."""

from stentor.control.models.book import OPERATORS_OWN
from stentor.http.admin.models import RegisterModelRequest
from stentor.runtime.spec import ModelSpec


def test_every_field_that_may_be_said_over_the_api_is_described() -> None:
    described = set(RegisterModelRequest.__struct_fields__)
    assert described == set(ModelSpec.__struct_fields__) - OPERATORS_OWN | {"path"}
