"""Images, requests and their answers, as the tests of the server's rooms want them."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from io import BytesIO
from ipaddress import ip_address

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from serving.models.pool import PreprocessPool
from serving.protocol import (
    FinishedEvent,
    GenerateRequest,
    ImagePart,
    Message,
    SamplingParams,
    TextPart,
)
from serving.settings import EngineSettings, HttpSettings, ServerSettings

DAY = timedelta(days=1)


def png(seed: int = 0, width_px: int = 70, height_px: int = 50) -> bytes:
    """Return an encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def image_bytes():
    """The function that makes an encoded image from a seed and a size."""
    return png


@pytest.fixture(scope="session")
def colidefics3(smolvlm_checkpoint):
    """The function that writes a checkpoint as ColIdefics3 is kept: SmolVLM, and a projection of every token."""

    def write(folder, size=8):
        folder.mkdir()
        for file in smolvlm_checkpoint.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        weights, rng = load_file(folder / "model.safetensors"), np.random.default_rng(0)
        width = json.loads((folder / "config.json").read_text())["text_config"]["hidden_size"]
        weights["linear.weight"] = rng.standard_normal((size, width)).astype(np.float32)
        weights["linear.bias"] = rng.standard_normal(size).astype(np.float32)
        save_file(weights, folder / "model.safetensors")
        return folder

    return write


@pytest.fixture(scope="session")
def ask():
    """The function that makes a chat request of one message."""

    def make(*parts: str | bytes, model: str = "tiny-smolvlm", **sampling) -> GenerateRequest:
        content = tuple(TextPart(part) if isinstance(part, str) else ImagePart(part) for part in parts)
        return GenerateRequest("r", model, (Message("user", content),), SamplingParams(**sampling))

    return make


@pytest.fixture(scope="session")
def check_greedy():
    """The function that holds an answer to be greedy by transformers' model of the same weights.

    Every token has the highest logit, or one as high: which of two such is the largest, the order of a sum decides.
    """

    def check(model, inputs, token_ids, max_tokens: int, tolerance: float = 2e-3) -> None:
        import torch

        answer = torch.tensor([token_ids])
        ids = torch.cat([inputs["input_ids"], answer], dim=1)
        with torch.no_grad():
            logits = model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        logits = logits[0, -len(token_ids) - 1 : -1]
        highest, median = logits.max(dim=1).values, logits.median(dim=1).values
        assert (highest - median > 50 * tolerance).all()  # else any token would do
        assert (highest - logits.gather(1, answer.T)[:, 0] <= tolerance).all()
        eos = np.atleast_1d(model.generation_config.eos_token_id or -1).tolist()
        assert [token_id in eos for token_id in token_ids[:-1]] == [False] * (len(token_ids) - 1)
        assert len(token_ids) == max_tokens or token_ids[-1] in eos

    return check


@dataclass(frozen=True)
class Answered:
    """One whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finished: FinishedEvent


@pytest.fixture(scope="session")
def answer():
    """The coroutine function that reads a generation to its end and checks its form."""

    async def read(model, request: GenerateRequest) -> Answered:
        events = [event async for event in model.generate(request)]
        assert [isinstance(event, FinishedEvent) for event in events] == [False] * (len(events) - 1) + [True]
        tokens = events[:-1]
        return Answered(
            "".join(event.text for event in tokens), tuple(i for event in tokens for i in event.token_ids), events[-1]
        )

    return read


@pytest.fixture
def pool():
    pool = PreprocessPool(EngineSettings(preprocess_threads=2))
    yield pool
    pool.close()


def write_pair(
    folder, name: str = "server", ends: timedelta = DAY, passphrase: bytes | None = None, dns: str = "localhost"
):
    """Write a certificate that signs itself, for 127.0.0.1 and a name, and its key; return settings that name them."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    end = datetime.now(timezone.utc) + ends
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - 400 * DAY)
        .not_valid_after(end)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName(dns)]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    encryption = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    files = folder / f"{name}.pem", folder / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    files[1].write_bytes(key.private_bytes(pem, pkcs8, encryption))
    return HttpSettings(tls_certificate=files[0], tls_key=files[1])


@pytest.fixture(scope="session", name="write_pair")
def pair_writer():
    """The function that writes a certificate and its key."""
    pytest.importorskip("cryptography", reason="cryptography is not installed: it comes with [dev]")
    return write_pair


@pytest.fixture
def serve_edge(edge_servers):
    """The function that serves a client as the edge server does, until the test ends, and returns the URL."""
    with ExitStack() as stack:

        def serve(client, settings: ServerSettings | None = None, send_buffer_bytes: int | None = None) -> str:
            return stack.enter_context(edge_servers(client, settings or ServerSettings(), send_buffer_bytes))

        yield serve
