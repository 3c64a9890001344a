"""Nearest neighbours by cosine, exact, through faiss."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def nearest(
    query: Float[Tensor, "n D"], key: Float[Tensor, "N D"], k: int
) -> tuple[Float[Tensor, "n K"], Int[Tensor, "n K"]]:
    """Cosine with, and index of, the k nearest keys of each row, nearest first; all keys where there are fewer than k.

    Computed in float32 on the CPU, which every build of faiss can do.
    """
    import faiss  # here, as it takes half a second and only graphs need it

    unit_query, unit_key = (F.normalize(x.float(), dim=-1).cpu().contiguous().numpy() for x in (query, key))
    searched = faiss.IndexFlatIP(key.shape[-1])
    searched.add(unit_key)
    cosine, index = searched.search(unit_query, min(k, len(unit_key)))
    return torch.from_numpy(cosine).to(query), torch.from_numpy(index).to(query.device)
