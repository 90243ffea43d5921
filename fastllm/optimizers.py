"""Optimizers: each keeps its moments in flat buffers like the parameters', and updates all parameters in one pass."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from numbers import Real
from types import ModuleType

import numpy as np

from .config import FLOAT32
from .interrupts import uninterrupted
from .memory import aligned
from .model import Model

EPS = (1e-30, 1e30)  # range of Adam's eps: neither 0 nor infinite as float32


def gradient_norm(model: Model) -> float:
    """The L2 norm of all gradients together."""
    backend = model._backend
    with model._lock:
        return math.sqrt(backend.kernels.squared_norm(model.gradients.flat, backend.norm_partials))


def clip_scale(norm: float, max_norm: float) -> float:
    """The factor that reduces gradients of this norm to at most max_norm; max_norm 0 never clips."""
    return max_norm / norm if 0 < max_norm < norm else 1.0


def clip_gradients(model: Model, max_norm: float) -> float:
    """Scale all gradients so that their global norm is at most max_norm; returns the norm before.

    The Trainer clips without a separate pass: it passes clip_scale to Optimizer.step. Raises ValueError for gradients
    that aren't finite, and leaves them as they are.
    """
    if not isinstance(model, Model):
        raise TypeError(f"clip_gradients takes a Model; got {type(model).__name__}; pass the model")
    if not _float(max_norm) > 0:
        raise ValueError(f"max_norm must be above 0; got {max_norm}; to disable clipping, don't call clip_gradients")
    norm = gradient_norm(model)
    if not math.isfinite(norm):
        raise ValueError(f"gradients must be finite to be clipped; got a norm of {norm}; lower the learning rate")
    factor = clip_scale(norm, max_norm)
    if factor < 1:
        with model._lock:
            model._backend.kernels.scale(model.gradients.flat, factor)
    return norm


class Optimizer:
    """What all optimizers share: the step count, their moments, and which parameters decay.

    weight_decay  of matrices: decoupled in AdamW and Lion, added to the gradient in SGD; norms, biases and embeddings
                  never decay

    Raises ValueError for an option out of range, TypeError for anything but a Model.
    """

    kernel: str  # its name in fastllm.kernels
    moments: tuple[str, ...] = ()

    def __init__(self, model: Model, weight_decay: float = 0.0) -> None:
        if not isinstance(model, Model):
            raise TypeError(
                f"an optimizer is made for a Model; got {type(model).__name__}; pass the model itself, and the "
                "learning rate to step()"
            )
        if not 0 <= _float(weight_decay) <= FLOAT32[1]:
            raise ValueError(f"weight_decay must be finite and not negative; got {weight_decay}; usual are 0 to 0.1")
        self.model = model
        self._trainable = model.trainable
        self.weight_decay = float(weight_decay)
        self.steps = 0
        like = self._trainable.flat
        self._moments = [aligned(like.shape, like.dtype, zeroed=True) for _ in self.moments]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.model!r}: {self.steps} update{'' if self.steps == 1 else 's'}>"

    @property
    def _kernels(self) -> ModuleType:
        return self.model._backend.kernels

    def step(self, learning_rate: float, gradient_scale: float = 1.0) -> None:
        """Update all parameters once.

        gradient_scale  factor for the gradients: clip_scale, or 1 / the number of batches accumulated

        Raises ValueError if the model no longer trains the parameters that it did when this was made, for a learning
        rate that isn't a finite number >= 0, and for a scale that isn't a finite number.
        """
        parameters, model = self._trainable, self.model
        if not self.is_of(model):
            raise ValueError(
                "an optimizer updates what its model trained when it was made; got a model that trains something else "
                "since an adapter was added or removed; make a new optimizer"
            )
        rate, scale = _float(learning_rate), _float(gradient_scale)
        if not 0 <= rate <= 1e30:
            raise ValueError(f"learning_rate must be a number >= 0; got {learning_rate!r:.40}; usual are 1e-5 to 1e-2")
        if not abs(scale) <= FLOAT32[1]:  # beyond, it is infinite in the kernel
            raise ValueError(f"gradient_scale must be a finite number; got {gradient_scale!r:.40}; are gradients NaN?")
        gradients = model.gradients
        decayed = parameters.decayed if self.weight_decay else 0
        # Matrices decay; norms, biases and embeddings, which come after them, do not.
        with model._lock, uninterrupted(is_short=True):  # an update is both done and counted, or neither
            for part, decay in ((slice(0, decayed), self.weight_decay), (slice(decayed, None), 0.0)):
                if part != slice(0, 0):
                    moments = [moment[part] for moment in self._moments]
                    self._update(parameters.flat[part], moments, gradients.flat[part], scale, rate, decay)
            self.steps += 1

    def is_of(self, model: Model) -> bool:
        """Whether it updates what a model trains now; that changes when an adapter is added or removed."""
        trained = model.parameters if model.adapter is None else model.adapter
        return model is self.model and trained is self._trainable

    def compile(self) -> None:
        """Compile the kernels of an update, by updating no parameters."""
        nothing = self._trainable.flat[:0]
        self._update(nothing, [nothing for _ in self._moments], nothing, 1.0, 1.0, 0.0)
        self._kernels.squared_norm(nothing, self.model._backend.norm_partials)

    def _update(
        self,
        parameters: np.ndarray,
        moments: list[np.ndarray],
        gradients: np.ndarray,
        scale: float,
        learning_rate: float,
        weight_decay: float,
    ) -> None:
        kernel = getattr(self._kernels, self.kernel)
        kernel(parameters, *moments, gradients, scale, learning_rate, *self._options(weight_decay))

    def _options(self, weight_decay: float) -> tuple[float, ...]:
        """The kernel's remaining arguments."""
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        """The moments, a checksum of what they belong to, and the step count, to resume from.

        The arrays are not copies.
        """
        named = dict(zip(self.moments, self._moments, strict=True))
        parameters = [(name, array.shape) for name, array in self._trainable.items()]
        checksum = zlib.crc32(f"{type(self).__name__} {parameters}".encode())
        return {**named, "of": np.array([checksum], np.int64), "steps": np.array([self.steps], np.int64)}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """The reverse of state(). Raises ValueError for the state of another optimizer or model."""
        own = self.state()
        state = {"of": own["of"], **state}  # older files lack the checksum
        expected = {name: (array.shape, array.dtype) for name, array in own.items()}
        received = {name: (array.shape, array.dtype) for name, array in state.items()}
        if expected != received:
            raise ValueError(
                f"an optimizer's state must be of the same optimizer and model; expected {expected}, got {received}; "
                "start a new run"
            )
        if state["of"] != own["of"]:
            raise ValueError(
                f"an optimizer's state must be of the same optimizer and model; got one as large as that of "
                f"{type(self).__name__} here, of other parameters or another optimizer; start a new run"
            )
        with self.model._lock:
            for name, moment in zip(self.moments, self._moments, strict=True):
                moment[...] = state[name]
            self.steps = int(state["steps"][0])


def _float(value: object) -> float:
    """A number as a Python float; NaN for anything else, infinity for an integer that is too large."""
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return math.inf


def _fraction(name: str, value: float) -> float:
    """The value, checked, as a Python float: for each other type of number, Numba would compile a kernel of its own."""
    number = _float(value)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be at least 0 and below 1; got {value}; usual are 0.9 to 0.999")
    return number


def _checked_betas(betas: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers; got {betas}; usual are (0.9, 0.999)")
    return _fraction("betas[0]", betas[0]), _fraction("betas[1]", betas[1])


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017): see kernels/adam.py.

    betas         decay rates of the moving averages of gradients and of their squares
    eps           added to the square root of the latter
    weight_decay  of matrices: each update first multiplies them by 1 - learning_rate * weight_decay
    """

    kernel = "adamw"
    moments = ("first", "second")

    def __init__(
        self,
        model: Model,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(model, weight_decay)
        self.betas = _checked_betas(betas)
        if not EPS[0] <= _float(eps) <= EPS[1]:
            raise ValueError(f"eps must be from {EPS[0]} to {EPS[1]}; got {eps}; usual is 1e-8")
        self.eps = float(eps)

    def _options(self, weight_decay: float) -> tuple[float, ...]:
        return (*self.betas, self.eps, weight_decay, self.steps + 1)


class Adam(AdamW):
    """Adam (Kingma and Ba 2014), without weight decay: AdamW has that."""

    def __init__(self, model: Model, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__(model, betas=betas, eps=eps)


class SGD(Optimizer):
    """Stochastic gradient descent: see kernels/sgd.py.

    momentum      share of the last step's velocity that is kept; 0: none
    weight_decay  of matrices: weight_decay times the weight is added to its gradient
    """

    kernel = "sgd"
    moments = ("velocity",)

    def __init__(self, model: Model, *, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(model, weight_decay)
        self.momentum = _fraction("momentum", momentum)

    def _options(self, weight_decay: float) -> tuple[float, ...]:
        return self.momentum, weight_decay


class Lion(Optimizer):
    """Lion (Chen et al. 2023): see kernels/lion.py. Choose a learning rate 3 to 10 times smaller than Adam's.

    betas         weights of the momentum in the mean whose sign is the update, and in that which becomes the momentum
    weight_decay  of matrices: each update first multiplies them by 1 - learning_rate * weight_decay
    """

    kernel = "lion"
    moments = ("momentum",)

    def __init__(self, model: Model, *, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        super().__init__(model, weight_decay)
        self.betas = _checked_betas(betas)

    def _options(self, weight_decay: float) -> tuple[float, ...]:
        return *self.betas, weight_decay


OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "adamw": AdamW, "sgd": SGD, "lion": Lion}
