"""Projects and their budgets."""

from typing import Any, Literal

import msgspec
from sqlalchemy import Connection

from stentor.core.errors import Refused
from stentor.core.ids import ProjectId, UserId, new_uuid7
from stentor.people import table
from stentor.people.values import Project, User

Window = Literal["none", "day", "month"]


def list_projects(connection: Connection, owner_id: UserId | None = None) -> list[Project]:
    """Projects, oldest first; of one owner if given."""
    return [Project(*row) for row in table.list_projects(connection, owner_id)]


def get_project(connection: Connection, project_id: ProjectId) -> Project:
    """One project. Raises Refused for an unknown one."""
    row = table.find_project(connection, project_id)
    if row is None:
        raise Refused(
            "not_found",
            f"There is no project '{project_id}'; `stentor projects list` shows their ids.",
            param="project",
        )
    return Project(*row)


def get_personal_project(connection: Connection, user: User) -> Project:
    """The project that was made with the user."""
    for project in list_projects(connection, user.id):
        if project.personal:
            return project
    raise Refused("not_found", f"The user '{user.name}' has no personal project.", param="project")


def get_project_for(connection: Connection, user: User, project: str) -> Project:
    """The project that a key of ``user`` belongs to, their own where none is named. Raises Refused."""
    if not project:
        return get_personal_project(connection, user)
    found = get_project(connection, ProjectId(project))
    if found.personal and found.owner_id != user.id:
        raise Refused("invalid_request", "A personal project only takes keys of its owner.", param="project")
    return found


def add_project(connection: Connection, name: str, owner: User, now_us: int) -> Project:
    """Make a project for a team. Raises Refused for an empty or overlong name."""
    if not 1 <= len(name.strip()) <= 128:
        raise Refused("invalid_request", "A project's name has 1 to 128 characters.", param="name")
    project = Project(ProjectId(new_uuid7()), name.strip(), owner.id, False, True, now_us)
    table.add_project(connection, msgspec.structs.asdict(project))
    return project


def page_projects(
    connection: Connection, *, owner_id: UserId | None = None, after_id: str = "", limit: int = 100
) -> list[Project]:
    """Projects, oldest first; page on with the last one's id."""
    return [Project(*row) for row in table.page_projects(connection, owner_id, after_id, limit)]


def change_project(connection: Connection, project_id: ProjectId, changes: dict[str, Any]) -> tuple[Project, Project]:
    """Change ``name`` or ``active``; returns the project as it was and as it is. Raises Refused."""
    old = get_project(connection, project_id)
    if "name" in changes and not 1 <= len(changes["name"].strip()) <= 128:
        raise Refused("invalid_request", "A project's name has 1 to 128 characters.", param="name")
    if changes.get("active") is False and old.personal:
        raise Refused("conflict", "A personal project lives as long as its user; shut the user out instead.")
    if changes:
        table.update_project(connection, project_id, changes)
    return old, get_project(connection, project_id)


def list_budgets(connection: Connection, project_id: ProjectId) -> dict[str, int]:
    """A project's limits in nano-USD by window (``none`` is for all time)."""
    return {row[0]: row[1] for row in table.list_budgets(connection, project_id)}


def set_budget(
    connection: Connection, project_id: ProjectId, window: Window, limit_nano: int | None, now_us: int
) -> None:
    """Set, change or (None) remove a budget. Raises Refused for a negative one."""
    if limit_nano is not None and not 0 <= limit_nano < 2**62:
        raise Refused("invalid_request", "A budget is 0 or more nano-USD, below 2^62.", param="limit")
    table.set_budget(connection, project_id, window, limit_nano, now_us)
