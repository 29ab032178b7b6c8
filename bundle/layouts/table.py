"""Which prompt layouts there are, by the `kind` that the manifest gives."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from bundle.layouts.adem import AdemPrompt
from bundle.layouts.aki import AkiPrompt
from bundle.layouts.deepseek_ocr import DeepSeekOcrPrompt, UnlimitedOcrPrompt
from bundle.layouts.deepseek_vl2 import DeepSeekVL2Prompt
from bundle.layouts.embedding_gemma2 import EmbeddingGemma2Prompt
from bundle.layouts.encoded import EncodedPrompt
from bundle.layouts.eve import EvePrompt
from bundle.layouts.florence2 import Florence2Prompt
from bundle.layouts.fuyu import FuyuPrompt
from bundle.layouts.gemma3 import Gemma3Prompt
from bundle.layouts.gemma3n import Gemma3nPrompt
from bundle.layouts.gemma4 import Gemma4Prompt
from bundle.layouts.git import GitPrompt
from bundle.layouts.granite_docling import GraniteDoclingPrompt
from bundle.layouts.hunyuan_vl import HunYuanVLPrompt
from bundle.layouts.idefics2 import Idefics2Prompt
from bundle.layouts.idefics3 import Idefics3Prompt
from bundle.layouts.internvl import InternVLPrompt
from bundle.layouts.lfm2_vl import Lfm2VLPrompt
from bundle.layouts.llava import LlavaPrompt
from bundle.layouts.llava_next import LlavaNextPrompt
from bundle.layouts.minicpmv import MiniCPMVPrompt
from bundle.layouts.mllama import MllamaPrompt
from bundle.layouts.modernvbert import ModernVBertPrompt
from bundle.layouts.molmo2 import Molmo2Prompt
from bundle.layouts.moondream import MoondreamPrompt
from bundle.layouts.nanovlm import NanoVLMPrompt
from bundle.layouts.ovis2 import Ovis2Prompt
from bundle.layouts.paligemma import PaliGemmaPrompt
from bundle.layouts.pixtral import PixtralPrompt
from bundle.layouts.qwen2_vl import Qwen2VLPrompt
from bundle.layouts.solo import SoloPrompt
from bundle.layouts.texthawk import TextHawkPrompt
from bundle.layouts.vlora import VLoRAPrompt

KnownImagePrompt: TypeAlias = Annotated[
    AdemPrompt
    | AkiPrompt
    | DeepSeekOcrPrompt
    | DeepSeekVL2Prompt
    | EmbeddingGemma2Prompt
    | EncodedPrompt
    | EvePrompt
    | Florence2Prompt
    | FuyuPrompt
    | Gemma3Prompt
    | Gemma3nPrompt
    | Gemma4Prompt
    | GitPrompt
    | GraniteDoclingPrompt
    | HunYuanVLPrompt
    | Idefics2Prompt
    | Idefics3Prompt
    | InternVLPrompt
    | Lfm2VLPrompt
    | LlavaNextPrompt
    | LlavaPrompt
    | MiniCPMVPrompt
    | MllamaPrompt
    | ModernVBertPrompt
    | Molmo2Prompt
    | MoondreamPrompt
    | NanoVLMPrompt
    | Ovis2Prompt
    | PaliGemmaPrompt
    | PixtralPrompt
    | Qwen2VLPrompt
    | SoloPrompt
    | TextHawkPrompt
    | UnlimitedOcrPrompt
    | VLoRAPrompt,
    Field(discriminator="kind"),
]
