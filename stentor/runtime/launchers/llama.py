"""The embedded engine: ``stentor.engines.llama`` in a child, configured by one line on its stdin."""

import sys
from collections.abc import Mapping

import msgspec

from stentor.runtime.launchers.base import Launch, LaunchOrder, LaunchRefused, choose_environment, new_token


class LlamaLauncher:
    """Launcher of ``engine = "llama"``."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    async def prepare(self, order: LaunchOrder) -> Launch:
        """The child for ``order``. Raises LaunchRefused when there are no weights."""
        spec = order.spec
        if order.weights is None:
            raise LaunchRefused(f"Model '{spec.id}' has no model file.")
        token = new_token()
        config = {
            "model_path": str(order.weights),
            "alias": spec.upstream_model or spec.id,
            "port": order.port,
            "token": token,
            "type": spec.kind,
            "ctx": order.ctx,
            "parallel": order.places,
            "threads": order.threads,
            "batch": spec.batch,
            "ubatch": spec.ubatch,
            "gpu_layers": spec.gpu_layers,
            "pooling": order.pooling,
            "cache_type_k": spec.cache_type_k,
            "cache_type_v": spec.cache_type_v,
            "cache_ram_mib": spec.cache_ram_mib,
            "flash_attention": spec.flash_attention,
            "load_mode": spec.load_mode,
            "mmproj": str(spec.mmproj or ""),
            "projector_on_cpu": order.projector_on_cpu,
            "chat_template": spec.chat_template,
        }
        return Launch(
            argv=(sys.executable, "-P", "-m", "stentor.engines.llama"),
            environment=choose_environment(self._environment, spec.env),
            stdin=msgspec.json.encode(config) + b"\n",
            token=token,
            places=order.places,
            context_size=order.ctx,
        )
