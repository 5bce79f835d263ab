"""Names that the two circuit-tracers don't share are asked for in one place alone."""

from tests.support.programs import output_of

IMPORT_WITHOUT_THE_FORK_S_NAMES = """
from circuit_tracer.utils import tl_nnsight_mapping
from circuit_tracer.transcoder import single_layer_transcoder

for module, name in (
    (tl_nnsight_mapping, "get_supported_architectures"),
    (single_layer_transcoder, "load_relu_transcoder"),
):
    vars(module).pop(name, None)
import actions.answer, serving.self_test
import loading.build, loading.nnsight_engine, loading.transformerlens_engine
"""


def test_the_worker_imports_no_name_that_upstream_lacks() -> None:
    output_of(IMPORT_WITHOUT_THE_FORK_S_NAMES)
