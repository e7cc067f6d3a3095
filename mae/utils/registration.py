"""
Register the model with the Auto classes of transformers when these are imported.

The model imports torch and most of transformers, which takes seconds. `--help` and a mistake on the command line need
neither, so `import mae` does not import the model at once.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from mae.utils.files import CODE_FILES


_AUTO_CLASSES = "transformers.models.auto.configuration_auto"  # the other modules of Auto classes import it
_MODEL = "modeling_mae"
_MODULES = tuple(name.removesuffix(".py") for name in CODE_FILES)


class _Registration:
    """
    A finder of `sys.meta_path` that watches imports of the modules of transformers and of the model.

    The Auto classes are also imported in the middle of modules that the model needs. So the model is imported after
    the outermost of these imports.
    """

    depth = 0

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith("transformers.") and name not in _MODULES:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self]
        spec = next((spec for finder in finders if (spec := finder.find_spec(name, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0 and self in sys.meta_path and _AUTO_CLASSES in sys.modules:
                sys.meta_path.remove(self)
                importlib.import_module(_MODEL)

        spec.loader.exec_module = execute_and_register
        return spec


def register_with_auto_classes() -> None:
    """Register the model: now if the Auto classes are imported already, otherwise after their import."""
    if _AUTO_CLASSES in sys.modules:
        importlib.import_module(_MODEL)
    else:
        sys.meta_path.insert(0, _Registration())
