"""The plugin of an engine, of TensorRT-RTX's real classes, over a stand-in of the CUDA driver: FOLDER has it and the kernels.

Run as a script in a process of its own, since the stand-in becomes its ``libcuda.so.1``; it prints what each step said.
"""

import ctypes
import json
import sys
from pathlib import Path

import tensorrt_rtx as trt

from shallowvit_bench.runners.attention_plugin import plugins_of, register_for_engine
from shallowvit_bench.runners.plugin_kernels import PluginError, read_kernel

ADDRESSES = [0x7F0000000010, 0x7F0000000020, 0x7F0000000030], [0x7F0000000040]


def described(shape):
    desc = trt.PluginTensorDesc()
    desc.dims, desc.type, desc.format = trt.Dims(shape), trt.float16, trt.TensorFormat.LINEAR
    return desc


class Scene:
    def __init__(self, folder):
        self.driver = ctypes.CDLL(str(folder / "libcuda.so.1"))
        self.driver.stand_in_said.restype = ctypes.c_char_p
        self.folder = folder
        self.plugins = plugins_of(trt)

    def kernels(self, *names):
        return tuple(read_kernel(str(self.folder / f"{name}.json"), str(self.folder / f"{name}.ptx")) for name in names)

    def plugin(self, *names):
        """As the engine makes it: built from a node, written down, and made again from what was written."""
        kernels = self.kernels(*names)
        operator = kernels[0].operator
        self.plugins.register(operator, kernels)
        creator = self.plugins._creators[operator]
        variant = kernels[0].variant.encode() + b"\0"  # a field doesn't keep what it points to
        node = trt.PluginFieldCollection([trt.PluginField("variant", variant, trt.PluginFieldType.CHAR)])
        built = creator.create_plugin("node", node, trt.TensorRTPhase.BUILD)
        written = built.get_fields_to_serialize()
        return creator.create_plugin("node", written, trt.TensorRTPhase.RUNTIME)

    def run(self, attached, shapes, kinds, prepare=True):
        self.driver.stand_in_expects(kinds.encode())
        inputs = [described(shape) for shape in shapes]
        outputs = [described(shapes[0])]
        if prepare:
            attached.on_shape_change(inputs, outputs)
        attached.enqueue(inputs, outputs, *ADDRESSES, 0, 0xABC)
        return self.driver.stand_in_said().decode()

    def refusal(self, action):
        self.plugins.problem()
        try:
            action()
        except PluginError as err:
            return [str(err), self.plugins.problem()]
        return None


def main(folder):
    scene = Scene(folder)
    driver, told = scene.driver, {}
    kinds = json.loads((folder / "kinds.json").read_text())
    shapes = [(3, 2, 33, 16), (3, 2, 50, 16), (3, 2, 50, 16)]
    plugin = scene.plugin("80", "90a", "86")
    first, second = plugin.attach_to_context(None), plugin.attach_to_context(None)
    told["loaded"] = [driver.stand_in_loaded()]
    told["launch"] = scene.run(first, shapes, kinds)
    smaller = [(1, 2, 5, 16), (1, 2, 7, 16), (1, 2, 7, 16)]
    told["unprepared"] = scene.run(second, smaller, kinds, prepare=False)
    told["again"] = scene.run(first, shapes, kinds, prepare=False)
    driver.stand_in_set(2, 86, 0)
    third = plugin.attach_to_context(None)
    told["loaded"].append(driver.stand_in_loaded())
    for attached in (first, second, third):
        attached.destroy()
        attached.destroy()
        told["loaded"].append(driver.stand_in_loaded())
    for sm in (90, 100):
        driver.stand_in_set(1, sm, 0)
        told[f"on {sm}"] = plugin.attach_to_context(None)._loaded.kernel.sm
    driver.stand_in_set(0, 86, 0)
    alone = plugin.attach_to_context(None)
    told["context of its own"] = scene.run(alone, shapes, kinds)
    driver.stand_in_expects(b"")
    told["shared"] = [scene.plugin("large").attach_to_context(None) is not None, driver.stand_in_said().decode()]
    told["refused"] = refused = {}
    refused["too much shared"] = scene.refusal(lambda: scene.plugin("huge").attach_to_context(None))
    told["loaded"].append(driver.stand_in_loaded())
    refused["newer"] = scene.refusal(lambda: scene.plugin("newer").attach_to_context(None))
    refused["no tokens"] = scene.refusal(lambda: scene.run(alone, [(3, 2, 0, 16), *shapes[1:]], kinds))
    refused["keys"] = scene.refusal(lambda: scene.run(alone, [*shapes[:2], (3, 2, 51, 16)], kinds))
    driver.stand_in_set(7, 86, 1)
    refused["launch"] = scene.refusal(lambda: scene.run(alone, shapes, kinds))
    driver.stand_in_set(7, 86, 700)
    refused["unknown"] = scene.refusal(lambda: scene.run(alone, shapes, kinds))
    driver.stand_in_set(7, 75, 0)
    refused["older"] = scene.refusal(lambda: plugin.attach_to_context(None))
    creator = scene.plugins._creators[plugin.plugin_name]
    nothing = trt.PluginFieldCollection([])
    refused["no launch"] = scene.refusal(lambda: creator.create_plugin("node", nothing, trt.TensorRTPhase.RUNTIME))
    creator.kernels = ()
    refused["no kernel"] = scene.refusal(lambda: creator.create_plugin("node", nothing, trt.TensorRTPhase.BUILD))
    other = f".entry {plugin.plugin_name[:-8]}01234567(".encode()
    register_for_engine(trt, b"\0" + other + b"\0")
    told["registered"] = [one.name for one in trt.get_plugin_registry().all_creators if one.name.startswith("shallowvit_")]
    return told


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
