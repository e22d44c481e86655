"""The module: the network as scvi-tools calls it, and the loss of a minibatch.

The loss of a batch, from top to bottom: :meth:`TahoeSTModule.inference` runs the network on the control cells and the
perturbation of each set, :meth:`TahoeSTModule.loss` compares what it predicts with the observed cells.

S sets, N cells of a set, G genes (or width of a cell), P width of a perturbation embedding, E width of a cell
embedding, D hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from scvi.module.base import BaseModuleClass, LossOutput, auto_move_data
from torch import nn

from scvi_tahoe._constants import TENSORS
from scvi_tahoe.nn import NetworkConfig, Objective, ObjectiveConfig, SetReference, SetTransformer, attach_adapters

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_tahoe.nn import NetworkOutput


def residual_input(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return what the network's change is added to: cells of the prior, or shifted controls; None: the controls."""
    if TENSORS.RESIDUAL_INPUT in tensors:
        return tensors[TENSORS.RESIDUAL_INPUT]
    if TENSORS.RESIDUAL_SHIFT in tensors:
        return (tensors[TENSORS.CONTROL] + tensors[TENSORS.RESIDUAL_SHIFT][:, None]).clamp_min(0)
    return None


class TahoeSTModule(BaseModuleClass):
    """State Transition network with its objective.

    Parameters
    ----------
    network, objective
        Shape and function of the network, and what is minimised.
    n_cell_embedding
        Width E of a cell embedding that the hidden cells must also explain (an auxiliary signal of training, never an
        input); 0 for none.

    Examples
    --------
    >>> output = model.module(control_SNG, perturbation_SP)
    >>> output.prediction_SNG
    """

    def __init__(
        self, network: NetworkConfig, objective: ObjectiveConfig | None = None, *, n_cell_embedding: int = 0
    ) -> None:
        super().__init__()
        self.config = network
        self.network = SetTransformer(network)
        self.embedding_head = nn.Linear(network.hidden, n_cell_embedding) if n_cell_embedding else None
        self.objective = Objective(objective or ObjectiveConfig())
        #: submodules that always stay in eval mode; set by the freezing of a training run
        self.frozen: tuple[nn.Module, ...] = ()

    def on_load(self, model: Any, **kwargs: Any) -> None:
        """Make room for the adapters of a saved model, before scvi-tools loads the weights."""
        if model.adapters_ is not None:
            attach_adapters(self.network, **model.adapters_)

    def train(self, mode: bool = True) -> TahoeSTModule:
        """Set the mode, but never switch the dropout of a frozen part back on."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def forward(  # type: ignore[override]
        self,
        control_SNG: Tensor | Mapping[str, Tensor],
        perturbation_SP: Tensor | None = None,
        batch_SN: Tensor | None = None,
        base_SNG: Tensor | None = None,
        **kwargs: Any,
    ) -> NetworkOutput | tuple[dict[str, Any], dict[str, Any], LossOutput]:
        """Predict perturbed cells; or, given a minibatch, take the steps that scvi-tools' training plans call.

        Parameters
        ----------
        control_SNG, perturbation_SP, batch_SN
            Control cells, or a minibatch as a mapping; embedding of each set's perturbation, ``[S, N, P]`` where cells
            of a set carry their own; technical batch of each cell, where the network has a batch encoder.
        base_SNG
            Cells to which the network's change is added. If None, the control cells.
        **kwargs
            Arguments of :meth:`scvi.module.base.BaseModuleClass.forward`, with a minibatch only.

        Returns
        -------
        Prediction, decoded genes, confidence; or the outputs of inference, generative and loss.
        """
        if isinstance(control_SNG, Mapping):
            return super().forward(control_SNG, **kwargs)
        return self.network(control_SNG, perturbation_SP, batch_SN, base_SNG)

    def _get_inference_input(self, tensors: Mapping[str, Tensor], **kwargs: Any) -> dict[str, Tensor | None]:
        return {
            "control_SNG": tensors[TENSORS.CONTROL],
            "perturbation_SP": tensors[TENSORS.PERTURBATION],
            "batch_SN": tensors.get(TENSORS.BATCH),
            "base_SNG": residual_input(tensors),
        }

    @auto_move_data
    def inference(
        self,
        control_SNG: Tensor,
        perturbation_SP: Tensor,
        batch_SN: Tensor | None = None,
        base_SNG: Tensor | None = None,
    ) -> dict[str, Any]:
        """Run the network: encoders, backbone and head."""
        return {"output": self.network(control_SNG, perturbation_SP, batch_SN, base_SNG)}

    def _get_generative_input(
        self, tensors: Mapping[str, Tensor], inference_outputs: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        return inference_outputs

    @auto_move_data
    def generative(self, output: NetworkOutput) -> dict[str, Tensor | None]:
        """Return predicted cells, and the cell embedding read from the same hidden cells."""
        embedding_SNE = None if self.embedding_head is None else self.embedding_head(output.hidden_SND)
        return {"prediction_SNG": output.prediction_SNG, "embedding_SNE": embedding_SNE}

    def loss(
        self,
        tensors: Mapping[str, Tensor],
        inference_outputs: dict[str, Any],
        generative_outputs: dict[str, Tensor | None],
    ) -> LossOutput:
        """Compare predicted and observed cells.

        Returns
        -------
        The total; the main loss of each set; each term before weighting, as 0-dimensional extra metrics. The number
        of observations is the number of *sets*.
        """
        batch_SN = tensors.get(TENSORS.BATCH)
        known = (tensors.get(key) for key in (TENSORS.CONTROL_MEAN, TENSORS.GENE_WEIGHT))
        reference = SetReference(tensors[TENSORS.PERTURBATION], tensors[TENSORS.CONTROL], *known)
        with torch.autocast(device_type=tensors[TENSORS.OBSERVED].device.type, enabled=False):
            total, main_S, parts = self.objective(
                inference_outputs["output"],
                tensors[TENSORS.OBSERVED],
                reference=reference,
                genes_SNG=tensors.get(TENSORS.OBSERVED_GENES),
                batch_S=None if batch_SN is None else batch_SN[:, 0],
            )
            if (embedding_SNE := generative_outputs["embedding_SNE"]) is not None:
                auxiliary, others = self.objective.embedding_loss(
                    embedding_SNE, tensors[TENSORS.OBSERVED_EMBEDDING], reference
                )
                total = total + auxiliary
                parts |= {name: value.detach() for name, value in others.items()}
        return LossOutput(loss=total, n_obs_minibatch=len(main_S), extra_metrics=parts)

    def sample(self, control_SNG: Tensor, perturbation_SP: Tensor, batch_SN: Tensor | None = None) -> Tensor:
        """Return predicted cells; ST is deterministic, its spread comes from that of the control cells."""
        return self.network(control_SNG, perturbation_SP, batch_SN).prediction_SNG
