"""Nearest neighbours by cosine, exact, through faiss."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def nearest(
    query: Float[Tensor, "n D"], key: Float[Tensor, "N D"], k: int
) -> tuple[Float[Tensor, "n K"], Int[Tensor, "n K"]]:
    """Cosine with, and index of, the k nearest keys of each row, nearest first; all keys where there are fewer than k.

    Compared in float32 on the CPU, where the GPU build of faiss works too.
    """
    import faiss  # here, as it takes half a second and only graphs need it

    unit_query, unit_key = (F.normalize(x.float(), dim=-1).cpu().contiguous().numpy() for x in (query, key))
    index = faiss.IndexFlatIP(key.shape[-1])
    index.add(unit_key)
    cosine, found = index.search(unit_query, min(k, len(unit_key)))
    return torch.from_numpy(cosine).to(query), torch.from_numpy(found).to(query.device)
