"""The typed messages between the HTTP application and whatever runs the models.

The application knows only `EngineClient`. In one process that is `serving.engine`'s own client; on a cluster it is a
thin wrapper over Ray Serve deployment handles. Every message is a frozen dataclass of plain data, so that it pickles.
"""

from bundle.tools import Tool as Tool
from bundle.tools import ToolCall as ToolCall
from serving.contrast import M3ID as M3ID
from serving.contrast import VCD as VCD
from serving.contrast import Contrast as Contrast
from serving.protocol.cards import ONLY_ENGINE as ONLY_ENGINE
from serving.protocol.cards import Health as Health
from serving.protocol.cards import ModelCard as ModelCard
from serving.protocol.cards import found_card as found_card
from serving.protocol.cards import with_adapters as with_adapters
from serving.protocol.client import EngineClient as EngineClient
from serving.protocol.client import ManagedClient as ManagedClient
from serving.protocol.client import ModelControl as ModelControl
from serving.protocol.embedding import ClassifyRequest as ClassifyRequest
from serving.protocol.embedding import ClassifyResult as ClassifyResult
from serving.protocol.embedding import EmbedInput as EmbedInput
from serving.protocol.embedding import EmbedRequest as EmbedRequest
from serving.protocol.embedding import EmbedResult as EmbedResult
from serving.protocol.embedding import JoinedPart as JoinedPart
from serving.protocol.embedding import ScoreRequest as ScoreRequest
from serving.protocol.embedding import ScoreResult as ScoreResult
from serving.protocol.embedding import TokensPart as TokensPart
from serving.protocol.generation import FinishedEvent as FinishedEvent
from serving.protocol.generation import FinishReason as FinishReason
from serving.protocol.generation import GenerateEvent as GenerateEvent
from serving.protocol.generation import GenerateRequest as GenerateRequest
from serving.protocol.generation import KVCompression as KVCompression
from serving.protocol.generation import SamplingParams as SamplingParams
from serving.protocol.generation import Structure as Structure
from serving.protocol.generation import Timings as Timings
from serving.protocol.generation import TokenEvent as TokenEvent
from serving.protocol.generation import TokenLogprob as TokenLogprob
from serving.protocol.generation import Usage as Usage
from serving.protocol.generation import VisionReduction as VisionReduction
from serving.protocol.generation import WaitingEvent as WaitingEvent
from serving.protocol.messages import ImagePart as ImagePart
from serving.protocol.messages import Message as Message
from serving.protocol.messages import TextPart as TextPart
from serving.protocol.messages import VideoPart as VideoPart
from serving.protocol.tokens import DetokenizeRequest as DetokenizeRequest
from serving.protocol.tokens import TokenizeRequest as TokenizeRequest
from serving.protocol.tokens import TokenizeResult as TokenizeResult
