"""A launch as an engine does it: the grid and the whole numbers come from the shapes of contiguous tensors alone."""

from shallowvit_kernels.catalogue import definition_of
from shallowvit_kernels.records import Dtype
from shallowvit_kernels.tensors import arguments_of, grid_of, outputs_of


def launch_from_data(variant, tensors, outputs, tile):
    """Launch as an engine does, by Argument.size and the shapes."""
    definition = definition_of(variant.kernel)
    shapes = [tuple(one.shape) for one in tensors]
    given = {"input": tensors, "output": outputs}
    assert len(outputs) == len(outputs_of(variant))
    values = {}
    for name, argument in arguments_of(definition.kernel.arg_names, variant).items():
        if argument is None:
            values[name] = None if name.endswith("_ptr") else 0
        else:
            values[name] = argument.size.of(shapes) if argument.size else given[argument.kind][argument.index]
    constants = definition.constants(variant, tile, "ieee", widen=variant.dtype is Dtype.BF16)
    definition.kernel[grid_of(variant, tile.queries).of(shapes),](**values, **constants)
