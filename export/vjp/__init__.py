"""Vector-Jacobian products as graphs: traced, differentiated by rules, written, cut in two."""

from good_rt.export.vjp.module import GRADIENT, VjpModule, cotangent_names
from good_rt.export.vjp.trace import export_vjp_onnx, vjp_module

__all__ = ["GRADIENT", "VjpModule", "cotangent_names", "export_vjp_onnx", "vjp_module"]
