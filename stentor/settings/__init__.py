"""Settings: defaults < settings file < environment < command line, as one frozen value."""

from stentor.settings.compose import Settings
from stentor.settings.layers import Notice, SettingsError
from stentor.settings.load import load_settings, reload_models

__all__ = ["Notice", "Settings", "SettingsError", "load_settings", "reload_models"]
