#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A quantised GGUF with its matrices in f16.

    dequantize.py --gguf-py LLAMA_CPP/gguf-py IN.gguf OUT.gguf

llama.cpp rounds activations to 8 bits before it multiplies them with quantised weights, so that the last bit of a sum
moves predictions by more than a careful policy does. The same weights in f16 let the policy be seen.
"""
import argparse
import sys


def copy_fields(reader, writer, gguf):
    for field in reader.fields.values():
        if field.name == gguf.Keys.General.ARCHITECTURE or field.name.startswith('GGUF.'):
            continue
        kind = field.types[0]
        value = gguf.GGUFValueType.UINT32, int(gguf.LlamaFileType.MOSTLY_F16)
        if field.name == gguf.Keys.General.FILE_TYPE:
            writer.add_key_value(field.name, value[1], value[0])
        elif kind == gguf.GGUFValueType.ARRAY:
            writer.add_key_value(field.name, field.contents(), kind, sub_type=field.types[-1])
        else:
            writer.add_key_value(field.name, field.contents(), kind)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--gguf-py', required=True)
    parser.add_argument('input')
    parser.add_argument('output')
    args = parser.parse_args()
    sys.path.insert(0, args.gguf_py)
    import gguf
    import numpy

    reader = gguf.GGUFReader(args.input)
    writer = gguf.GGUFWriter(args.output, reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
    copy_fields(reader, writer, gguf)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(numpy.float16 if values.ndim > 1 else numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == '__main__':
    main()
