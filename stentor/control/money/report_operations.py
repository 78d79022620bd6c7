"""The operations on usage reports, the audit log and the configuration, as JSON rows."""

from collections.abc import Sequence
from typing import get_args

import msgspec

from stentor.audit.log import ChangeFilter
from stentor.control.management import Management
from stentor.control.money.reports import By, Reports
from stentor.control.reading import Operation, Row, limit_of, number_of, page_of, text_of, usage_filter
from stentor.core.errors import Refused
from stentor.core.operator import Task


class ReportOperations:
    """What was used, who changed what, how the server is set."""

    def __init__(self, reports: Reports, management: Management, configuration: Sequence[Row]) -> None:
        self._reports = reports
        self._management = management
        self._configuration = list(configuration)

    def table(self) -> dict[str, Operation]:
        """The operations by name."""
        return {
            "report_usage": self.report_usage,
            "list_audit": self.list_audit,
            "list_configuration": self.list_configuration,
        }

    async def report_usage(self, task: Task) -> Row:
        """Totals by day or subject."""
        by: By = text_of(task.query, "by") or "day"  # type: ignore[assignment]
        if by not in get_args(By):
            raise Refused("invalid_request", f"'by' is one of {', '.join(get_args(By))}.", param="by")
        rows, after = await self._reports.report(
            usage_filter(task.query), by, after=text_of(task.query, "after"), limit=limit_of(task.query)
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
