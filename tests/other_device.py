"""Tracing, editing, scoring and generation on another device than the CPU, on a machine that has none.

    python tests/other_device.py

Tensors of a backend written in Python say that they are on a device "other", hold their numbers on the CPU, and refuse
to be mixed with tensors of the CPU as those of a GPU do. Registering the backend changes this process for good, so
`test_other_device.py` runs this file in one of its own.
"""

from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from known_edits import untrained
from torch.utils import swap_tensors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from workbench.editors.make import make_editor
from workbench.editors.registry import EDITORS
from workbench.editors.shared.second_moments import second_moments
from workbench.measuring.evaluate import evaluate
from workbench.models import placement
from workbench.models.checkpoints import load_checkpoint
from workbench.models.generation import generate
from workbench.models.loading import load_model
from workbench.models.model import SITES, Model
from workbench.records.facts import EditRequest, Fact, Record
from workbench.tracing.attribution import attribute_fact
from workbench.tracing.fact import trace_fact
from workbench.tracing.lens import logit_lens
from workbench.tracing.noise import NoiseRule, gaussian_noise, subject_span
from workbench.tracing.replacement import trace_pairs
from workbench.tracing.sweep import trace_facts

_setup_privateuseone_for_python_backend("other")
DEVICE = torch.device("other", 0)
MIXABLE = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put", "aten::index_put_"}
"""Operations that take tensors of two devices on a GPU too: copies, and indices from the CPU."""

FOLDER = Path(__file__).parent / "golden" / "tiny-gpt2"
REQUEST = EditRequest(template="The capital of {} is", subject="Portugal", target_new="Moscow", target_true="Lisbon")
RECORD = Record(
    case_id=0,
    request=REQUEST,
    paraphrase_prompts=("In the book, Portugal's capital city is",),
    neighborhood_prompts=("The capital of France is",),
    generation_prompts=("People in Portugal speak",),
)
JAPAN = Fact(subject="Japan", template=REQUEST.template, object="Tokyo")
TRAINING = Record(
    case_id=1,
    request=EditRequest(template=REQUEST.template, subject="Japan", target_new="Rome", target_true="Tokyo"),
    paraphrase_prompts=("Japan's capital city is",),
    neighborhood_prompts=("In Tokyo, people speak",),
)


class OtherTensor(torch.Tensor):
    """A tensor on the other device; what it holds is `held`."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OtherTensor":
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class OtherDevice(TorchDispatchMode):
    """Inside, the other device exists."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __enter__(self) -> Any:
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=) comes here
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch._C._set_only_lift_cpu_tensors(False)
        super().__exit__(*error)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation, on the device that its tensors or its argument `device` name."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    there = any(isinstance(value, OtherTensor) for value in tensors)
    if there and func.overloadpacket._qualified_op_name not in MIXABLE:
        strange = [value for value in tensors if not isinstance(value, OtherTensor) and value.ndim > 0]
        if strange:
            raise RuntimeError(f"{func} mixes devices: {tuple(strange[0].shape)} is on the CPU")
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    held = tree_map(lambda value: value.held if isinstance(value, OtherTensor) else value, (args, kwargs))
    found = func(*held[0], **held[1])
    if len(func._schema.returns) == 1 and func._schema.arguments and func._schema.arguments[0].is_write:
        return args[0]  # in place
    return tree_map(lambda value: OtherTensor(value) if there and isinstance(value, torch.Tensor) else value, found)


def moved(model: Model) -> Model:
    """The model on the other device; its parameters stay the same objects, since many modules share them."""
    for module in [*model.bridge.modules(), *model.bridge.original_model.modules()]:
        for name, buffer in module._buffers.items():
            if buffer is not None and not isinstance(buffer, OtherTensor):
                module._buffers[name] = OtherTensor(buffer)
        for parameter in module._parameters.values():
            if parameter is not None and not isinstance(parameter, OtherTensor):
                swap_tensors(parameter, torch.nn.Parameter(OtherTensor(parameter.data), requires_grad=False))
    model.bridge.cfg.device = str(DEVICE)
    return Model(name=model.name, checkpoint=model.checkpoint, device=DEVICE, dtype=model.dtype)


def spread() -> Model:
    """The model with the matrices of some blocks on the CPU and all else on the other device."""

    def move(module: torch.nn.Module, name: str, tensor: torch.Tensor, where: torch.device) -> None:
        assert where == DEVICE
        if name in module._parameters:
            swap_tensors(tensor, torch.nn.Parameter(OtherTensor(tensor.data), requires_grad=False))
        else:
            module._buffers[name] = OtherTensor(tensor)

    placement._move_ = move
    checkpoint = load_checkpoint(str(FOLDER), device="cpu", dtype=torch.float32)
    there = {f"transformer.h.{layer}": torch.device("cpu") for layer in (1, 2, 4)}
    placement.place_(checkpoint, {"": DEVICE, **there})
    made = Model(name=str(FOLDER), checkpoint=checkpoint, device=DEVICE, dtype=torch.float32)
    assert made.spread and made.weight(2).is_cpu and not made.weight(3).is_cpu
    return made


def check_that_mixing_is_seen() -> None:
    """So that silence says something."""
    there = torch.zeros(3, 4, device=DEVICE)
    assert not there.is_cpu and (there + 1).device == DEVICE and (there @ there.T).cpu().device.type == "cpu"
    for mixed in (lambda: there + torch.ones(4), lambda: torch.cat([there, torch.zeros(3, 4)]), there.numpy):
        try:
            mixed()
        except RuntimeError:
            continue
        raise AssertionError("tensors of two devices were mixed and nothing was said")


def check_tracing(here: Model, there: Model) -> None:
    """Every engine and method; the numbers are the CPU's."""
    fact = REQUEST.fact
    first, end = subject_span(here, fact)
    noise = gaussian_noise(0.5, 2, end - first, here.d_model, generator=torch.Generator().manual_seed(0))
    kinds: tuple[tuple[Any, dict[str, Any]], ...] = (
        (trace_fact, {"engine": "fast"}),
        (trace_fact, {"engine": "fast", "severed": "mlp_out"}),
        (trace_fact, {"engine": "plain", "positions": "last_subject"}),
        (attribute_fact, {}),
    )
    for method, options in kinds:
        one, other = (method(model, fact, noise=noise, window=3, **options) for model in (here, there))
        for site in SITES:
            assert not isinstance(other.restored[site], OtherTensor)
            torch.testing.assert_close(other.restored[site], one.restored[site], atol=1e-5, rtol=0)
    for rule in ("s3", "m"):
        (traced,) = trace_facts(there, [fact], seed=0, samples=2, noise_rule=NoiseRule.parse(rule))
        assert traced.trace is not None
    list(trace_pairs(there, [fact, JAPAN], seed=0, sites=["mlp_out"]))
    logit_lens(there, REQUEST, ["Lisbon", "Moscow"])


def check_the_rest(here: Model, there: Model) -> None:
    """Second moments, generation, all editors, scores and saved edits."""
    text = (FOLDER / "corpus.txt").read_text(encoding="utf-8").splitlines()[:200]
    prompts = [REQUEST.prompt, "In Japan, most people speak"]
    assert generate(there, prompts, max_new_tokens=4) == generate(here, prompts, max_new_tokens=4)
    (one,), (other,) = (second_moments(model, [2], text).values() for model in (here, there))
    torch.testing.assert_close(other.matrix, one.matrix, atol=1e-6, rtol=1e-5)
    assert there.fingerprint() == here.fingerprint()
    torch.Generator = lambda device=None: torch.default_generator.clone_state()  # pyright: ignore[reportAttributeAccessIssue]
    with TemporaryDirectory() as cache:
        for method, editor in EDITORS.items():
            names = {field.name for field in fields(cast(Any, editor))}
            few = {name: value for name, value in (("layers", (2, 3)), ("steps", 3)) if name in names}
            options: dict[str, Any] = {
                "layer": 2,
                "texts": lambda: text,
                "seed": 0,
                "preset_of": "atlas",
                "alone": True,
                **few,
            }
            options["records"] = lambda: [TRAINING]
            if "network" in names:
                options["network"] = untrained(editor, there)
            edit = make_editor(there, method, cache=Path(cache), **options)(there, [REQUEST])
            evaluate(there, edit, RECORD, seed=0, fluency_tokens=12)
            edit.save(Path(cache) / "edit.safetensors")
            print(method, flush=True)
    assert there.fingerprint() == here.fingerprint()


if __name__ == "__main__":
    cpu = load_model(str(FOLDER), device="cpu")
    with OtherDevice():
        check_that_mixing_is_seen()
        other = moved(load_model(str(FOLDER), device="cpu"))
        for there in (other, spread()):
            check_tracing(cpu, there)
            check_the_rest(cpu, there)
