"""Vector-Jacobian products against autograd, float64 finite differences and, as files, in ONNX
Runtime."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel, UNet2DModel
from torch import nn

from good_rt.classifier import Classifier, ClassifierConfig
from good_rt.demo.network import SmallResNet
from good_rt.diffusion import DecoderModule, UNetModule
from good_rt.errors import GoodRtError
from good_rt.export.vjp import cotangent_names, export_vjp_onnx, vjp_module

TOLERANCE = 1e-4


class Conditional(nn.Module):
    """A UNet2DConditionModel whose inputs are positional."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, sample, timestep, context):
        return self.unet(sample, timestep, context, return_dict=False)[0]


class Decode(nn.Module):
    """An AutoencoderTiny's decoder."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, latents):
        return self.vae.decode(latents, return_dict=False)[0]


class Transformer(nn.Module):
    """A small vision transformer in plain PyTorch."""

    def __init__(self, width=16, classes=5):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width))
        layer = nn.TransformerEncoderLayer(
            width, 2, 32, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, 2, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1) + self.position
        return self.head(self.layers(tokens)[:, 0])


def unet():
    model = UNet2DModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=4,
    )
    return UNetModule(model)


def conditional():
    return Conditional(
        UNet2DConditionModel(
            sample_size=8,
            in_channels=2,
            out_channels=2,
            layers_per_block=1,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=12,
        )
    )


def decoder():
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    )
    return DecoderModule(vae, 0.5, 0.1)


def tiny_decoder():
    return Decode(
        AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            latent_channels=2,
        )
    )


def classifier():
    config = ClassifierConfig(
        "small_resnet", ("a", "b", "c"), 3, 16, {"width": 8}, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    )
    network = SmallResNet(in_channels=3, width=8, num_classes=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that are not 0 and 1
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return Classifier(network, config)


def unet_inputs(n):
    return {
        "sample": torch.randn(n, 2, 8, 8),
        "timestep": torch.linspace(1, 900, n),
        "class_labels": torch.arange(n) % 4,
    }


def conditional_inputs(n):
    return {
        "sample": torch.randn(n, 2, 8, 8),
        "timestep": torch.linspace(1, 900, n),
        "context": torch.randn(n, 7, 12),
    }


MODELS = {
    # name: (module, inputs of a batch size, input to differentiate by, outputs)
    "unet": (unet, unet_inputs, "sample", ("output",)),
    "conditional unet": (conditional, conditional_inputs, "sample", ("output",)),
    "conditional unet, by context": (conditional, conditional_inputs, "context", ("output",)),
    "decoder": (decoder, lambda n: {"latents": torch.randn(n, 2, 8, 8)}, "latents", ("images",)),
    "tiny decoder": (
        tiny_decoder,
        lambda n: {"latents": torch.randn(n, 2, 8, 8)},
        "latents",
        ("images",),
    ),
    "classifier": (
        classifier,
        lambda n: {"images": torch.rand(n, 3, 16, 16) * 2 - 1},
        "images",
        ("logits", "features"),
    ),
    "transformer": (
        Transformer,
        lambda n: {"images": torch.randn(n, 3, 16, 16)},
        "images",
        ("logits",),
    ),
}


def made(name):
    make, inputs, wrt, outputs = MODELS[name]
    torch.manual_seed(0)
    return make().eval().requires_grad_(False), inputs, wrt, outputs


def as_tuple(value):
    return value if isinstance(value, tuple) else (value,)


def by_autograd(module, arrays, wrt, cotangents):
    """Outputs and Jᵀv by autograd."""
    leaf = arrays[wrt].clone().requires_grad_()
    outputs = as_tuple(module(*{**arrays, wrt: leaf}.values()))
    (gradient,) = torch.autograd.grad(outputs, leaf, cotangents)
    return [*(output.detach() for output in outputs), gradient]


def relative(found, expected):
    """The largest difference relative to the root mean square of what is expected."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.square().mean().sqrt())


def cotangents_of(module, arrays):
    with torch.no_grad():
        return tuple(torch.randn_like(output) for output in as_tuple(module(*arrays.values())))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_file_equals_autograd_for_any_batch(name, tmp_path):
    module, inputs, wrt, outputs = made(name)
    path = tmp_path / "vjp.onnx"
    export_vjp_onnx(module, inputs(2), wrt, outputs, path, metadata={"made": "here"})
    session = onnxruntime.InferenceSession(path)
    cotangent_inputs = (
        ("cotangent",) if len(outputs) == 1 else tuple(f"cotangent_{output}" for output in outputs)
    )
    assert cotangent_names(outputs) == cotangent_inputs
    assert [node.name for node in session.get_inputs()] == [*cotangent_inputs, *inputs(1)]
    assert [node.name for node in session.get_outputs()] == [*outputs, "gradient"]
    assert all(node.shape[0] == "batch" for node in [*session.get_inputs(), *session.get_outputs()])
    assert session.get_modelmeta().custom_metadata_map == {"made": "here"}
    for batch in (1, 2, 5, 16):
        arrays = inputs(batch)
        cotangents = cotangents_of(module, arrays)
        feeds = {**dict(zip(cotangent_inputs, cotangents, strict=True)), **arrays}
        found = session.run(None, {key: value.numpy() for key, value in feeds.items()})
        for ours, expected in zip(found, by_autograd(module, arrays, wrt, cotangents), strict=True):
            assert relative(torch.from_numpy(ours), expected) < TOLERANCE
    graph = onnx.load(path)
    assert {domain.domain for domain in graph.opset_import} == {""}
    assert not {node.op_type for node in graph.graph.node} & {
        "ScatterND",
        "ScatterElements",
        "If",
        "Loop",
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradient_is_the_slope_in_double_precision(name):
    module, inputs, wrt, _ = made(name)
    arrays = {
        key: value.double() if value.is_floating_point() else value
        for key, value in inputs(2).items()
    }
    module = module.double()
    product = vjp_module(module, arrays, wrt)
    cotangents = cotangents_of(module, arrays)
    *values, gradient = product(*cotangents, *arrays.values())

    def pulled(step, direction):
        moved = {**arrays, wrt: arrays[wrt] + step * direction}
        outputs = as_tuple(module(*moved.values()))
        return float(sum((output * v).sum() for output, v in zip(outputs, cotangents, strict=True)))

    for value, expected in zip(values, as_tuple(module(*arrays.values())), strict=True):
        assert relative(value, expected) < 1e-10
    for _ in range(3):
        direction = torch.randn_like(gradient)
        slope = (pulled(1e-6, direction) - pulled(-1e-6, direction)) / 2e-6
        assert math.isclose(float((gradient * direction).sum()), slope, rel_tol=1e-5, abs_tol=1e-6)


class Function(nn.Module):
    """A function of a tensor as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


KERNEL = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FUNCTIONS = {
    "arithmetic": lambda x: (2 - x) * x / (x * x + 1) - x.mean((2, 3), keepdim=True) * 3 + x / 2,
    "powers": lambda x: (
        (x * x + 1) ** 1.5 + (x * x + 1).rsqrt() + (x * x + 1).sqrt() + (x * x + 2).log() + x**2
    ),
    "smooth": lambda x: (
        x.sigmoid() + x.tanh() + x.exp() + x.sin() * x.cos() + torch.erf(x) - x.abs() + -x
    ),
    "rectified": lambda x: (
        F.relu(x) + F.leaky_relu(x, 0.2) + F.relu6(x * 3) + F.hardswish(x * 2) + x.clamp(-0.5, 0.7)
    ),
    "activations": lambda x: (
        F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + F.elu(x) + F.softplus(x)
    ),
    "choice": lambda x: (
        torch.where(x > 0.1, x * 2, x * x)
        + torch.maximum(x, x.flip(3))
        + x.clamp_min(0.3)
        + x.amin(3, keepdim=True)
    ),
    "broadcast": lambda x: (
        x * x[:, :1] + x.amax((2, 3), keepdim=True) * x + x.mean() * 0 + x[:, :, 1:2, ::2].sum()
    ),
    "pieces": lambda x: torch.cat(
        [part * (i + 1) for i, part in enumerate(x.chunk(2, 1))][::-1], 1
    ),
    "slices": lambda x: (
        torch.cat([x[:, :, 1:, ::2], x[:, :, :-1, 1::2]], 2).flatten(1) * x[:, 1, 2, 3:4]
    ),
    "stack": lambda x: (
        torch.stack([x[:, 0], x[:, 1] * x[:, 2]], 1).squeeze().permute(0, 2, 1, 3).unsqueeze(1)
    ),
    "reductions": lambda x: (
        x.var((1, 2))
        + x.std((1, 2), correction=0)
        + x.sum((1, 2))
        + F.normalize(x, dim=1).mean((1, 2))
    ),
    "detached": lambda x: x * x.detach() + x.argmax(1, keepdim=True),
    "chosen": lambda x: x - KERNEL[x.mean((1, 2, 3)).topk(2, dim=0).indices[:1]].mean(),
    "log-sum-exp": lambda x: x.logsumexp(1) + (x * 20).logsumexp((1, 2), keepdim=True)[:, 0],
    "softmax": lambda x: x.softmax(1) * x + x.log_softmax(2),
    "convolution": lambda x: F.conv2d(x.reshape(-1, 2, 8, 8), KERNEL, stride=2, padding=1),
    "dilated": lambda x: F.conv2d(x.reshape(-1, 2, 8, 8), KERNEL, padding=(2, 1), dilation=2),
    "grouped": lambda x: F.conv2d(x, KERNEL[:4].repeat(1, 1, 1, 1), padding="same", groups=2),
    "wide padding": lambda x: F.conv2d(x, KERNEL[:, :, :1, :1].repeat(1, 2, 1, 1), padding=1),
    "transposed": lambda x: F.conv_transpose2d(
        x, KERNEL[:4], stride=2, padding=1, output_padding=1
    ),
    "padding": lambda x: F.pad(x, (1, 2, 0, 1)),
    "group norm": lambda x: (
        F.group_norm(x * 2 + 5, 2) + F.layer_norm(x, (8, 8)) + F.instance_norm(x)
    ),
    "pooling": lambda x: (
        F.avg_pool2d(x, 3, 2, 1) + F.adaptive_avg_pool2d(x, 1) + F.avg_pool2d(x, 2)
    ),
    "max pooling": lambda x: F.max_pool2d(x, 3, 2, 1) + F.max_pool2d(F.relu(x), 2, 2),
    "up-sampling": lambda x: F.interpolate(x, scale_factor=2.0) * F.interpolate(x, size=(16, 16)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1, is_causal=True),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rules_equal_autograd(name):
    torch.manual_seed(1)
    module, x = Function(FUNCTIONS[name]), torch.randn(3, 4, 8, 8, dtype=torch.float64)
    (v,) = cotangents_of(module, {"x": x})
    found = vjp_module(module, {"x": x}, "x")(v, x)
    for ours, expected in zip(found, by_autograd(module, {"x": x}, "x", v), strict=True):
        assert relative(ours, expected) < 1e-10


def test_an_input_without_effect_has_gradient_zero():
    module = Function(lambda x: torch.zeros_like(x) + 1)
    x = torch.randn(2, 3)
    assert torch.equal(vjp_module(module, {"x": x}, "x")(x, x)[1], torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: x.cumsum(1), "aten.cumsum.default"),
        (lambda x: x.gather(1, (x > 0).long()), "aten.gather.default"),
        (lambda x: x[:, [3, 0]], "aten.index.Tensor"),
        (lambda x: x.scatter_add(1, (x > 0).long(), x), "aten.scatter_add.default"),
    ],
)
def test_unknown_operation_is_named_and_nothing_is_written(function, operation, tmp_path):
    with pytest.raises(GoodRtError, match=operation):
        export_vjp_onnx(
            Function(function), {"x": torch.randn(2, 4)}, "x", ("y",), tmp_path / "vjp.onnx"
        )
    assert list(tmp_path.iterdir()) == []


def test_module_that_cannot_be_traced_is_a_clear_error(tmp_path):
    module = Function(lambda x: x * 2 if x.sum() > 0 else x)
    with pytest.raises(GoodRtError, match="cannot be traced"):
        vjp_module(module, {"x": torch.randn(2, 3)}, "x")


def test_unknown_input_name():
    with pytest.raises(GoodRtError, match="no input 'z'"):
        vjp_module(Function(torch.relu), {"x": torch.randn(2, 3)}, "z")


@pytest.mark.slow
def test_same_module_gives_the_same_graph(tmp_path):
    module, inputs, wrt, outputs = made("tiny decoder")
    for path in (tmp_path / "a.onnx", tmp_path / "b.onnx"):
        export_vjp_onnx(module, inputs(2), wrt, outputs, path)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.slow
def test_no_weight_is_flipped_at_run_time(tmp_path):
    module, inputs, wrt, outputs = made("decoder")
    export_vjp_onnx(module, inputs(2), wrt, outputs, tmp_path / "vjp.onnx")
    graph = onnx.load(tmp_path / "vjp.onnx").graph
    constants = {initializer.name for initializer in graph.initializer}
    kernels = [node.input[1] for node in graph.node if node.op_type == "Conv"]
    assert len(kernels) > 10
    assert constants.issuperset(kernels)
    assert all(
        np.isfinite(onnx.numpy_helper.to_array(initializer)).all()
        for initializer in graph.initializer
    )
