"""The settings as administrators see them: secrets masked, with their origins."""

from typing import Any

from stentor.settings import Settings
from stentor.settings.compose import show_value
from stentor.settings.declared import DECLARED


def configuration_rows(settings: Settings) -> list[dict[str, Any]]:
    """One row a setting."""
    return [
        {
            "name": setting.name,
            "value": show_value(setting, settings.values.get(setting.name)),
            "origin": settings.origins.get(setting.name, "default"),
            "group": setting.group,
            "text": setting.text,
        }
        for setting in DECLARED
    ]
