"""The routes of models and downloads."""

from stentor.http.admin import models
from stentor.http.route import Route, admin

ROUTES: tuple[Route, ...] = (
    admin("POST", "/models", "register_model", "Serve one more model.", models.RegisterModelRequest,
          models.ModelDefinition),
    admin("GET", "/models/local", "list_local_models", "Model files in the model folders.", None, models.LocalPage),
    admin("GET", "/models/search", "search_models", "Find GGUF models on the hub.", None, models.FoundPage)._replace(
        query=("q", "after", "limit")
    ),
    admin("POST", "/models/download", "download_model", "Fetch a model in the background.", models.DownloadRequest,
          models.Download),
    admin("GET", "/models/{id}", "get_model_definition", "How a model is defined.", None, models.ModelDefinition),
    admin("PATCH", "/models/{id}", "change_model", "Change a registered model; what runs of it drains and comes back.",
          models.ModelFields, models.ModelDefinition),
    admin("DELETE", "/models/{id}", "delete_model", "Take a registered model that doesn't run out of the catalogue.",
          None, models.RemovedModel)._replace(query=("files",)),
    admin("POST", "/models/{id}/update", "update_model",
          "Fetch the newest revision of a model from the hub beside the one there is, then swap.", None,
          models.Download),
    admin("GET", "/downloads", "list_downloads", "Downloads, newest first.", None, models.DownloadPage),
    Route(
        "GET", "/admin/api/downloads/{id}", "get_download", "admin", "One download, or its progress as events.",
        "admin", None, models.Download, "detail", also=("text/event-stream",),
    ),
    admin("GET", "/downloads/{id}/state", "get_download_state", "One download, once it isn't the version 'after'.",
          None, models.Download)._replace(query=("after", "wait_s")),
    admin("POST", "/downloads/{id}/cancel", "cancel_download", "End a download; what came is kept.", None,
          models.Download),
    admin("POST", "/downloads/{id}/retry", "retry_download", "Go on with a download that ended without success.", None,
          models.Download),
)  # fmt: skip
