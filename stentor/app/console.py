"""What administrators and users are served with, put together."""

from typing import NamedTuple

from stentor.app.configuration import configuration_rows
from stentor.app.machine import ThisMachine
from stentor.control.alarms import Alarms
from stentor.control.alert_operations import AlertOperations
from stentor.control.books import LocalBooks
from stentor.control.jobs import Job, Jobs, Retention, StoreWatch, Uptime
from stentor.control.management import Management
from stentor.control.models.book import ModelBook
from stentor.control.models.slot_operations import Shelf, SlotOperations
from stentor.control.money.operations import MoneyOperations
from stentor.control.money.plans import Plans
from stentor.control.money.report_operations import ReportOperations
from stentor.control.money.reports import Reports
from stentor.control.operations import Operations
from stentor.control.people.account import Account
from stentor.control.people.account_operations import AccountOperations
from stentor.control.people.changes import Changes
from stentor.control.people.operations import PeopleOperations
from stentor.control.people.session_operations import SessionOperations
from stentor.control.people.sessions import Sessions
from stentor.control.people.signup_operations import SignupOperations
from stentor.control.people.signups import Signups
from stentor.control.postman import Postman, PostParts
from stentor.core.clock import Clock
from stentor.egress.outbound import Outbound
from stentor.runtime.folders import ModelFolders
from stentor.runtime.scheduler import LocalScheduler
from stentor.runtime.sources import Sources
from stentor.settings import Settings
from stentor.store.database import Database
from stentor.store.leader import Leader
from stentor.telemetry.logs import Log
from stentor.vault.keyring import Keyring


class ConsoleParts(NamedTuple):
    """What the console stands on."""

    settings: Settings
    database: Database
    leader: Leader
    books: LocalBooks
    keyring: Keyring
    clock: Clock
    management: Management
    scheduler: LocalScheduler
    model_book: ModelBook
    sources: Sources
    outbound: Outbound
    log: Log


class Console(NamedTuple):
    """Who is signed in, and what is done as time goes by."""

    sessions: Sessions
    jobs: Jobs


def add_console(operations: Operations, parts: ConsoleParts) -> Console:
    """Add the console's operations; returns what else there is of it."""
    settings, database, books, clock = parts.settings, parts.database, parts.books, parts.clock
    management = parts.management
    sessions = Sessions(database, books, management, parts.keyring, clock)
    changes = Changes(database, books, management, clock, sessions.forget)
    plans = Plans(database, books, management, clock)
    reports = Reports(database)
    signups = Signups(database, books, parts.keyring, clock, is_open=bool(settings.values["SIGNUP"]))
    account = Account(database, books, clock)
    folders = ModelFolders([*settings.model_dirs, settings.model_cache])
    shelf = Shelf(parts.model_book, parts.sources, folders)
    machine = ThisMachine(settings.data_dir)
    uptime = Uptime(database, parts.leader, parts.scheduler, clock)
    retention = Retention(parts.leader, books, clock, settings.values["RETENTION_DAYS"])
    post = PostParts(database, parts.leader, parts.keyring, parts.outbound, clock, parts.log)
    postman = Postman(post)
    for table in (
        uptime.table(),
        PeopleOperations(management, changes, plans).table(),
        MoneyOperations(plans).table(),
        SessionOperations(sessions).table(),
        ReportOperations(reports, management, configuration_rows(settings)).table(),
        SignupOperations(signups).table(),
        AccountOperations(account, management, changes, reports, parts.scheduler).table(),
        SlotOperations(parts.scheduler, management, shelf, machine).table(),
        AlertOperations(post, postman).table(),
    ):
        operations.add(table)
    thresholds = settings.values["ALERT_THRESHOLDS"]
    alarms = Alarms(database, parts.leader, clock, thresholds, parts.scheduler.list_crash_loops)
    jobs = (
        Job("store_watch", StoreWatch(database, parts.log).look, 1.0),
        Job("uptime_check", uptime.check, 60.0),
        Job("usage_fold", retention.fold, 3600.0),
        Job("limit_check", alarms.check_limits, 5.0),
        Job("engine_check", alarms.check_engines, 5.0),
        Job("alert_delivery", postman.deliver_due, 2.0),
        Job("alert_fold", alarms.forget, 3600.0),
    )
    return Console(sessions, Jobs(parts.leader, parts.log, jobs))
