"""MLflow's store as records need it: writes that may be repeated, requests that fail quickly."""

# MLflow's own functions are not all annotated.
# mypy: allow-untyped-calls

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelParameter,
    LoggedModelStatus,
    LoggedModelTag,
    Metric,
    Run,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service.utils import _get_store
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_MODEL_IS_EXTERNAL
from mlflow.utils.proto_json_utils import parse_dict
from mlflow.utils.rest_utils import http_request, verify_rest_response
from requests import RequestException

from othink_pipeline.tracking.journal import Context, DatasetRef

logger = logging.getLogger(__name__)

_MAX_METRICS_PER_REQUEST = 1000
# The SQL store looks for repeats of a model's metrics in batches of 100 and takes those outside
# of the batch for new (`_log_model_metrics`): a larger request cannot be repeated.
_MAX_MODEL_METRICS_PER_REQUEST = 100
_MAX_DIGEST_CHARACTERS = 36
_MAX_TABLES = 100  # that MLflow shows as such, for the tag that lists them holds 8,000 characters
_CONNECT_S, _READ_S = 5, 60
_TRY_AGAIN = (408, 425, 429)


class _QuickStore(RestStore):
    """MLflow's REST store, but a request is sent once and fails within a minute.

    MLflow's own repeats a request for some minutes; only environment variables, which hold for
    the whole process, change that.
    """

    def _call_endpoint(
        self,
        api: Any,
        json_body: str | None = None,
        endpoint: str | None = None,
        retry_timeout_seconds: int | None = None,
        response_proto: Any = None,
    ) -> Any:
        methods = self._V3_METHOD_TO_INFO if api in self._V3_APIS else self._METHOD_TO_INFO
        address, method = methods[api]
        body = None if json_body is None else json.loads(json_body)
        response = http_request(
            self.get_host_creds(),
            endpoint or address,
            method,
            max_retries=0,
            timeout=(_CONNECT_S, _READ_S),
            raise_on_status=False,
            **{"params" if method == "GET" else "json": body},
        )
        answer = response_proto or api.Response()
        parse_dict(verify_rest_response(response, endpoint or address).json(), answer)
        return answer


def patient_store() -> AbstractStore:
    """The current store; a request to a server that is away is repeated for some minutes."""
    store: AbstractStore = _get_store()
    return store


def quick_store() -> AbstractStore:
    """The current store; a request to a server that is away fails at once."""
    store = patient_store()
    return _QuickStore(store.get_host_creds) if type(store) is RestStore else store


def is_refusal(error: Exception) -> bool:
    """True when repeating will not help: the store understood, and said no; or a fault of ours."""
    if isinstance(error, MlflowException):
        status: int = error.get_http_status_code()
        return 400 <= status < 500 and status not in _TRY_AGAIN
    from sqlalchemy.exc import DBAPIError  # half a second, and `kedro registry list` comes by here

    return not isinstance(error, OSError | DBAPIError)


def refuses_artifacts(error: Exception) -> bool:
    """As ``is_refusal``, of a store of artifacts: behind a server's proxy, or a folder."""
    if isinstance(error, RequestException):
        status = 500 if error.response is None else error.response.status_code
        return 400 <= status < 500 and status not in _TRY_AGAIN
    return isinstance(error, OSError) or is_refusal(error)


def is_unknown(error: Exception) -> bool:
    """True when the store says that it does not have what was asked for."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def has_model(store: AbstractStore, model_id: str) -> bool:
    """Whether the store has a logged model."""
    try:
        store.get_logged_model(model_id)
    except MlflowException as error:
        if not is_unknown(error):
            raise
        return False
    return True


def metric_entities(
    run_id: str,
    metrics: Mapping[str, float],
    step: int,
    time_ms: int,
    model_id: str | None = None,
    dataset: DatasetRef | None = None,
) -> list[Metric]:
    """Values of a step as MLflow's; NaN stays off the logged model, where it would become 0."""
    return [
        Metric(
            key=name,
            value=float(value),
            timestamp=time_ms,
            step=step,
            model_id=None if isnan(value) else model_id,
            dataset_name=dataset.name if dataset else None,
            dataset_digest=dataset.digest[:_MAX_DIGEST_CHARACTERS] if dataset else None,
            run_id=run_id,
        )
        for name, value in metrics.items()
    ]


def write_metrics(store: AbstractStore, run_id: str, entities: Sequence[Metric]) -> None:
    """Log values; exact repeats (name, step, time and value) are ignored by the SQL store."""
    scores = any(entity.model_id for entity in entities)
    size = _MAX_MODEL_METRICS_PER_REQUEST if scores else _MAX_METRICS_PER_REQUEST
    for start in range(0, len(entities), size):
        store.log_batch(run_id, list(entities[start : start + size]), [], [])


def write_tag(store: AbstractStore, run_id: str, key: str, value: str) -> None:
    """Set a tag of a run."""
    store.log_batch(run_id, [], [], [RunTag(key, value)])


def write_running(store: AbstractStore, run_id: str) -> None:
    """Make a run that has ended run again; MLflow cannot clear its end, but takes 0 for none."""
    store.update_run_info(run_id, RunStatus.RUNNING, 0, None)


def write_dataset(store: AbstractStore, run_id: str, dataset: DatasetRef, context: Context) -> None:
    """Log which examples a run used, and for what; repeats are ignored by the SQL store."""
    entity = Dataset(
        name=dataset.name,
        digest=dataset.digest[:_MAX_DIGEST_CHARACTERS],
        source_type="local",
        source=json.dumps({"uri": dataset.source}),
        profile=json.dumps({"num_rows": dataset.examples, "digest": dataset.digest}),
    )
    inputs = [DatasetInput(entity, tags=[InputTag("mlflow.data.context", context)])]
    try:
        store.log_inputs(run_id, inputs)
    except MlflowException as error:
        if "IntegrityError" not in str(error):
            raise
        store.log_inputs(run_id, inputs)  # another process has just made the dataset: it is there


def write_table(
    store: AbstractStore,
    run_id: str,
    file: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str | float | None]],
) -> None:
    """Log a table as an artifact, in the place of one of that name.

    MLflow's own ``log_table`` would add the rows to those that are there. Where artifacts are
    refused, curves are worth more than tables: it is left out with a warning.
    """
    content = json.dumps({"columns": columns, "data": rows})
    try:
        MlflowClient().log_text(run_id, content, file)
    except (MlflowException, OSError) as error:
        if not refuses_artifacts(error):
            raise
        logger.warning("run %s: %s is left out, artifacts are refused (%s)", run_id, file, error)
        return
    tables = json.loads(store.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    entry = {"path": file, "type": "table"}
    if entry not in tables and len(tables) < _MAX_TABLES:
        write_tag(store, run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*tables, entry]))


def write_checkpoint(
    store: AbstractStore, run_id: str, name: str, step: int, tags: Mapping[str, str]
) -> str:
    """Register a checkpoint as a logged model, or find it and set its tags; returns its model id.

    Every step is looked up before it is made: the last time may have ended between any two.
    """
    run = store.get_run(run_id)
    found = store.search_logged_models(
        [run.info.experiment_id],
        filter_string=f"source_run_id = '{run_id}' AND tags.step = '{step}'",
    )
    model_tags = [LoggedModelTag(key, value) for key, value in tags.items()]
    if found:
        model_id = found[0].model_id
        store.set_logged_model_tags(model_id, model_tags)
    else:
        known = [
            LoggedModelTag("step", str(step)),
            LoggedModelTag(MLFLOW_MODEL_IS_EXTERNAL, "true"),
        ]
        model_id = store.create_logged_model(
            run.info.experiment_id,
            name=f"{name.replace('/', '-').replace('.', '-')}-step{step}",
            source_run_id=run_id,
            tags=[*known, *model_tags],
            params=_describe_model(run, step),
            model_type="checkpoint",
        ).model_id
    store.finalize_logged_model(model_id, LoggedModelStatus.READY)
    outputs = run.outputs.model_outputs if run.outputs else []
    if model_id not in [output.model_id for output in outputs]:
        store.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    return str(model_id)


def _describe_model(run: Run, step: int) -> list[LoggedModelParameter]:
    """What tells checkpoints apart in MLflow's charts: scores by step, a line a cell."""
    about = {"name": run.info.run_name, "step": str(step)}
    about |= {tag: run.data.tags[tag] for tag in ("task", "method", "seed") if tag in run.data.tags}
    return [LoggedModelParameter(key, value) for key, value in about.items()]
