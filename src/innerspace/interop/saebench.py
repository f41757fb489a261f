"""A dictionary as SAEBench's custom autoencoders look: its evaluations take the object as it is, and need not be here.

Theirs want decoder rows of unit norm, so latent i is measured in units of ‖w_i‖: with W_dec = diag(n) U,

    codes = z · n,   W_dec = U,   W_enc = diag(n) W_enc,   b_enc = n · b_enc,

and reconstructions are what they were.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from innerspace.decompose.dictionary import Dictionary
from innerspace.decompose.nonlinearities import Gated
from innerspace.interop.places import Source, layer, placed, to_hook
from innerspace.interop.plain import Plain, gate


@dataclass
class Config:
    """The settings that SAEBench asks an autoencoder for, by its names; it writes to some of them."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    architecture: str
    apply_b_dec_to_input: bool
    dtype: str
    device: str
    context_size: int | None = None
    hook_head_index: int | None = None
    normalize_activations: str = "none"
    prepend_bos: bool = True
    dataset_path: str = ""
    dataset_trust_remote_code: bool = False
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = 0
    activation_fn_str: str = ""
    finetuning_scaling_factor: bool = False
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON, without what SAEBench has written to them besides."""
        return asdict(self)


@final
class ForSAEBench(nn.Module):
    """A dictionary with the attributes and methods that SAEBench calls: ``encode``, ``decode``, ``forward``, weights.

    ``source.model`` is the network by the name that TransformerLens knows; the site is that of the home, or of the
    source.

    Raises:
        ValueError: for a site without a layer, a direction that is zero, or a BatchTopK without a threshold.
    """

    W_enc: Float[Tensor, "d k"]
    W_dec: Float[Tensor, "k d"]
    b_enc: Float[Tensor, "k"]
    b_dec: Float[Tensor, "d"]
    norms: Float[Tensor, "k"]

    def __init__(self, dictionary: Dictionary, source: Source) -> None:
        super().__init__()
        source = placed(source, dictionary.home)
        plain, norms = Plain.of(dictionary), dictionary.directions.detach().norm(dim=-1)
        if (norms == 0).any():
            raise ValueError(f"latent {int((norms == 0).nonzero()[0])} has no direction, so its norm cannot be one")
        self.dictionary = dictionary.eval()
        parts: dict[str, Tensor] = {
            "W_enc": (plain.encoder.to(norms) * norms[:, None]).T.contiguous(),
            "W_dec": plain.decoder.to(norms) / norms[:, None],
            "b_enc": plain.encoder_bias.to(norms) * norms,
            "b_dec": plain.decoder_bias.to(norms),
            "norms": norms,
        }
        if isinstance(plain.nonlinearity, Gated):
            parts["b_mag"] = gate(plain).b_mag.to(norms) * norms
        for name, item in parts.items():
            self.register_buffer(name, item)
        kind = type(dictionary.nonlinearity).__name__.lower()
        hook = to_hook(source.site)
        number = 0 if source.site == "embed" else layer(source.site)
        name = str(self.dtype).removeprefix("torch.")
        sizes = (dictionary.width, dictionary.latents)
        self.cfg = Config(source.model, *sizes, number, hook, kind, plain.centered, name, str(self.device))

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        return self.W_dec.dtype

    @property
    def device(self) -> torch.device:
        """Where its numbers lie."""
        return self.W_dec.device

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows k"]:
        """The codes in units of the directions' norms."""
        return self.dictionary.encode(x.to(self.dtype)).z * self.norms

    @torch.no_grad()
    def decode(self, feature_acts: Float[Tensor, "*rows k"]) -> Float[Tensor, "*rows d"]:
        """Hidden states from such codes."""
        return self.dictionary.decode(feature_acts.to(self.dtype) / self.norms)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """What the dictionary makes of hidden states."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def check_decoder_norms(self) -> bool:
        """Whether the rows of W_dec have unit norm; they do."""
        return bool((self.W_dec.float().norm(dim=1) - 1).abs().max() < (1e-5 if self.dtype.itemsize > 2 else 1e-2))
