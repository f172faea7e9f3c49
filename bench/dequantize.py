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
        if field.name == gguf.Keys.General.FILE_TYPE:
            writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)


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
