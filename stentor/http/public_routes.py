"""What anyone may ask, and the metrics."""

from stentor.http import wire
from stentor.http.route import Route

ROUTES: tuple[Route, ...] = (
    Route(
        "GET", "/health", "health", "public", "Whether the server can serve.", "", None, wire.Health, "detail",
        also=("text/plain",),
    ),
    Route(
        "GET", "/", "root", "public", "What this server is.", "", None, wire.Root, "detail",
        also=("text/plain", "text/html"),
    ),
    Route(
        "GET", "/metrics", "metrics", "metrics", "Prometheus metrics.", "admin",
        media_type="text/plain", envelope="detail",
    ),
    Route("GET", "/openapi.json", "openapi", "public", "The OpenAPI document of this surface.", envelope="detail"),
    Route("GET", "/docs", "docs", "public", "The reference as a page.", media_type="text/html", envelope="detail"),
    Route("GET", "/swagger-ui/", "docs", "public", "The same page.", media_type="text/html", envelope="detail"),
)  # fmt: skip
