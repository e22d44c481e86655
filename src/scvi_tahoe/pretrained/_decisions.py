"""What a user can decide when starting from pretrained weights. Nothing of it happens unasked."""

from __future__ import annotations

__all__ = ["DECISIONS", "TOLERATED_SHARE"]

#: What a user can decide when starting from pretrained weights: name and consequence.
DECISIONS: dict[str, str] = {
    "new_genes": "genes the weights do not know get new rows and columns",
    "drop_genes": "genes of the weights that the data lack are left out",
    "extra_input": "input columns beside the genes start at zero",
    "new_input": "the first layer of the control encoder is trained anew",
    "new_output": "the last layer of the head is trained anew",
    "other_embedding": "the data's cell embedding is the one of the weights under another name",
    "new_perturbation_encoder": "the first layer of the perturbation encoder is trained anew",
    "same_features": "the data's perturbation features are those of the weights, though no label is shared to tell",
    "new_batch_encoder": "a batch encoder is added",
    "drop_batch_encoder": "the batch encoder is left out, its mean vector kept",
    "new_gene_decoder": "the gene decoder is trained anew",
    "drop_gene_decoder": "the gene decoder is left out",
    "new_tokens": "a batch or confidence token is added",
    "drop_tokens": "a batch or confidence token is left out",
    "other_head": "the output is formed in another way",
    "other_attention": "cells attend in another way than in training",
    "other_set_size": "sets have another size than in training",
}

#: Up to this share of genes may be new or left out without a decision; they are named in the report.
TOLERATED_SHARE = 0.1
