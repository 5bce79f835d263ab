"""What callers send and get: every request and response, and how raw input becomes a request.

The checks here need no model. The actions check what depends on the loaded model: layers,
vocabulary, tokens. A field that is null counts as absent. The code is in `contract/`, a file for
each action.
"""

from contract.contrast_request import (
    ContrastRequest,
)
from contract.fields import (
    MAX_FEATURES,
    MAX_FIELDS,
    MAX_ITEMS,
    ChatMessage,
    FeatureKind,
    Many,
    NonEmpty,
    PromptRequest,
    Text,
    Threshold,
    Whole,
)
from contract.graph_request import (
    MAX_QK_TOPK,
    MAX_URL_CHARACTERS,
    GenerateGraphRequest,
)
from contract.intervene_request import (
    MAX_EXPERIMENTS,
    MAX_GROUPS,
    MAX_REPORTED,
    GroupChange,
    GroupFeature,
    InterveneRequest,
)
from contract.parsing import (
    REQUESTS,
    Request,
    canonical_action,
    closest_action,
    parse_request,
)
from contract.responses import (
    ContrastedFeature,
    ContrastResponse,
    FileReceipt,
    ForwardPassResponse,
    InterveneResponse,
    InterventionOutcome,
    LogitsOfToken,
    LogitsPair,
    ParseChatPromptResponse,
    SalientLogit,
    SteerPart,
    SteerResponse,
    TargetLogit,
    Token,
    TopLogit,
    UploadReceipt,
)
from contract.steer_request import (
    ManyFeatures,
    SteerFeature,
    SteerRequest,
)
from contract.targets import (
    MAX_TARGETS,
    MAX_TOKENS_PER_SIDE,
    AttributionTarget,
    ManyTargets,
    RequestedDifference,
    RequestedFeature,
    Side,
)
from contract.text_requests import (
    ForwardPassRequest,
    ParseChatPromptRequest,
)

__all__ = [
    "MAX_EXPERIMENTS",
    "MAX_FEATURES",
    "MAX_FIELDS",
    "MAX_GROUPS",
    "MAX_ITEMS",
    "MAX_QK_TOPK",
    "MAX_REPORTED",
    "MAX_TARGETS",
    "MAX_TOKENS_PER_SIDE",
    "MAX_URL_CHARACTERS",
    "REQUESTS",
    "AttributionTarget",
    "ChatMessage",
    "ContrastRequest",
    "ContrastResponse",
    "ContrastedFeature",
    "FeatureKind",
    "FileReceipt",
    "ForwardPassRequest",
    "ForwardPassResponse",
    "GenerateGraphRequest",
    "GroupChange",
    "GroupFeature",
    "InterveneRequest",
    "InterveneResponse",
    "InterventionOutcome",
    "LogitsOfToken",
    "LogitsPair",
    "Many",
    "ManyFeatures",
    "ManyTargets",
    "NonEmpty",
    "ParseChatPromptRequest",
    "ParseChatPromptResponse",
    "PromptRequest",
    "Request",
    "RequestedDifference",
    "RequestedFeature",
    "SalientLogit",
    "Side",
    "SteerFeature",
    "SteerPart",
    "SteerRequest",
    "SteerResponse",
    "TargetLogit",
    "Text",
    "Threshold",
    "Token",
    "TopLogit",
    "UploadReceipt",
    "Whole",
    "canonical_action",
    "closest_action",
    "parse_request",
]
