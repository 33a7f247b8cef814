"""The configuration of the environment that Kedro runs in, and the grid that it describes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

from kedro.config import MissingConfigException, OmegaConfigLoader
from kedro.framework.project import pipelines, settings
from kedro.utils import find_kedro_project
from omegaconf import OmegaConf
from yaml import YAMLError

from othink_pipeline.cells.grid import Grid
from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.core.blocks import ConfigurationError

BUILDS_ON = "builds_on"
"""Key of an environment's globals.yml: the environments that lie between base and itself."""


class GridConfigLoader(OmegaConfigLoader):
    """Remembers the loader of the current session, so that the registry can build its grid.

    Kedro builds pipelines without handing over the configuration; and it keeps those of the first
    session for the next, unless they are configured anew.
    """

    current: ClassVar[GridConfigLoader | None] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        GridConfigLoader.current = self
        pipelines.configure("othink_pipeline.pipeline_registry")

    def _read_raw_config(self, key: str) -> Any:
        """As Kedro reads it; below an environment lie those that its globals.yml `builds_on`.

        A later one replaces whole top-level blocks of the earlier ones, as it does those of base.
        """
        base, own, base_path, env_path, files = super()._read_raw_config(key)
        layers = [own]
        for environment in reversed(self._environments_below(self.env or self.default_run_env)):
            place = self._get_conf_env_path(environment)
            below = self._read_dir_configs(place, self.config_patterns[key], key, files)
            for name in {name for layer in layers for config in layer.values() for name in config}:
                for config in below.values():
                    config.pop(name, None)
            layers.append(below)
        together = {path: config for layer in layers for path, config in layer.items()}
        return base, together, base_path, env_path, files

    def _read_dir_configs(self, conf_path: str, *args: Any, **kwargs: Any) -> dict[Path, Any]:
        """As Kedro reads them; of a file that is no YAML its name is told, too."""
        try:
            return cast(dict[Path, Any], super()._read_dir_configs(conf_path, *args, **kwargs))
        except (YAMLError, UnicodeDecodeError) as error:
            files = sorted(Path(conf_path).rglob("*.y*ml"))
            culprit = next((file for file in files if not _is_yaml(file)), conf_path)
            raise ConfigurationError(
                f"{culprit}: no YAML in UTF-8 with each key once: {error}"
            ) from error

    def _environments_below(self, environment: str, above: tuple[str, ...] = ()) -> list[str]:
        """The environments that one builds on, the lowest first, each once: in its lowest place."""
        place = self._get_conf_env_path(environment)
        read = self._read_dir_configs(place, self.config_patterns["globals"], "globals", set())
        named = [name for config in read.values() for name in config.get(BUILDS_ON) or ()]
        found = []
        for name in named:
            folder = Path(self._get_conf_env_path(name))
            if name in (environment, *above) or folder.name != name or not folder.is_dir():
                raise ConfigurationError(
                    f"conf/{environment}/globals.yml: {BUILDS_ON} holds {name!r}, which is "
                    "no other environment. It lists folders of conf/, the lowest first."
                )
            found += [*self._environments_below(name, (*above, environment)), name]
        return list(dict.fromkeys(found))

    def __getitem__(self, key: str) -> dict[str, Any]:
        """A configuration; ``--params`` changes single keys of the parameters, never whole blocks.

        Raises:
            ConfigurationError: what stands in its files does not load.

        Kedro lays ``--params`` over each environment's files and *then* replaces whole blocks of
        the base environment: ``--env=x --params=rl.temperature=2`` would lose the rest of ``rl``.
        """
        if key != "parameters" or not self.runtime_params:
            return dict(self._load(key))
        runtime_params, self.runtime_params = self.runtime_params, {}
        try:
            files = self._load(key)
        finally:
            self.runtime_params = runtime_params
        merged = OmegaConf.to_container(OmegaConf.merge(files, runtime_params))
        return cast(dict[str, Any], merged)

    def _load(self, key: str) -> dict[str, Any]:
        try:
            return super().__getitem__(key)
        except (ConfigurationError, MissingConfigException):
            raise
        except Exception as error:  # whatever the readers of Kedro and OmegaConf raise
            if key not in self.config_patterns:
                raise
            raise ConfigurationError(
                f"conf/{self.env or self.default_run_env} or what it lies on: the {key} do not "
                f"load: {error}"
            ) from error


def _is_yaml(file: Path) -> bool:
    try:
        OmegaConf.load(file)
    except (YAMLError, UnicodeDecodeError):
        return False
    return True


def read_grid() -> Grid:
    """The grid of the current session, or of ``KEDRO_ENV`` where there is none.

    Raises:
        ConfigurationError: the parameters do not load or are not allowed.
    """
    loader = GridConfigLoader.current
    if loader is None:  # `kedro registry list` opens no session
        project = find_kedro_project(Path.cwd()) or Path.cwd()
        loader = GridConfigLoader(
            conf_source=project / settings.CONF_SOURCE,
            env=os.environ.get("KEDRO_ENV"),
            **settings.CONFIG_LOADER_ARGS,
        )
    try:
        raw: Mapping[str, Any] = loader["parameters"]
        places = loader["globals"]
    except MissingConfigException as error:
        raise ConfigurationError(f"the parameters do not load: {error}") from error
    parameters = Parameters.read(raw)
    experiment = parameters.experiment
    algorithms = {
        method: str(parameters.methods[method]["algorithm"]) for method in experiment.methods
    }
    base_models = parameters.base_model.count
    trains = places.get("trained", places["data"]) == places["data"]
    drawn = not set(experiment.tasks) & parameters.data_preparation.sources.keys()
    return Grid(experiment.tasks, algorithms, experiment.seeds, base_models, trains, drawn)
