"""Networks of torchvision, timm, transformers, segmentation, audio and detection libraries, with random weights.

Each is the smallest of its family that its library has or can be asked for, with images as small as it takes, since
what is asked of it is structure: what can be cut, whether the rest is right, whether it is exported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """A network by its library's name for it, and what makes it with two samples."""

    library: str
    name: str
    make: Callable[[], tuple[nn.Module, Any]]


def _images(pixels: int, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, pixels, pixels)


# torchvision -----------------------------------------------------------------------------------------------------

_TORCHVISION = {
    "alexnet": 64, "convnext_tiny": 64, "densenet121": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64,
    "googlenet": 64, "inception_v3": 96, "maxvit_t": 224, "mnasnet0_5": 64, "mobilenet_v2": 64,
    "mobilenet_v3_small": 64, "regnet_x_400mf": 64, "regnet_y_400mf": 64, "resnet18": 64, "resnet50": 64,
    "resnext50_32x4d": 64, "shufflenet_v2_x0_5": 64, "squeezenet1_1": 64, "swin_t": 64, "swin_v2_t": 64, "vgg11_bn": 64,
    "vit_b_32": 64, "wide_resnet50_2": 64,
}  # fmt: skip
"""One of each family, and the side of its images."""
_TORCHVISION_SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")


def _with_operators() -> Any:
    """Torchvision, also beside a torch for CPUs: its wheel is built for CUDA, so that its own operators are missing.

    None of these networks calls them; their names are what importing it asks for.
    """
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in _OPERATORS:
            library.define(f"{name}(Tensor x) -> Tensor")
        _with_operators.kept = library  # type: ignore[attr-defined]  # it is undefined with the object
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision
    return torchvision


_OPERATORS = (
    "nms", "qnms", "roi_align", "_roi_align_backward", "ps_roi_align", "_ps_roi_align_backward", "roi_pool",
    "_roi_pool_backward", "ps_roi_pool", "_ps_roi_pool_backward", "qroi_align", "deform_conv2d",
    "_deform_conv2d_backward",
)  # fmt: skip


def _torchvision(name: str, pixels: int) -> tuple[nn.Module, Any]:
    models = _with_operators().models
    extra: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if name == "vit_b_32":
        extra["image_size"] = pixels
    return models.get_model(name, weights=None, num_classes=10, **extra), _images(pixels)


def _torchvision_segmentation(name: str) -> tuple[nn.Module, Any]:
    models = _with_operators().models
    return models.get_model(name, weights=None, weights_backbone=None, num_classes=5), _images(64)


# timm ------------------------------------------------------------------------------------------------------------

_TIMM = {
    "beit_base_patch16_224": 224, "cait_xxs24_224": 224, "coat_tiny": 224, "coatnet_nano_rw_224": 224,
    "convit_tiny": 224, "convmixer_768_32": 64, "convnextv2_atto": 64, "crossvit_tiny_240": 240, "cspresnet50": 64,
    "darknet17": 64, "davit_tiny": 64, "deit_tiny_patch16_224": 224, "dla34": 64, "dm_nfnet_f0": 64, "dpn48b": 64,
    "edgenext_xx_small": 64, "efficientformer_l1": 224, "efficientvit_b0": 64, "efficientvit_m0": 224,
    "eva02_tiny_patch14_224": 224, "fastvit_t8": 64, "gcvit_xxtiny": 224, "ghostnet_050": 64, "gmixer_12_224": 224,
    "hardcorenas_a": 64, "hrnet_w18_small": 64, "lcnet_050": 64, "levit_128s": 224, "mixer_s16_224": 224,
    "mobilenetv4_conv_small": 64, "mobileone_s0": 64, "mobilevit_xxs": 64, "mvitv2_tiny": 224, "nf_regnet_b0": 64,
    "pit_ti_224": 224, "poolformer_s12": 64, "pvt_v2_b0": 64, "regnetz_005": 64, "repvgg_a0": 64,
    "res2net50_14w_8s": 64, "resmlp_12_224": 224, "resnest14d": 64, "rexnet_100": 64, "sequencer2d_s": 224,
    "swin_tiny_patch4_window7_224": 224,
    "tinynet_e": 64, "tiny_vit_5m_224": 224,
    "tnt_s_patch16_224": 224, "twins_svt_small": 224, "visformer_tiny": 224,
    "vit_tiny_patch16_224": 224, "volo_d1_224": 224, "xcit_nano_12_p16_224": 224,
}  # fmt: skip
"""One of each family, and the side of its images."""


def _timm(name: str, pixels: int) -> tuple[nn.Module, Any]:
    _with_operators()
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10), _images(pixels)


# transformers ----------------------------------------------------------------------------------------------------

_WIDE: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 200,
}  # fmt: skip
_GROUPED = {**_WIDE, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
_TEXT: dict[str, dict[str, Any]] = {
    "albert": {**_WIDE, "embedding_size": 32},
    "bert": _WIDE,
    "bart": {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
             "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "vocab_size": 200},
    "bloom": {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200},
    "camembert": _WIDE,
    "deberta-v2": {**_WIDE, "pos_att_type": ["p2c", "c2p"], "relative_attention": True},
    "distilbert": {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128, "vocab_size": 200},
    "electra": {**_WIDE, "embedding_size": 32},
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 200},
    "gemma": _GROUPED,
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 200},
    "gpt_neo": {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 200,
                "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": _WIDE,
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "vocab_size": 200},
    "llama": _GROUPED,
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 200, "state_size": 8},
    "mistral": _GROUPED,
    "mobilebert": {**_WIDE, "embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32},
    "mpnet": _WIDE,
    "opt": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 128, "vocab_size": 200,
            "word_embed_proj_dim": 64},
    "phi": _WIDE,
    "qwen2": _GROUPED,
    "roberta": _WIDE,
    "t5": {"d_model": 64, "d_kv": 16, "num_layers": 2, "num_heads": 4, "d_ff": 128, "vocab_size": 200},
    "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128, "vocab_size": 200},
}  # fmt: skip
_SEEN: dict[str, dict[str, Any]] = {
    "convnext": {"depths": [1, 1, 2, 1], "hidden_sizes": [16, 32, 48, 64]},
    "deit": {**_WIDE, "image_size": 64},
    "dinov2": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "patch_size": 14},
    "mobilevit": {"image_size": 64},
    "poolformer": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]},
    "resnet": {"depths": [1, 1, 1, 1], "embedding_size": 16, "hidden_sizes": [32, 64, 96, 128]},
    "segformer": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64]},
    "vit": {**_WIDE, "image_size": 64},
}  # fmt: skip
_HEARD: dict[str, dict[str, Any]] = {
    "hubert": {**_WIDE, "conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
    "wav2vec2": {**_WIDE, "conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
    "wav2vec2-conformer": {**_WIDE, "conv_dim": [32] * 7, "num_conv_pos_embeddings": 16,
                           "num_conv_pos_embedding_groups": 4},
}  # fmt: skip


def _config(name: str, values: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    values = {key: value for key, value in values.items() if key != "embedding_size" or name != "mpnet"}
    return AutoConfig.for_model(name, **values)


_CAUSAL = ("bloom", "falcon", "gemma", "gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "mamba", "mistral", "opt", "phi",
           "qwen2")  # fmt: skip
"""Those that say the next token; the others have a head for two classes, but for ``t5``, of which it is the encoder."""


def _text(name: str) -> tuple[nn.Module, Any]:
    _with_operators()
    import transformers

    config = _config(name, _TEXT[name])
    config.use_cache = False
    kind = "AutoModelForCausalLM" if name in _CAUSAL else "AutoModelForSequenceClassification"
    module = transformers.T5EncoderModel(config) if name == "t5" else getattr(transformers, kind).from_config(config)
    tokens = torch.randint(3, 200, (2, 16))
    if name == "bart":  # it looks for the one token that ends a text
        tokens[:, -1] = config.eos_token_id
    return module, {"input_ids": tokens, "attention_mask": torch.ones(2, 16, dtype=torch.long)}


def _seen(name: str) -> tuple[nn.Module, Any]:
    _with_operators()
    import transformers

    config = _config(name, _SEEN[name])
    # Of DeiT the automatic class wants to know which of two heads it has.
    kind = transformers.DeiTForImageClassification if name == "deit" else transformers.AutoModelForImageClassification
    module = kind(config) if name == "deit" else kind.from_config(config)
    return module, _images(_SEEN[name].get("image_size", 64))


def _heard(name: str) -> tuple[nn.Module, Any]:
    _with_operators()
    from transformers import AutoModelForAudioClassification

    return AutoModelForAudioClassification.from_config(_config(name, _HEARD[name])), torch.randn(2, 4000)


def _whisper_encoder() -> tuple[nn.Module, Any]:
    _with_operators()
    from transformers import WhisperConfig, WhisperModel

    of = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": 4, "vocab_size": 200,
          "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_source_positions": 50,
          "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}  # fmt: skip
    return WhisperModel(WhisperConfig(**of)).encoder, torch.randn(2, 80, 100)


# segmentation, audio, detection ----------------------------------------------------------------------------------

_SEGMENTATION = ("DeepLabV3Plus", "FPN", "Linknet", "MAnet", "PAN", "PSPNet", "Segformer", "UPerNet", "Unet",
                 "UnetPlusPlus")  # fmt: skip


def _segmentation(name: str) -> tuple[nn.Module, Any]:
    _with_operators()
    import segmentation_models_pytorch as library

    return getattr(library, name)("resnet18", encoder_weights=None, classes=3), _images(128)


class _First(nn.Module):
    """A network of which only the first output is used, with the lengths it wants of equally long samples."""

    def __init__(self, inner: nn.Module, *, lengths: bool) -> None:
        super().__init__()
        self.inner, self.lengths = inner, lengths

    def forward(self, x: Tensor) -> Tensor:
        """Takes x of (N, frames, features) or (N, samples)."""
        if not self.lengths:
            return self.inner(x)[0]
        return self.inner(x, torch.full((x.shape[0],), x.shape[1], dtype=torch.long, device=x.device))[0]


def _audio(name: str) -> tuple[nn.Module, Any]:
    from torchaudio import models

    if name == "Conformer":
        of = {"input_dim": 32, "num_heads": 4, "ffn_dim": 64, "num_layers": 2, "depthwise_conv_kernel_size": 15}
        return _First(models.Conformer(**of), lengths=True), torch.randn(2, 40, 32)
    if name == "ConvTasNet":
        of = {"enc_num_feats": 64, "msk_num_feats": 32, "msk_num_hidden_feats": 64, "msk_num_layers": 3,
              "msk_num_stacks": 2}  # fmt: skip
        return models.ConvTasNet(**of), torch.randn(2, 1, 2000)
    if name == "DeepSpeech":
        return models.DeepSpeech(n_feature=32, n_hidden=64, n_class=20), torch.randn(2, 1, 40, 32)
    if name == "HDemucs":
        return models.HDemucs(["a", "b"], audio_channels=1, channels=8), torch.randn(2, 1, 32768)
    if name == "Wav2Letter":
        return models.Wav2Letter(num_classes=20, input_type="mfcc", num_features=32), torch.randn(2, 32, 64)
    if name == "SquimObjective":
        return models.squim_objective_base(), torch.randn(2, 8000)
    return _First(models.wav2vec2_base(), lengths=False), torch.randn(2, 4000)


_AUDIO = ("Conformer", "ConvTasNet", "DeepSpeech", "HDemucs", "SquimObjective", "Wav2Letter", "wav2vec2_base")


def _detector(name: str) -> tuple[nn.Module, Any]:
    """The module as ultralytics exports it: one output (batch, 4 + classes, places)."""
    _with_operators()
    from ultralytics.nn.tasks import DetectionModel

    module = DetectionModel(f"{name}.yaml", nc=20, verbose=False)
    module.eval()
    module.model[-1].export = True
    return module, _images(96)


_DETECTORS = ("yolov8n", "yolo11n", "yolov10n")


def _rows() -> list[Row]:
    def bound(make: Callable[..., tuple[nn.Module, Any]], *of: Any) -> Callable[[], tuple[nn.Module, Any]]:
        return lambda: make(*of)

    return [
        *(Row("torchvision", name, bound(_torchvision, name, side)) for name, side in _TORCHVISION.items()),
        *(Row("torchvision", name, bound(_torchvision_segmentation, name)) for name in _TORCHVISION_SEGMENTATION),
        *(Row("timm", name, bound(_timm, name, side)) for name, side in _TIMM.items()),
        *(Row("transformers", name, bound(_text, name)) for name in _TEXT),
        *(Row("transformers", name, bound(_seen, name)) for name in _SEEN),
        *(Row("transformers", name, bound(_heard, name)) for name in _HEARD),
        Row("transformers", "whisper-encoder", _whisper_encoder),
        *(Row("segmentation_models_pytorch", name, bound(_segmentation, name)) for name in _SEGMENTATION),
        *(Row("torchaudio", name, bound(_audio, name)) for name in _AUDIO),
        *(Row("ultralytics", name, bound(_detector, name)) for name in _DETECTORS),
    ]


ROWS = {f"{row.library}/{row.name}": row for row in _rows()}
