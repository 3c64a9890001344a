"""A run scored again under other knobs: methods of one's own with optional members and no more."""

import numpy as np
import torch

import fastltssl
from fastltssl.analysis import cure
from fastltssl.analysis.history import read_insight

FUSED = """
from dataclasses import dataclass, field
import fastltssl.functional as fl

@dataclass(frozen=True, eq=False)
class Method:
    share: fl.Knob = fl.knob(0.5, 0.0, 1.0, "of the run")
    head: fl.Head = field(default_factory=fl.Cosine)
    views = (1, 0)

    def init(self, problem, generator):
        return self.head.init(problem, generator)

    def start(self, problem):
        return {"head": self.head.start(problem), "text": fl.text_branch(problem)}

    def loss(self, params, state, batch, progress):
        z = self.ends(params, state, batch.x)[0]
        return fl.Out(fl.cross_entropy(z, batch.y).mean(), state, {})

    def ends(self, params, state, x):
        return self.head.scores(params, state["head"], x), fl.text_scores(state["text"], x)

    def scores(self, params, state, x):
        own, text = self.ends(params, state, x)
        return dict.fromkeys(("test", "pseudo"), self.share * own + (1 - self.share) * text)
"""


def test_a_fused_method_whose_state_is_a_dict_without_a_label_bias_has_its_sliders(world, tmp_path):
    (tmp_path / "mine.py").write_text(FUSED)
    run = fastltssl.train(str(tmp_path / "mine.py"), world, n1=5, m1=10, steps=10, out=tmp_path / "run")["run"]
    insight = read_insight(tmp_path / "run")
    assert run == str(tmp_path / "run")
    scored = cure.score(insight, world)
    assert (scored.neutral.bias, scored.neutral.eta) == (0.0, 0.5)
    label, _ = cure.relabelled(scored, scored.neutral)
    stored = torch.from_numpy(np.asarray(insight.recorded.label[-1])).long()
    assert (label == stored).float().mean() > 0.99
    assert torch.equal(cure.relabelled(scored, scored.neutral._replace(bias=1.0))[0], label)
    assert cure.subtracted_bias(insight) == (None, "")
