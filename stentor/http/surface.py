"""The surface: every path that Stentor answers, who may call it, and what goes in and out.

From this one table come the routes, the access check, the OpenAPI document and the reference page. A path that isn't
here is refused; a route without an access rule can't be written. Each area lists its own rows.
"""

from stentor.http import public_routes
from stentor.http.account import routes as account_routes
from stentor.http.admin import alerts, credentials, model_routes, people, prices, reports, sessions, slots
from stentor.http.admin import routes as admin_routes
from stentor.http.dialects import routes as dialect_routes
from stentor.http.openai import routes as openai_routes
from stentor.http.ring import routes as ring_routes
from stentor.http.route import Route

SURFACE: tuple[Route, ...] = (
    *openai_routes.ROUTES,
    *dialect_routes.ROUTES,
    *public_routes.ROUTES,
    *admin_routes.ROUTES,
    *people.ROUTES,
    *prices.ROUTES,
    *model_routes.ROUTES,
    *credentials.ROUTES,
    *alerts.ROUTES,
    *ring_routes.ROUTES,
    *sessions.ROUTES,
    *slots.ROUTES,
    *reports.ROUTES,
    *account_routes.ROUTES,
)
