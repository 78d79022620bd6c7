"""The operations on usage reports, the audit log, the configuration and sign-ups, as JSON rows."""

from collections.abc import Sequence
from typing import get_args

import msgspec

from stentor.accounting.usage import UsageFilter
from stentor.audit.log import ChangeFilter
from stentor.control.money.reports import By, Reports
from stentor.control.people.management import Management
from stentor.control.people.signups import Approval, Registration, Signups
from stentor.control.reading import (
    Operation,
    Row,
    actor_of,
    limit_of,
    number_of,
    page_of,
    read_body,
    text_of,
)
from stentor.core.errors import Refused
from stentor.core.operator import Task
from stentor.people.signups import SignupAsk


def usage_filter(task: Task) -> UsageFilter:
    """Which events a request is about."""
    query = task.query
    return UsageFilter(
        user_id=text_of(query, "user"),
        project_id=text_of(query, "project"),
        key_id=text_of(query, "key"),
        model=text_of(query, "model"),
        status=text_of(query, "status"),
        since_us=number_of(query, "since_us"),
        until_us=number_of(query, "until_us"),
    )


class ReportOperations:
    """What was used, who changed what, how the server is set, and who wants in."""

    def __init__(
        self, reports: Reports, management: Management, signups: Signups, configuration: Sequence[Row]
    ) -> None:
        self._reports = reports
        self._management = management
        self._signups = signups
        self._configuration = list(configuration)

    def table(self) -> dict[str, Operation]:
        """The operations by name."""
        return {
            "report_usage": self.report_usage,
            "list_audit": self.list_audit,
            "list_configuration": self.list_configuration,
            "ask_signup": self.ask_signup,
            "register_cli": self.register_cli,
            "list_signups": self.list_signups,
            "approve_signup": self.approve_signup,
            "reject_signup": self.reject_signup,
        }

    async def report_usage(self, task: Task) -> Row:
        """Totals by day or subject."""
        by: By = text_of(task.query, "by") or "day"  # type: ignore[assignment]
        if by not in get_args(By):
            raise Refused("invalid_request", f"'by' is one of {', '.join(get_args(By))}.", param="by")
        rows, after = await self._reports.report(
            usage_filter(task), by, after=text_of(task.query, "after"), limit=limit_of(task.query)
        )
        return page_of([msgspec.to_builtins(row) for row in rows], after)

    async def list_audit(self, task: Task) -> Row:
        """Who changed what, newest first."""
        query, limit = task.query, limit_of(task.query)
        where = ChangeFilter(
            text_of(query, "actor"),
            text_of(query, "action"),
            text_of(query, "subject_kind"),
            text_of(query, "subject"),
            number_of(query, "since_us"),
            number_of(query, "until_us"),
        )
        changes = await self._management.list_changes(where, before=number_of(query, "after"), limit=limit)
        rows = []
        for change in changes:
            row: Row = msgspec.to_builtins(change)
            for name in ("before", "after"):
                row[name] = None if row[name] is None else msgspec.json.decode(row[name])
            rows.append(row)
        return page_of(rows, str(changes[-1].id) if len(changes) == limit else None)

    async def list_configuration(self, task: Task) -> Row:
        """All settings, secrets masked."""
        return page_of(self._configuration, None)

    async def ask_signup(self, task: Task) -> Row:
        """Take in a request for an account; the same answer for known emails."""
        await self._signups.ask(read_body(task.body, SignupAsk), task.address)
        return {"status": "pending", "detail": "Thank you. An administrator decides, and sends you a key."}

    async def register_cli(self, task: Task) -> Row:
        """Take in a request for an account from llmring's command line."""
        wanted = read_body(task.body, Registration)
        if not wanted.accept_terms:
            raise Refused("invalid_request", "The terms have to be accepted: 'accept_terms'.", param="accept_terms")
        return {"api_key": await self._signups.register(wanted, task.address), "api_key_active": False}

    async def list_signups(self, task: Task) -> Row:
        """Requests for accounts."""
        limit = limit_of(task.query)
        state = text_of(task.query, "state")
        found = await self._signups.list_signups(state=state, before=text_of(task.query, "after"), limit=limit)
        return page_of([msgspec.to_builtins(one) for one in found], found[-1].id if len(found) == limit else None)

    async def approve_signup(self, task: Task) -> Row:
        """Let somebody in: the user, and a key with its text this once."""
        approval = read_body(task.body, Approval)
        signup, user, made = await self._signups.approve(actor_of(task), task.params["id"], approval)
        return {
            "signup": msgspec.to_builtins(signup),
            "user": {**msgspec.to_builtins(user), "balance_nano": 0},
            "key": made.row(),
        }

    async def reject_signup(self, task: Task) -> Row:
        """Say no."""
        row: Row = msgspec.to_builtins(await self._signups.reject(actor_of(task), task.params["id"]))
        return row
