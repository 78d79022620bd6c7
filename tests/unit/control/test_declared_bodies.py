"""What the surface declares of a management request is what the operation behind it reads."""

from typing import Any

import msgspec
import pytest

from stentor.alerts.webhooks import NewWebhook
from stentor.control import credential_operations as credentials
from stentor.control import operations as control
from stentor.control import wanted
from stentor.control.models import operations as model_operations
from stentor.control.models import slot_operations
from stentor.control.money import plans
from stentor.control.people import changes, session_operations, signups
from stentor.control.people import operations as people_operations
from stentor.http.admin import alerts, models, people, prices, reports, sessions, slots, wire
from stentor.http.admin import credentials as credential_wire

PAIRS: list[tuple[type, type]] = [
    (wire.CreateKeyRequest, wanted.KeyAsk),
    (wire.RotateKeyRequest, wanted.Rotation),
    (wire.CreateUserRequest, wanted.UserAsk),
    (wire.TopUpRequest, control._TopUp),
    (wire.StartModelRequest, control._Start),
    (people.ChangeUserRequest, changes.UserChange),
    (people.ChangeKeyRequest, changes.KeyChange),
    (people.UserKeyRequest, people_operations._UserKey),
    (people.CreateTierRequest, plans.TierAsk),
    (people.ChangeTierRequest, plans.TierChange),
    (people.CreateProjectRequest, plans.ProjectAsk),
    (people.ChangeProjectRequest, plans.ProjectChange),
    (prices.SetPriceRequest, plans.PriceAsk),
    (reports.ApproveRequest, signups.Approval),
    (alerts.CreateWebhookRequest, NewWebhook),
    (sessions.PasswordRequest, session_operations._Password),
    (slots.LoadRequest, slot_operations._Load),
    (models.DownloadRequest, model_operations._Fetch),
    (credential_wire.SetHubTokenRequest, credentials._HubToken),
    (credential_wire.RotateMasterKeyRequest, credentials._NewMasterKey),
]


def shape(kind: type) -> Any:
    """The JSON schema of ``kind`` without its words."""
    (root,), parts = msgspec.json.schema_components([kind])

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [plain(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return plain(parts[value["$ref"].rpartition("/")[2]])
        return {
            name: plain(each)
            for name, each in value.items()
            if name not in ("title", "description", "additionalProperties")
        }

    return plain(root)


@pytest.mark.parametrize(("declared", "read"), PAIRS, ids=[pair[0].__name__ for pair in PAIRS])
def test_a_body_is_declared_as_it_is_read(declared: type, read: type) -> None:
    assert shape(declared) == shape(read)
