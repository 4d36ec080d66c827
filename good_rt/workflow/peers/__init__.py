"""Post-hoc OOD scores of other papers on the same classifier and images, to compare ours with.

`PEERS` is the one register: each peer is fitted on ID training images and returns a function of a
set of images, higher = more OOD. All share the features of one pass of the network; only ODIN and
AdaSCALE run it again, for gradients. Settings are published defaults or follow from ID data; no
test image chooses any. pytorch-ood, the extra ``peers``, computes what it has.

A new one is a function that `peer` enters, in a file here with a line below, or in `pytorch_ood`.
"""

from good_rt.workflow.peers import pytorch_ood  # noqa: F401

# tables show the peers in the order of these imports
# isort: split
from good_rt.workflow.peers import adascale, dual_cache  # noqa: F401
from good_rt.workflow.peers.base import PEERS, PeerFit, pytorch_ood_detectors
from good_rt.workflow.peers.head import linear_head
from good_rt.workflow.peers.images import ImageBatches, ScoredImages, array_batches
from good_rt.workflow.peers.score import PeerScores, peer_scores, score_with_peers

__all__ = [
    "PEERS",
    "ImageBatches",
    "PeerFit",
    "PeerScores",
    "ScoredImages",
    "array_batches",
    "linear_head",
    "peer_scores",
    "pytorch_ood_detectors",
    "score_with_peers",
]
