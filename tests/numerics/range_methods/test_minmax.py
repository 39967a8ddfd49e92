from histograms import HISTOGRAMS, SAMPLES, each_scheme

from onnxq.numerics.range_methods.minmax import minmax
from onnxq.numerics.scheme import Range


@each_scheme
def test_is_exact(scheme):
    for name, x in SAMPLES.items():
        assert minmax(HISTOGRAMS[name], scheme) == Range(float(x.min()), float(x.max())), name
