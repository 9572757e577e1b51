"""Keeps a start from importing PyTorch's compiler and what spreads tensors over devices, and from reading sources.

Private names of these libraries stand here and nowhere else, with what eager inference asks of them:

* torch._dynamo, for marks on functions, which it alone reads, and whether something is compiled. Until load() is done
  a module with these answers has its place. Whoever asks for more gets the real one.
* torch.distributed.tensor: transformers takes it unless it believes that torch was built without, and asks that once.
* transformers reads 1,638 of its own sources, 36 MB, twice, to know which names are where. That is kept at build.
"""

import collections
import functools
import importlib.machinery
import importlib.metadata
import logging
import marshal
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline_settings import one_line

logger = logging.getLogger("uvicorn")

COMPILER, INDEXING = "torch._dynamo", "torch._dynamo._trace_wrapped_higher_order_op"
AGAIN = ("accelerate", "diffusers", "transformers")
SCANNER, NAMES = "transformers.utils.import_utils", Path(sys.prefix, "transformers_names")


def import_diffusers(class_name: str, plainly: bool = False) -> None:
    """Import diffusers, and the class if it has it. Unless plainly (with the compiler), finish() must follow load()."""
    if not {COMPILER, *AGAIN} & sys.modules.keys():
        find, finder = importlib.metadata.packages_distributions, _Finder()
        try:
            importlib.metadata.packages_distributions = lambda: _Distributions(find)
            sys.meta_path.insert(0, finder)
            if not plainly:
                _stand_in()
                _on_one_device()
            return _import(class_name)
        except Exception as error:
            logger.warning("The lean imports failed, so everything is imported: %s.", one_line(error))
            finish()
            for name in [name for name in sys.modules if name.partition(".")[0] in AGAIN]:
                del sys.modules[name]
        finally:
            importlib.metadata.packages_distributions = find
            sys.meta_path.remove(finder)
            finder.forget()
    _import(class_name)


def _import(class_name: str) -> None:
    import diffusers

    getattr(diffusers, class_name, None)


def finish() -> None:
    """Let later imports find the real compiler. torch, asked for it, still has what says that nothing is compiled."""
    for name in (COMPILER, INDEXING):
        if isinstance(module := sys.modules.get(name), _StandIn):
            del sys.modules[name]
            module.given = {key: value for key, value in module.given.items() if value is not _unmarked}


class _StandIn(types.ModuleType):
    """Gives what it is given. Asked for more, it makes way for the real module, and asks that."""

    def __init__(self, name: str, path: list[str], given: dict[str, Any]) -> None:
        super().__init__(name)
        self.__path__, self.given = path, given
        sys.modules[name] = self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self.given and sys.modules.get(self.__name__, self) is self:
            return self.given[name]
        finish()
        return getattr(importlib.import_module(self.__name__), name)


def _stand_in() -> None:
    import torch

    # OptimizedModule: an instance of no class, as the real one is not there.
    given = {"eval_frame": types.SimpleNamespace(OptimizedModule=()), "is_compiling": lambda: False}
    given |= dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), _unmarked)
    torch._dynamo = _StandIn(COMPILER, [f"{path}/_dynamo" for path in torch.__path__], given)
    _StandIn(INDEXING, [], {"TransformGetItemToIndex": _index})


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    return (lambda function: function) if function is None else function


def _index() -> Any:
    finish()
    return importlib.import_module(INDEXING).TransformGetItemToIndex()


def _on_one_device() -> None:
    import torch.distributed
    import transformers.utils

    known = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        transformers.utils.is_torch_distributed_available()
    finally:
        torch.distributed.is_available = known
    if transformers.utils.is_torch_distributed_available():
        raise ImportError("transformers asks more than once whether torch is distributed")


class _Distributions(collections.UserDict[str, list[str]]):
    """Which distributions have which package. To know it takes 0.1 s, and diffusers asks only of what is not there."""

    def __init__(self, find: Any) -> None:
        self._find = find

    @functools.cached_property
    def data(self) -> Any:  # type: ignore[override]
        return self._find()


def keep_names() -> None:
    """Write which names transformers finds in its sources. The image build runs this, and `make` in its environment."""
    import transformers
    from transformers.utils import import_utils

    import_utils.create_import_structure_from_path.cache_clear()
    found = import_utils.create_import_structure_from_path(Path(transformers.__file__).with_name("models"))
    new = NAMES.with_name(f"{NAMES.name}.{os.getpid()}")
    new.write_bytes(marshal.dumps((transformers.__version__, found)))
    new.replace(NAMES)  # whole, as a server may be starting


class _Finder:
    """Finds the scanner, and lets it give the names that were kept until forget()."""

    def __init__(self) -> None:
        self.forget: Callable[[], None] = lambda: None

    def find_spec(self, name: str, path: Any = None, _: Any = None) -> Any:
        if name != SCANNER or not NAMES.is_file():
            return None
        spec: Any = importlib.machinery.PathFinder.find_spec(name, path)
        spec.loader.exec_module = functools.partial(self._execute, spec.loader)
        return spec

    def _execute(self, loader: Any, module: Any) -> None:
        del loader.exec_module  # which is the loader's own again
        loader.exec_module(module)
        scan, models = module.create_import_structure_from_path, Path(module.__file__).parents[1] / "models"
        places, (version, names) = (models, models / "__init__.py"), marshal.loads(NAMES.read_bytes())

        def known(place: Any) -> Any:
            return names if Path(place) in places else scan(place)

        # Another version may have been installed since.
        if version == sys.modules["transformers"].__version__:
            module.create_import_structure_from_path = known
            self.forget = lambda: setattr(module, "create_import_structure_from_path", scan)
