"""All SQL of conversations, templates and client logs. Every statement names the project whose rows it may touch."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, exists, func, insert, literal, or_, select, update

from stentor.core.clock import DAY_US
from stentor.store import search
from stentor.store.ring_schema import client_logs, conversation_templates, conversations, messages, receipt_items

AnyRow = Row[*tuple[Any, ...]]
Values = Mapping[str, Any]
_PART = 1_000_000_000
_IS_CERTIFIED = exists(
    select(literal(1)).where(
        receipt_items.c.project_id == client_logs.c.project_id,
        receipt_items.c.kind == "client",
        receipt_items.c.item_id == client_logs.c.id,
    )
)

# -- conversations -----------------------------------------------------------------------------------------------------


def add_conversation(connection: Connection, values: Values) -> None:
    """Insert a conversation."""
    connection.execute(insert(conversations).values(**values))


def find_conversation(connection: Connection, project_id: str, conversation_id: str) -> AnyRow | None:
    """A project's conversation, all columns."""
    query = select(*conversations.c).where(
        conversations.c.project_id == project_id, conversations.c.id == conversation_id
    )
    return connection.execute(query).one_or_none()


def list_conversations(connection: Connection, project_id: str, limit: int, offset: int) -> list[AnyRow]:
    """A project's conversations, the one last written to first."""
    query = select(*conversations.c).where(conversations.c.project_id == project_id)
    query = query.order_by(conversations.c.updated_us.desc(), conversations.c.id.desc())
    return list(connection.execute(query.limit(limit).offset(offset)))


def count_conversations(connection: Connection, project_id: str) -> int:
    """How many a project has."""
    query = select(func.count()).select_from(conversations).where(conversations.c.project_id == project_id)
    return int(connection.execute(query).scalar_one())


def update_conversation(connection: Connection, project_id: str, conversation_id: str, values: Values) -> None:
    """Change a project's conversation."""
    here = and_(conversations.c.project_id == project_id, conversations.c.id == conversation_id)
    connection.execute(update(conversations).where(here).values(**values))


def add_to_conversation(connection: Connection, conversation_id: str, sums: Mapping[str, int], now_us: int) -> None:
    """Count new messages: ``sums`` by column."""
    values: dict[str, Any] = {name: conversations.c[name] + amount for name, amount in sums.items()}
    values |= {"updated_us": now_us, "last_message_us": now_us}
    connection.execute(update(conversations).where(conversations.c.id == conversation_id).values(**values))


def delete_conversation(connection: Connection, project_id: str, conversation_id: str) -> bool:
    """Remove a project's conversation and its messages; says whether it was there."""
    if find_conversation(connection, project_id, conversation_id) is None:
        return False
    _delete_messages(connection, messages.c.conversation_id == conversation_id)
    connection.execute(delete(conversations).where(conversations.c.id == conversation_id))
    return True


# -- messages ----------------------------------------------------------------------------------------------------------


def add_messages(connection: Connection, rows: Sequence[Values]) -> None:
    """Insert messages in their order, and take up their texts."""
    texts: list[tuple[int, str]] = []
    for row in rows:
        number = connection.execute(insert(messages).values(**row).returning(messages.c.number)).scalar_one()
        if row["content"]:
            texts.append((number, row["content"]))
    search.add_texts(connection, texts)


def list_messages(connection: Connection, conversation_id: str, limit: int, offset: int) -> list[AnyRow]:
    """A conversation's messages, the oldest first."""
    query = select(*messages.c).where(messages.c.conversation_id == conversation_id)
    return list(connection.execute(query.order_by(messages.c.number).limit(limit).offset(offset)))


def list_messages_after(connection: Connection, conversation_id: str, number: int, limit: int) -> list[AnyRow]:
    """A conversation's messages behind one of them."""
    query = select(*messages.c).where(messages.c.conversation_id == conversation_id, messages.c.number > number)
    return list(connection.execute(query.order_by(messages.c.number).limit(limit)))


def search_messages(connection: Connection, project_id: str, words: str, limit: int, offset: int) -> list[AnyRow]:
    """A project's messages with all of these words, newest first; then the conversation's title as ``title``."""
    condition = search.matching(connection, words)
    if condition is None:
        return []
    query = (
        select(*messages.c, conversations.c.title.label("title"))
        .select_from(messages.join(conversations, conversations.c.id == messages.c.conversation_id))
        .where(conversations.c.project_id == project_id, condition)
        .order_by(messages.c.number.desc())
    )
    return list(connection.execute(query.limit(limit).offset(offset)))


def delete_old_messages(connection: Connection, project_id: str, before_us: int, limit: int) -> int:
    """Remove up to ``limit`` of a project's messages from before then; returns how many."""
    own = select(conversations.c.id).where(conversations.c.project_id == project_id)
    query = select(messages.c.number).where(messages.c.created_us < before_us, messages.c.conversation_id.in_(own))
    numbers = [row[0] for row in connection.execute(query.order_by(messages.c.number).limit(limit))]
    if numbers:
        _delete_messages(connection, messages.c.number.in_(numbers))
    return len(numbers)


def _has_old_texts(before_us: int) -> ColumnElement[bool]:
    """Of conversations: that nobody has touched them since then, and that texts are left of them, but no messages."""
    said = exists(select(literal(1)).where(messages.c.conversation_id == conversations.c.id))
    texts = or_(conversations.c.title.is_not(None), conversations.c.system_prompt.is_not(None))
    return and_(conversations.c.updated_us < before_us, texts, ~said)


def clear_old_texts(connection: Connection, project_id: str, before_us: int, limit: int) -> int:
    """Remove title and system prompt of up to ``limit`` of a project's empty conversations; returns of how many."""
    query = select(conversations.c.id).where(conversations.c.project_id == project_id, _has_old_texts(before_us))
    names = [row[0] for row in connection.execute(query.limit(limit))]
    if names:
        here = conversations.c.id.in_(names)
        connection.execute(update(conversations).where(here).values(title=None, system_prompt=None))
    return len(names)


def list_projects_with_old_texts(connection: Connection, before_us: int) -> list[str]:
    """The projects that have messages from before then, or texts of empty conversations."""
    old = conversations.c.id.in_(select(messages.c.conversation_id).where(messages.c.created_us < before_us))
    query = select(conversations.c.project_id).where(or_(old, _has_old_texts(before_us))).distinct()
    return [row[0] for row in connection.execute(query.order_by(conversations.c.project_id))]


def _delete_messages(connection: Connection, which: Any) -> None:
    query = select(messages.c.number, messages.c.content).where(which, messages.c.content.is_not(None))
    search.remove_texts(connection, [(row[0], row[1]) for row in connection.execute(query) if row[1]])
    connection.execute(delete(messages).where(which))


# -- templates ---------------------------------------------------------------------------------------------------------


def add_template(connection: Connection, values: Values) -> None:
    """Insert a template."""
    connection.execute(insert(conversation_templates).values(**values))


def find_template(connection: Connection, project_id: str, template_id: str) -> AnyRow | None:
    """A project's template, all columns."""
    query = select(*conversation_templates.c).where(
        conversation_templates.c.project_id == project_id, conversation_templates.c.id == template_id
    )
    return connection.execute(query).one_or_none()


def list_templates(
    connection: Connection, project_id: str, created_by: str | None, limit: int, offset: int
) -> list[AnyRow]:
    """A project's templates that are in use, newest first."""
    query = select(*conversation_templates.c).where(
        conversation_templates.c.project_id == project_id, conversation_templates.c.is_active
    )
    if created_by is not None:
        query = query.where(conversation_templates.c.created_by == created_by)
    query = query.order_by(conversation_templates.c.created_us.desc(), conversation_templates.c.id.desc())
    return list(connection.execute(query.limit(limit).offset(offset)))


def list_most_used_templates(connection: Connection, project_id: str, limit: int) -> list[AnyRow]:
    """A project's templates that are in use, the most used first."""
    query = select(*conversation_templates.c).where(
        conversation_templates.c.project_id == project_id, conversation_templates.c.is_active
    )
    query = query.order_by(conversation_templates.c.usage_count.desc(), conversation_templates.c.id.desc())
    return list(connection.execute(query.limit(limit)))


def count_templates(connection: Connection, project_id: str) -> int:
    """How many a project has."""
    here = conversation_templates.c.project_id == project_id
    return int(connection.execute(select(func.count()).select_from(conversation_templates).where(here)).scalar_one())


def update_template(connection: Connection, project_id: str, template_id: str, values: Values) -> None:
    """Change a project's template."""
    here = and_(conversation_templates.c.project_id == project_id, conversation_templates.c.id == template_id)
    connection.execute(update(conversation_templates).where(here).values(**values))


def use_template(connection: Connection, project_id: str, template_id: str, now_us: int) -> None:
    """Count one more use."""
    count = conversation_templates.c.usage_count + 1
    values = {"usage_count": count, "last_used_us": now_us}
    update_template(connection, project_id, template_id, values)


def delete_template(connection: Connection, project_id: str, template_id: str) -> bool:
    """Remove a project's template; says whether it was there."""
    here = and_(conversation_templates.c.project_id == project_id, conversation_templates.c.id == template_id)
    return connection.execute(delete(conversation_templates).where(here)).rowcount == 1


# -- client logs -------------------------------------------------------------------------------------------------------


def add_log(connection: Connection, values: Values) -> None:
    """Insert a client's log."""
    connection.execute(insert(client_logs).values(**values))


def count_logs(connection: Connection, project_id: str) -> int:
    """How many a project has."""
    here = client_logs.c.project_id == project_id
    return int(connection.execute(select(func.count()).select_from(client_logs).where(here)).scalar_one())


def list_logs(
    connection: Connection, project_id: str, filters: Mapping[str, Any], limit: int, offset: int
) -> list[AnyRow]:
    """A project's logs, newest first. ``filters``: ``since_us``, ``until_us`` (excluded), ``ids``,
    ``uncertified``, or columns.
    """
    query = select(*client_logs.c).where(client_logs.c.project_id == project_id)
    for name, value in filters.items():
        if value is None:
            continue
        if name == "since_us":
            query = query.where(client_logs.c.created_us >= value)
        elif name == "until_us":
            query = query.where(client_logs.c.created_us < value)
        elif name == "ids":
            query = query.where(client_logs.c.id.in_(value))
        elif name == "uncertified":
            query = query.where(~_IS_CERTIFIED)
        else:
            query = query.where(client_logs.c[name] == value)
    query = query.order_by(client_logs.c.created_us.desc(), client_logs.c.id.desc())
    return list(connection.execute(query.limit(limit).offset(offset)))


def sum_logs(connection: Connection, project_id: str, since_us: int, until_us: int) -> list[tuple[Any, ...]]:
    """Sums by UTC day (days since 1970), model, origin, alias: then requests, cost, input, output."""
    day = (client_logs.c.created_us // DAY_US).label("day")
    by = (day, client_logs.c.model, client_logs.c.origin, client_logs.c.alias)
    # In two parts, since what clients say may be so much that SQLite's sum of it would overflow.
    summed = (client_logs.c.cost_nano, client_logs.c.input_tokens, client_logs.c.output_tokens)
    query = (
        select(
            *by,
            func.count(),
            *(part for column in summed for part in (func.sum(column // _PART), func.sum(column % _PART))),
        )
        .where(
            client_logs.c.project_id == project_id,
            client_logs.c.created_us >= since_us,
            client_logs.c.created_us < until_us,
        )
        .group_by(*by)
    )
    rows = connection.execute(query)
    return [(*row[:5], *(int(row[at]) * _PART + int(row[at + 1]) for at in (5, 7, 9))) for row in rows]
