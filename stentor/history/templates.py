"""Templates to start conversations from, each inside its project."""

import msgspec
from sqlalchemy import Connection

from stentor.core.clock import time_text
from stentor.core.errors import Refused
from stentor.core.ids import new_uuid7
from stentor.history import table
from stentor.history.values import Template, TemplateCreate, TemplateStats, TemplateUpdate

DEFAULT_MODEL = "default"
DEFAULT_TEMPERATURE = 0.7
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def add_template(connection: Connection, project_id: str, key_id: str, wanted: TemplateCreate, now_us: int) -> Template:
    """A new template."""
    template_id = new_uuid7()
    values = {
        "id": template_id,
        "project_id": project_id,
        "key_id": key_id,
        "project_label": wanted.project_id,
        "name": wanted.name,
        "description": wanted.description,
        "system_prompt": wanted.system_prompt,
        "model": DEFAULT_MODEL if wanted.model is None else wanted.model,
        "temperature": DEFAULT_TEMPERATURE if wanted.temperature is None else wanted.temperature,
        "max_tokens": wanted.max_tokens,
        "tool_config": _encode(wanted.tool_config or {}).decode(),
        "created_by": wanted.created_by,
        "is_active": True,
        "usage_count": 0,
        "created_us": now_us,
        "updated_us": now_us,
        "last_used_us": None,
    }
    table.add_template(connection, values)
    return get_template(connection, project_id, template_id)


def get_template(connection: Connection, project_id: str, template_id: str) -> Template:
    """One of the project's. Raises Refused."""
    row = table.find_template(connection, project_id, template_id)
    if row is None:
        raise Refused("not_found", f"Template not found: '{template_id[:64]}'.")
    return _template(row)


def list_templates(
    connection: Connection, project_id: str, created_by: str | None, limit: int, offset: int
) -> list[Template]:
    """The project's templates that are in use, newest first."""
    return [_template(row) for row in table.list_templates(connection, project_id, created_by, limit, offset)]


def count_templates(connection: Connection, project_id: str) -> int:
    """How many the project has."""
    return table.count_templates(connection, project_id)


def list_stats(connection: Connection, project_id: str, limit: int) -> list[TemplateStats]:
    """The project's templates, the most used first."""
    return [
        TemplateStats(
            row.id,
            row.name,
            row.usage_count,
            None if row.last_used_us is None else time_text(row.last_used_us),
            time_text(row.created_us),
        )
        for row in table.list_most_used_templates(connection, project_id, limit)
    ]


def update_template(
    connection: Connection, project_id: str, template_id: str, wanted: TemplateUpdate, now_us: int
) -> Template:
    """Change what is given. Raises Refused."""
    get_template(connection, project_id, template_id)
    values = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    if "tool_config" in values:
        values["tool_config"] = _encode(values["tool_config"]).decode()
    table.update_template(connection, project_id, template_id, {**values, "updated_us": now_us})
    return get_template(connection, project_id, template_id)


def use_template(connection: Connection, project_id: str, template_id: str, now_us: int) -> Template:
    """Count one more use. Raises Refused."""
    table.use_template(connection, project_id, template_id, now_us)
    return get_template(connection, project_id, template_id)


def delete_template(connection: Connection, project_id: str, template_id: str) -> None:
    """Remove one of the project's. Raises Refused."""
    if not table.delete_template(connection, project_id, template_id):
        raise Refused("not_found", f"Template not found: '{template_id[:64]}'.")


def _template(row: table.AnyRow) -> Template:
    return Template(
        row.id,
        row.name,
        row.description,
        row.system_prompt,
        row.model,
        row.temperature,
        row.max_tokens,
        _decode(row.tool_config),
        row.key_id,
        row.project_label,
        row.created_by,
        row.is_active,
        row.usage_count,
        time_text(row.created_us),
        time_text(row.updated_us),
        None if row.last_used_us is None else time_text(row.last_used_us),
    )
