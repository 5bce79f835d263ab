"""docker-bake.hcl: its variables and targets."""

import hcl2

from tests.support.programs import ROOT

BAKE = hcl2.loads(
    (ROOT / "docker-bake.hcl").read_text(),
    serialization_options=hcl2.SerializationOptions(strip_string_quotes=True),
)
TARGETS = {name: body for block in BAKE["target"] for name, body in block.items()}
